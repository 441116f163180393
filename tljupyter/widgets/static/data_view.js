// The data view: draws what its parts say, asks for thumbnails, and sends keys and clicks to the kernel.

import { node, write, Link } from "./panel.js";
import { Pictures } from "./pictures.js";

const COUNT = new Intl.NumberFormat("en");
const many = (number, noun) => `${COUNT.format(number)} ${noun}${number === 1 ? "" : "s"}`;

class DataView {
  constructor(model, el) {
    this.model = model;
    this.link = new Link(model);
    this.pictures = new Pictures(this.link, () => this.items.map((item, place) => [item, this.grid.children[place].firstElementChild]));
    this.items = null; // of the page that is drawn
    this.focused = 0; // place on the page
    this.wanted = 0; // place to be focused on the page that was asked for
    this.build(el);
    this.link.watch("about", () => this.drawAbout());
    this.link.watch("gate", () => this.drawGate());
    this.link.watch("progress", () => this.drawProgress());
    this.link.watch("counts", () => {
      this.drawCounts();
      this.drawFilters();
      this.drawActions();
    });
    this.link.watch("page", () => {
      this.drawCounts();
      this.drawGate();
      this.drawFilters();
      this.drawGrid();
      this.drawActions();
    });
    this.link.send({ do: "opened" });
  }

  get about() { return this.model.get("about"); }
  get page() { return this.model.get("page"); }
  get classes() { return this.model.get("counts").rows.filter((row) => row.name); }
  get editable() { return this.about.target === "classes"; }
  get row() { return this.page.rows[this.focused]; }

  close() {
    this.link.close();
    this.pictures.close();
  }

  // What stays while its content changes

  build(el) {
    const button = (words, act, more = {}) => node("button", { type: "button", on: { click: act }, ...more }, words);
    const select = (label) => node("select", { "aria-label": label, on: { change: () => this.choose() } });
    this.title = node("h3");
    this.edits = node("p", { class: "tl-quiet" });
    this.notes = node("details");
    this.counts = node("div", { class: "tl-dv-counts", tabindex: -1 });
    this.budget = node("p", { class: "tl-quiet" });
    this.verdict = node("span");
    this.checkButton = button("", () => this.link.send({ do: this.model.get("gate").state === "running" ? "stop" : "check" }));
    this.progress = node("progress", { "aria-label": "Images that the gate has seen" });
    this.findings = node("ul", { class: "tl-dv-findings" });
    [this.classFilter, this.markFilter, this.sideFilter] = ["Class", "State", "Side"].map(select);
    this.filters = ["Class ", "State ", "Side "].map((words, place) =>
      node("label", {}, words, [this.classFilter, this.markFilter, this.sideFilter][place]));
    this.listed = node("span", { class: "tl-quiet" });
    this.again = button("List again", () => this.choose(), { title: "Edited images keep their place until then" });
    this.back = button("‹", () => this.turn(-1), { "aria-label": "Page before" });
    this.forth = button("›", () => this.turn(1), { "aria-label": "Next page" });
    this.pageField = node("input", { type: "number", min: 1, "aria-label": "Page", on: { change: () => this.go(Number(this.pageField.value) - 1) } });
    this.pages = node("span");
    this.grid = node("div", {
      class: "tl-dv-grid", role: "listbox", "aria-label": "Images", "aria-orientation": "horizontal",
      on: { keydown: (event) => this.key(event), click: (event) => this.click(event) },
    });
    this.none = node("p", { class: "tl-quiet" }, "No image is of this kind.");
    this.chosen = node("span", { class: "tl-dv-chosen" });
    this.relabels = node("div", { class: "tl-line", role: "group", "aria-label": "Give the image a class" });
    this.others = node("select", { "aria-label": "Give the image another class", on: { change: () => this.edit("relabel", this.classes[Number(this.others.value)].name) } });
    const act = (key, words, done) => button([node("kbd", {}, key), ` ${words}`], done, { "aria-keyshortcuts": key });
    this.action = act;
    this.drop = act("x", "Drop", () => this.edit("drop"));
    this.unsure = act("u", "Unsure", () => this.edit("unsure"));
    this.undo = act("z", "Undo", () => this.link.send({ do: "undo" }));
    this.root = node("section", { class: "tl-panel tl-dv", "data-lm-suppress-shortcuts": "true", on: { keydown: (event) => this.anywhere(event) } },
      node("header", {}, this.title, this.edits, this.notes),
      this.counts, this.budget,
      node("div", { class: "tl-dv-gate" },
        node("div", { class: "tl-line" }, node("strong", {}, "Gate"), this.verdict, this.progress, this.checkButton),
        this.findings),
      node("div", { class: "tl-line" }, this.filters, this.listed, this.again,
        node("span", { class: "tl-line tl-dv-pages" }, this.back, node("label", {}, "Page ", this.pageField, " of ", this.pages), this.forth)),
      this.grid, this.none,
      node("div", { class: "tl-dv-edit" }, this.chosen, this.relabels, this.others,
        node("div", { class: "tl-line", role: "group", "aria-label": "Other edits" }, this.drop, this.unsure, this.undo),
        this.link.bar, this.link.line));
    el.append(this.root);
  }

