// The backbone picker in a browser: draws the rows that the kernel lists, and sends filter, order, choice and questions.

import { Link, copy, node, short, write } from "./panel.js";

const NUMBER = new Intl.NumberFormat("en");
const MOST = 200; // rows that are drawn
const PAUSE = 150; // ms after the last key before the filter is sent
const COLUMNS = ["name", "parameters", "input", "trained on", "licence", "weights", "ms an image", "memory", "rank"];
const WEIGHTS = { here: "● here", download: "○ download", none: "– none" };
const WORDS = { here: "weights are on this machine", download: "weights can be downloaded", none: "no weights are published" };

const milliseconds = (ms) => `${ms.toFixed(ms < 0.995 ? 2 : ms < 9.95 ? 1 : 0)} ms`;
const size = (bytes) => bytes < 0.95 * 2 ** 20 ? `${Math.round(bytes / 2 ** 10)} KiB` : `${NUMBER.format(Math.round(bytes / 2 ** 20))} MiB`;
const brief = (licence) => licence.replace(/^https?:\/\/([^/]+)\/.*\/([^/]+)\/?$/, "$1/…/$2"); // the whole address is in the title
const decimal = (number) => number.toFixed(2).replace("-", "−");

class Picker {
  constructor(model, el) {
    this.link = new Link(model);
    this.model = model;
    this.rows = new Map(model.get("rows").map((row) => [row.name, row]));
    this.drawn = new Map(); // name -> its parts
    this.build(el);
    this.link.watch("view", (view) => this.drawView(view));
    this.link.watch("found", (found) => this.drawFound(found));
    this.link.on("change:doing", () => this.drawButtons());
  }

  close() {
    clearTimeout(this.typing);
    this.link.close();
  }

  build(el) {
    const press = (label, act, more = {}) => node("button", { type: "button", ...more, on: { click: act } }, label);
    this.words = node("input", { type: "search", placeholder: "name, licence, data", "aria-label": "Filter backbones", on: { input: () => this.typed(), keydown: (event) => event.key === "ArrowDown" && this.activate(this.body.firstElementChild) } });
    this.weights = node("select", { "aria-label": "Weights", on: { change: () => this.filter() } },
      node("option", { value: "any" }, "any weights"), ...Object.entries(WEIGHTS).map(([value, text]) => node("option", { value }, text)));
    this.order = node("select", { "aria-label": "Sort by", class: "tl-bp-order", on: { change: () => this.sort(this.order.value, false) } }, COLUMNS.map((name) => node("option", { value: name }, `by ${name}`)));
    this.count = node("span", { class: "tl-quiet", role: "status" });
    this.heads = COLUMNS.map((name) => {
      const arrow = node("span", { "aria-hidden": "true" });
      const cell = node("span", { role: "columnheader", class: "tl-bp-cell", "data-column": name }, press([name, arrow], () => this.sort(name), { "data-column": name }));
      return { name, arrow, cell };
    });
    this.body = node("div", { role: "rowgroup", class: "tl-bp-body", on: {
      keydown: (event) => this.key(event), dblclick: (event) => this.choose(event.target.closest("[role=row]")),
      click: (event) => !event.target.closest("button") && this.choose(event.target.closest("[role=row]")), focusin: (event) => this.activate(event.target.closest("[role=row]"), false) } });
    this.more = node("p", { class: "tl-quiet" });
    this.grid = node("div", { role: "grid", "aria-label": "Backbones", class: "tl-bp-grid" },
      node("div", { role: "row", class: "tl-bp-row tl-bp-head" }, this.heads.map(({ cell }) => cell)), this.body);
    this.lines = node("ul", { class: "tl-bp-lines" });
    this.score = node("select", { "aria-label": "Score" });
    this.ranking = press("", () => this.link.send({ do: "rank", score: this.score.value }));
    this.ranks = node("div", { class: "tl-line" }, this.ranking, node("label", {}, "by ", this.score));
    this.code = node("pre", { class: "tl-bp-code", tabindex: 0, "aria-label": "Code that loads the choice" });
    this.copying = press("Copy", () => copy(this.code.textContent, this.link));
    this.choice = node("div", { class: "tl-bp-choice", hidden: true }, this.code, this.copying);
    this.root = node("section", { class: "tl-panel tl-bp", "aria-label": "Backbone picker", "data-lm-suppress-shortcuts": "true", on: { keydown: (event) => this.anywhere(event) } },
      node("div", { class: "tl-line" }, this.words, this.weights, this.order, this.count), this.grid, this.more,
      node("p", { class: "tl-quiet tl-bp-help" }, "/ filters · ↑ ↓ move · Enter chooses · m measures"),
      this.ranks, this.lines, this.choice, this.link.bar, this.link.line);
    el.replaceChildren(this.root);
  }

