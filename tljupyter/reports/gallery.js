
// Shows the cards that fit what was asked. The page names the digest of this script; nothing else may run in it.
const form = document.querySelector('form')
const status = document.querySelector('[role=status]')
const cards = [...document.querySelectorAll('.runs > li')].map(card => ({
  card,
  words: card.textContent.toLowerCase(),
  template: card.dataset.template,
  verdict: card.dataset.verdict,
}))
const said = number => number.toLocaleString('en')

function filter() {
  const {words, template, verdict} = form.elements
  const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean)
  let shown = 0
  for (const one of cards) {
    const fits = (!template.value || one.template === template.value)
      && (!verdict.value || one.verdict === verdict.value)
      && asked.every(word => one.words.includes(word))
    one.card.hidden = !fits
    shown += fits
  }
  const all = said(cards.length) + (cards.length === 1 ? ' run' : ' runs')
  status.textContent = shown === cards.length ? all : `${said(shown)} of ${all}`
}

form.addEventListener('input', filter)
form.addEventListener('submit', event => event.preventDefault())
form.addEventListener('reset', () => setTimeout(filter))
form.hidden = false
filter()