  // Drawing

  // Draws a part anew; what had the focus there has it again.
  keeping(part, ...children) {
    const active = part.getRootNode().activeElement;
    const key = part.contains(active) ? active.dataset.key : null;
    part.replaceChildren(...children);
    if (key) (this.find(part, key) ?? part).focus();
  }

  find(part, key) { return [...part.querySelectorAll("[data-key]")].find((one) => one.dataset.key === key); }

  drawAbout() {
    const { name, kept, total, edits, journal, journal_path, notes } = this.about;
    this.root.setAttribute("aria-label", `Data view of ${name}`);
    write(this.title, `${many(kept, "image")} of ${name}`);
    const out = kept < total ? `${many(total - kept, "image")} taken out. ` : "";
    write(this.edits, out + (edits ? `${many(edits, "edit")} in ${journal}.` : `Edits are kept in ${journal}.`));
    this.edits.title = journal_path;
    this.notes.hidden = notes.length === 0;
    this.notes.replaceChildren(
      node("summary", {}, `${many(notes.length, "note")} on edits that met other data`),
      node("ul", {}, notes.slice(0, 100).map((note) => node("li", {}, note))));
    this.undo.disabled = edits === 0;
  }

  drawCounts() {
    const { rows, budget } = this.model.get("counts");
    const { sides, grouped } = this.about;
    const { selection } = this.page;
    const most = Math.max(1, ...rows.map((row) => row.items));
    const explained = { "to draw": "Labels that can be drawn to learn from", groups: "Patients, machines or users", key: "Key that gives an image this class" };
    const heads = ["key", "class", "", "items", ...sides, ...(grouped ? ["groups"] : []), "to draw"];
    const head = heads.map((words, place) => node("th", { scope: "col", class: ["", "", "tl-dv-bars"][place] ?? "tl-number", title: explained[words] }, words));
    const body = rows.map((row) => {
      const bare = !row.name;
      const chosen = bare ? selection.mark === "unlabelled" : selection.label === row.name;
      const show = bare ? { mark: "unlabelled" } : { label: row.name };
      const pick = node("button", {
        type: "button", class: "tl-dv-class", "aria-pressed": String(chosen), "data-key": `class ${row.name}`,
        on: { click: () => this.link.send({ do: "show", ...(chosen ? {} : show) }) },
      }, row.name || "unlabelled");
      const bar = node("span", { class: "tl-dv-bar" });
      bar.style.inlineSize = `${(100 * row.items) / most}%`;
      const numbers = [row.items, ...sides.map((side) => row.sides[side]), ...(grouped ? [row.groups] : [])].map((number) => COUNT.format(number));
      return node("tr", {},
        node("td", {}, row.key ? node("kbd", {}, row.key) : ""), node("th", { scope: "row" }, pick), node("td", { class: "tl-dv-bars", "aria-hidden": "true" }, bar),
        [...numbers, bare ? "–" : COUNT.format(row.to_draw)].map((words) => node("td", { class: "tl-number" }, words)));
    });
    this.counts.hidden = rows.length === 0;
    this.keeping(this.counts, node("table", {}, node("thead", {}, node("tr", {}, head)), node("tbody", {}, body)));
    write(this.budget, budget);
  }