  // Drawing

  row(name) {
    if (!this.drawn.has(name)) {
      const row = this.rows.get(name), parts = { row };
      const cell = (column, ...content) => node("span", { role: "gridcell", class: "tl-bp-cell", "data-column": column }, ...content);
      parts.mark = node("span", { class: "tl-bp-mark", "aria-hidden": "true" }, "✓");
      parts.time = node("span", {});
      parts.measure = node("button", { type: "button", tabindex: -1, "aria-label": `Measure ${name} here`, on: { click: () => this.measure(name) } }, "measure");
      parts.memory = node("span", {});
      parts.rank = node("span", {});
      parts.el = node("div", { role: "row", class: "tl-bp-row", tabindex: -1, "data-name": name },
        cell("name", parts.mark, node("span", { class: "tl-bp-name" }, name)),
        cell("parameters", row.parameters == null ? "–" : short(row.parameters)),
        cell("input", row.input.join(" × ")),
        cell("trained on", row.trained_on),
        cell("licence", node("span", { title: row.licence }, brief(row.licence))),
        cell("weights", node("span", { title: WORDS[row.weights] }, WEIGHTS[row.weights])),
        cell("ms an image", parts.time, parts.measure), cell("memory", parts.memory), cell("rank", parts.rank));
      this.drawn.set(name, parts);
      this.drawRow(parts);
    }
    return this.drawn.get(name);
  }

  drawView(view) {
    this.view = view;
    const names = view.shown.slice(0, MOST), wanted = names.map((name) => this.row(name).el);
    const focused = this.body.contains(document.activeElement) ? document.activeElement : null;
    if (wanted.length !== this.body.children.length || wanted.some((row, at) => row !== this.body.children[at])) {
      this.body.replaceChildren(...wanted);
      this.grid.scrollTop = 0;
      focused?.focus(); // a row that moved is scrolled to
    }
    for (const name of names) {
      const { el, mark } = this.drawn.get(name), chosen = name === view.chosen;
      el.setAttribute("aria-selected", String(chosen));
      mark.hidden = !chosen;
    }
    for (const { name, arrow, cell } of this.heads) {
      const here = name === view.column;
      cell.setAttribute("aria-sort", here ? (view.descending ? "descending" : "ascending") : "none");
      write(arrow, here ? (view.descending ? " ▾" : " ▴") : "");
    }
    this.grid.setAttribute("aria-rowcount", view.shown.length + 1);
    if (!this.unsent) this.words.value = view.words;
    this.weights.value = view.weights;
    this.order.value = view.column ?? "name";
    write(this.count, `${NUMBER.format(view.shown.length)} of ${NUMBER.format(this.rows.size)}`);
    const rest = view.shown.length - names.length;
    this.more.hidden = rest === 0 && names.length > 0;
    write(this.more, rest ? `${NUMBER.format(rest)} more; a narrower filter shows them.` : "No backbone has all of these words.");
    if (this.score.options.length !== view.scores.length) this.score.replaceChildren(...view.scores.map((name) => node("option", { value: name }, name)));
    this.choice.hidden = !view.code;
    write(this.code, view.code);
    if (!wanted.includes(this.active)) {
      this.active = null;
      if (wanted.length) this.activate(wanted[Math.max(0, names.indexOf(view.chosen))], false);
    }
    this.drawButtons();
  }

