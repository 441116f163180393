// What every panel shares: making nodes, talking to the kernel, and saying that one waits for it.
// Names from data are text of nodes and of attributes, never markup.

const PATIENCE = 3000; // ms without an answer before the panel says that it waits
const EXCUSE = "The kernel has not answered yet: a cell is running, or it was restarted and this cell has to be run again.";

// An element. Attributes that are false or missing are left out; `on` maps events to what they do.
export function node(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, act] of Object.entries(value)) made.addEventListener(event, act);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value != null) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child != null && child !== ""));
  return made;
}

// Puts other children in, unless they say the same: what has the focus keeps it.
export function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

// The way to the plain object in the kernel.
export class Link {
  constructor(model, { patience = PATIENCE, excuse = EXCUSE } = {}) {
    this.model = model;
    this.patience = patience;
    this.excuse = excuse;
    this.late = false; // the line says that we wait
    this.me = Math.random().toString(36).slice(2);
    this.sent = 0;
    this.waiting = new Map(); // answer that is awaited -> its timer and what is done then
    this.heard = [];
    this.line = node("p", { class: "tl-said", role: "status", hidden: true });
    this.bar = node("span", { class: "tl-busy", "aria-hidden": "true", hidden: true });
    this.on("msg:custom", (message) => this.receive(message));
    this.watch("doing", ({ busy, trouble }) => {
      this.bar.hidden = !busy;
      this.say(busy || trouble, !busy && Boolean(trouble));
    });
  }

  on(event, act) {
    this.model.on(event, act);
    this.heard.push([event, act]);
  }

  // Draw a part of the state now and whenever it changes.
  watch(part, draw) {
    this.on(`change:${part}`, () => draw(this.model.get(part)));
    draw(this.model.get(part));
  }

  // Ask for something; true once it is done, false when it was refused, and then the reason is shown.
  // What is `quiet` leaves the line as it is when there is nothing to say.
  send(message, quiet = false) {
    const answer = `${this.me} ${++this.sent}`;
    return new Promise((resolve) => {
      const timer = setTimeout(() => {
        this.say(this.excuse, true);
        this.late = true;
      }, this.patience);
      this.waiting.set(answer, { timer, resolve, quiet });
      try {
        this.model.send({ ...message, answer });
      } catch { // the kernel is another one now
        this.receive({ answer, ok: false, text: this.excuse });
      }
    });
  }

  receive({ answer, ok, text }) {
    if (!this.waiting.has(answer)) return;
    const { timer, resolve, quiet } = this.waiting.get(answer);
    clearTimeout(timer);
    this.waiting.delete(answer);
    if (!this.model.get("doing").busy && (text || !quiet || this.late)) this.say(text ?? "", !ok);
    resolve(ok);
  }

  say(text, bad = false) {
    this.late = false;
    this.line.hidden = !text;
    this.line.classList.toggle("tl-bad", bad);
    write(this.line, text);
  }

  close() {
    for (const [event, act] of this.heard) this.model.off(event, act);
    for (const { timer } of this.waiting.values()) clearTimeout(timer);
  }
}

// Large counts with two or three significant digits: 1.2 M, 583 k, 80.
export function short(number) {
  for (const [size, letter] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    const value = number / size;
    if (value >= 0.9995) return `${value.toFixed(value < 9.95 ? 1 : 0)} ${letter}`;
  }
  return String(Math.round(number));
}

// A text that the clipboard gets.
export async function copy(text, link) {
  try {
    await navigator.clipboard.writeText(text);
    link.say("Copied.");
  } catch {
    link.say("The browser does not allow copying; select the text and copy it by hand.", true);
  }
}