  drawGate() {
    const { state, message, stale, findings } = this.model.get("gate");
    const open = findings.filter((row) => row.severity === "stops" && !row.answer).length;
    const found = open ? `✕ ${many(open, "finding")} in the way` : findings.length ? "✓ nothing in the way" : "✓ nothing found";
    const words = { "not checked": "has not looked yet", stopped: "was stopped before it had seen all", failed: `could not look: ${message}` };
    words.done = !stale ? found : `${open ? found : "◆ cannot tell"}; labels were edited since it looked`;
    if (state !== "running") write(this.verdict, words[state]);
    write(this.checkButton, { running: "Stop", "not checked": `Check ${many(this.about.kept, "image")}` }[state] ?? "Check again");
    this.progress.hidden = state !== "running";
    this.drawProgress();
    this.keeping(this.findings, ...findings.map((row) => this.finding(row, stale)));
  }

  drawProgress() {
    const [done, of] = this.model.get("progress");
    if (this.model.get("gate").state !== "running") return;
    this.progress.max = Math.max(1, of);
    this.progress.value = done;
    write(this.verdict, done < of ? `has seen ${COUNT.format(done)} of ${COUNT.format(of)}` : "compares what may be copies …");
  }

  finding(row, stale) {
    const shown = this.page.selection.finding === row.number;
    const button = (what, words, label, message, more = {}) => node("button", {
      type: "button", "aria-label": label, "data-key": `${what} ${row.number}`, ...more,
      on: { click: async () => (await this.link.send(message)) && what !== "show" && this.find(this.findings, `finding ${row.number}`)?.focus() },
    }, words);
    const open = !row.answer;
    const buttons = [];
    if (row.items) {
      buttons.push(button("show", `Show ${COUNT.format(row.items)}`, `Show ${many(row.items, "image")}: ${row.kind}`,
        shown ? { do: "show" } : { do: "show", finding: row.number }, { "aria-pressed": String(shown) }));
    }
    if (open && row.repair) {
      buttons.push(button("repair", "Repair", `Repair ${row.kind}: ${row.repair}`, { do: "repair", kind: row.kind }, { disabled: stale }));
    }
    if (open && row.severity === "stops") buttons.push(button("allow", "Allow", `Allow ${row.kind}`, { do: "allow", kind: row.kind }));
    return node("li", { tabindex: -1, "data-key": `finding ${row.number}`, "data-answer": row.answer || row.severity },
      node("strong", {}, row.words),
      node("span", {}, node("code", {}, row.kind), ` ${row.message}`, open && row.repair ? node("span", { class: "tl-quiet" }, ` Repair: ${row.repair}.`) : ""),
      node("span", { class: "tl-line" }, buttons));
  }

  drawFilters() {
    const { sides } = this.about;
    const { selection, listed, pages, page, outdated } = this.page;
    const marks = this.editable ? ["relabelled", "unsure", "dropped", "left out", "unlabelled"] : ["dropped", "left out"];
    const classes = this.classes.map((row) => row.name);
    const fill = (field, words, chosen) => {
      field.parentElement.hidden = words.length === 0;
      field.replaceChildren(...["all", ...words].map((word, place) => node("option", { value: place - 1 }, word)));
      field.value = words.indexOf(chosen);
    };
    fill(this.classFilter, classes, selection.label);
    fill(this.markFilter, marks, selection.mark);
    fill(this.sideFilter, sides, selection.side);
    this.choices = { classes, marks, sides };
    write(this.listed, many(listed, "image") + (selection.finding == null ? "" : " of a finding"));
    this.again.hidden = !outdated || selection.finding != null;
    this.pageField.max = pages;
    this.pageField.value = page + 1;
    write(this.pages, COUNT.format(pages));
    this.back.disabled = page === 0;
    this.forth.disabled = page + 1 >= pages;
  }

  drawGrid() {
    const { rows } = this.page;
    const items = rows.map((row) => row.item);
    if (items.join() !== this.items?.join()) {
      const inside = this.grid.contains(this.grid.getRootNode().activeElement);
      this.items = items;
      this.focused = Math.max(0, Math.min(this.wanted, items.length - 1));
      this.wanted = 0;
      this.grid.replaceChildren(...rows.map(() => node("div", { role: "option", class: "tl-dv-option" },
        node("span", { class: "tl-shot" }), node("span", { class: "tl-dv-caption" }), node("span", { class: "tl-dv-mark" }))));
      this.none.hidden = rows.length > 0;
      if (inside) this.focus(this.focused);
    }
    rows.forEach((row, place) => this.dress(this.grid.children[place], row, place));
    this.pictures.show();
  }