  drawFound(found) {
    this.found = found;
    this.grid.classList.toggle("tl-bp-ranked", Object.keys(found.ranks).length > 0);
    for (const parts of this.drawn.values()) this.drawRow(parts);
    this.lines.replaceChildren(...found.lines.map((line) => node("li", {}, line)));
    this.lines.hidden = !found.lines.length;
  }

  drawRow({ row, time, measure, memory, rank }) {
    const found = this.found ?? this.model.get("found"), cost = found.costs[row.name], place = found.ranks[row.name];
    measure.hidden = Boolean(cost);
    write(time, cost ? milliseconds(cost.milliseconds) : "");
    time.title = cost ? `on ${cost.device}, ${cost.threads} threads of torch` : "";
    write(memory, cost ? size(cost.memory) : row.parameters == null ? "–" : `≥ ${size(4 * row.parameters)}`);
    memory.title = cost ? "weights, and what one image needs beside them" : "the weights alone";
    rank.replaceChildren(...(place ? [node("b", {}, place.letters), ` ${decimal(place.score)} `, node("span", { class: "tl-quiet" }, `[${decimal(place.low)}, ${decimal(place.high)}]`)] : [""]));
  }

  drawButtons() {
    const { busy } = this.model.get("doing"), { view } = this;
    for (const { measure } of this.drawn.values()) measure.disabled = Boolean(busy);
    this.ranks.hidden = !view.domain;
    const here = view.shown.filter((name) => this.rows.get(name).weights === "here").length;
    this.ranking.disabled = Boolean(busy) || !here;
    write(this.ranking, here ? `Rank the ${here} shown that ${here === 1 ? "is" : "are"} here on ${view.domain}` : "None of those shown is here to be ranked");
  }

  // Acting

  typed() {
    clearTimeout(this.typing);
    this.unsent = true; // what is typed is not overwritten by what the kernel knows so far
    this.typing = setTimeout(() => this.filter(), PAUSE);
  }

  async filter() {
    const words = this.words.value;
    await this.link.send({ do: "filter", words, weights: this.weights.value });
    if (this.words.value === words) this.unsent = false;
  }

  sort(column, descending = this.view.column === column && !this.view.descending) { this.link.send({ do: "sort", column, descending }); }

  choose(row) {
    if (row) this.link.send({ do: "choose", name: row.dataset.name });
  }

  measure(name) { if (!this.model.get("doing").busy) this.link.send({ do: "measure", name }); }

  activate(row, focus = true) {
    if (!row?.dataset?.name) return;
    if (row !== this.active) {
      for (const [old, index] of [[this.active, -1], [row, 0]]) {
        if (!old) continue;
        old.tabIndex = index;
        for (const part of old.querySelectorAll("button")) part.tabIndex = index;
      }
      this.active = row;
    }
    if (focus) row.focus();
  }

  key(event) {
    const row = event.target.closest("[role=row]");
    if (!row || event.target !== row || event.ctrlKey || event.metaKey || event.altKey) return;
    const rows = [...this.body.children], at = rows.indexOf(row), last = rows.length - 1;
    const goes = { ArrowDown: at + 1, ArrowUp: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: last };
    if (event.key in goes) this.activate(rows[Math.max(0, Math.min(last, goes[event.key]))]);
    else if (event.key === "Enter" || event.key === " ") this.choose(row);
    else if (event.key === "m") this.measure(row.dataset.name);
    else return;
    event.preventDefault();
  }

  anywhere(event) {
    event.stopPropagation(); // the notebook has its own meaning of m
    if (event.key === "/" && event.target !== this.words) {
      event.preventDefault();
      this.words.focus();
    }
  }
}

export default {
  render({ model, el }) {
    const picker = new Picker(model, el);
    return () => picker.close();
  },
};