  dress(option, row, place) {
    const marks = { dropped: "✕ dropped", unsure: "? unsure", "left out": "– left out", relabelled: `was ${row.was ?? "unlabelled"}` };
    const words = [row.label ?? "unlabelled", marks[row.mark], row.side, row.group && `group ${row.group}`, row.name].filter(Boolean).join(", ");
    const [, caption, mark] = option.children;
    option.dataset.mark = row.mark;
    option.setAttribute("aria-label", words);
    option.title = words;
    this.choosable(option, place);
    write(caption, row.label ?? "unlabelled");
    write(mark, marks[row.mark] ?? "");
  }

  choosable(option, place) {
    option.tabIndex = place === this.focused ? 0 : -1;
    option.setAttribute("aria-selected", String(place === this.focused));
  }

  drawActions() {
    const { row, classes } = this;
    const keyed = classes.filter((one) => one.key);
    write(this.chosen, row?.name ?? "");
    this.chosen.title = row?.name ?? "";
    this.relabels.hidden = !this.editable;
    this.unsure.hidden = !this.editable;
    this.keeping(this.relabels, ...keyed.map((one) => {
      const made = this.action(one.key, one.name, () => this.edit("relabel", one.name));
      made.dataset.key = `relabel ${one.name}`;
      made.setAttribute("aria-pressed", String(one.name === row?.label));
      return made;
    }));
    this.others.hidden = !this.editable || keyed.length === classes.length;
    this.others.replaceChildren(node("option", { value: -1 }, "another class …"),
      ...classes.map((one, place) => !one.key && node("option", { value: place }, one.name)).filter(Boolean));
    for (const button of [...this.relabels.children, this.others, this.drop, this.unsure]) button.disabled = !row;
  }

  // Acting

  choose() {
    const { classes, marks, sides } = this.choices;
    const chosen = (field, words) => words[Number(field.value)];
    this.link.send({ do: "show", label: chosen(this.classFilter, classes) ?? null, mark: chosen(this.markFilter, marks) ?? "", side: chosen(this.sideFilter, sides) ?? "" });
  }

  go(page) { this.link.send({ do: "page", page: Math.max(0, Math.trunc(page) || 0) }); }

  turn(by, place = 0) {
    const page = this.page.page + by;
    if (page < 0 || page >= this.page.pages) return;
    this.wanted = place;
    this.go(page);
  }

  async edit(what, to) {
    const option = this.grid.children[this.focused];
    const { item } = this.row;
    option.setAttribute("aria-busy", "true");
    await this.link.send({ do: what, item, to });
    option.removeAttribute("aria-busy");
  }

  focus(place) {
    this.focused = Math.max(0, Math.min(place, this.items.length - 1));
    [...this.grid.children].forEach((option, one) => this.choosable(option, one));
    this.grid.children[this.focused]?.focus();
    this.drawActions();
  }

  get columns() {
    const options = [...this.grid.children];
    const second = options.findIndex((option) => option.offsetTop !== options[0].offsetTop);
    return second < 0 ? options.length : second;
  }

  click(event) {
    const option = event.target.closest("[role=option]");
    if (option) this.focus([...this.grid.children].indexOf(option));
  }

  move(to) {
    const last = this.items.length - 1;
    if (to < 0) this.page.page > 0 ? this.turn(-1, this.page.per_page - 1) : this.focus(0);
    else if (to <= last) this.focus(to);
    else if (this.page.page + 1 < this.page.pages) this.turn(1);
    else this.focus(last);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.row) return;
    const steps = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -this.columns, ArrowDown: this.columns };
    const known = this.editable && this.classes.find((row) => row.key === event.key);
    if (event.key in steps) this.move(this.focused + steps[event.key]);
    else if (event.key === "Home") this.focus(0);
    else if (event.key === "End") this.focus(this.items.length - 1);
    else if (event.key === "PageUp") this.turn(-1);
    else if (event.key === "PageDown") this.turn(1);
    else if (event.key === "x") this.edit("drop");
    else if (event.key === "u" && this.editable) this.edit("unsure");
    else if (known) this.edit("relabel", known.name);
    else return;
    event.preventDefault();
  }

  anywhere(event) {
    event.stopPropagation(); // the notebook has an x and a z of its own
    const plain = !event.ctrlKey && !event.metaKey && !event.altKey;
    if (event.key === "z" && plain && !event.target.closest("input, select") && !this.undo.disabled) {
      event.preventDefault();
      this.link.send({ do: "undo" });
    }
  }
}

export default {
  render({ model, el }) {
    const view = new DataView(model, el);
    return () => view.close();
  },
};
