// The freeze tree in a browser: draws the plan and sends edits. What is typed stays until it is accepted or taken back.

import { Link, copy, node, short, write } from "./panel.js";

const NUMBER = new Intl.NumberFormat("en");
const HELP = "↑ ↓ move · space freezes · ← → fold · shift ← → thaw epoch · Enter edits, Esc leaves · z undoes";

// A field that shows what is so, unless something refused is still standing in it.
function fill(field, value) {
  const text = String(value ?? "");
  if (field.dataset.drawn === text) return;
  field.dataset.drawn = field.value = text;
  field.removeAttribute("aria-invalid");
}

class Tree {
  constructor(model, el) {
    this.link = new Link(model);
    this.fixed = model.get("fixed");
    this.epochs = this.fixed.epochs;
    this.stages = []; // rows of stages and of the head
    this.dragged = null;
    this.shown = null; // "yaml" or "code" while that text is open
    this.dirty = false; // the text was changed here
    this.build(el);
    this.link.watch("state", (state) => this.draw(state));
    this.activate(this.stages[0].row, false);
  }

  close() { this.link.close(); }

  // Parts that stay while their content changes

  build(el) {
    const press = (label, act, more = {}) => node("button", { type: "button", ...more, on: { click: act } }, label);
    this.lines = node("ul", { class: "tl-ft-lines", "aria-live": "polite" });
    this.warning = node("p", { class: "tl-ft-warning", role: "note" });
    this.presets = this.fixed.presets.map((name) => press(name[0].toUpperCase() + name.slice(1), () => this.link.send({ do: "preset", name }), { "data-name": name }));
    this.undoing = press("Undo", () => this.link.send({ do: "undo" }));
    this.redoing = press("Redo", () => this.link.send({ do: "redo" }));
    this.measuring = press("Measure the time here", () => this.link.send({ do: "measure" }));
    this.grid = node("div", { class: "tl-ft-grid", role: "treegrid", "aria-label": "Stages", on: { keydown: (event) => this.key(event), focusin: (event) => this.activate(event.target.closest("[role=row]"), false) } },
      node("div", { class: "tl-ft-row tl-ft-head", role: "row" },
        ...["stage", "parameters", "frozen"].map((name) => node("span", { role: "columnheader" }, name)),
        node("span", { role: "columnheader", class: "tl-ft-scale" }, node("span", { "aria-hidden": "true" }, "0"), "trains from epoch", node("span", { "aria-hidden": "true" }, this.epochs)),
        ...["", "rate ×", "statistics"].map((name) => node("span", { role: "columnheader", "aria-label": name || "epoch" }, name))));
    this.mark = node("div", { class: "tl-ft-mark", role: "presentation" });
    for (const stage of this.fixed.stages) this.grid.append(...this.buildStage(stage));
    this.grid.append(...this.buildStage({ name: "head", parameters: this.fixed.head, head: true, blocks: [] }));

    this.opening = { yaml: press("YAML", () => this.show("yaml"), { "aria-expanded": "false" }), code: press("Code cell", () => this.show("code"), { "aria-expanded": "false" }) };
    this.area = node("textarea", { spellcheck: "false", autocomplete: "off", wrap: "off", on: { input: () => this.typed(), keydown: (event) => this.areaKey(event) } });
    this.trouble = node("p", { class: "tl-said tl-bad", role: "alert" });
    this.reading = press("Read it back", () => this.read());
    this.discarding = press("Take changes back", () => this.discard());
    this.copying = press("Copy", () => copy(this.area.value, this.link));
    this.text = node("div", { class: "tl-ft-text", hidden: true }, this.area, this.trouble, node("div", { class: "tl-line" }, this.reading, this.discarding, this.copying));

    this.root = node("section", { class: "tl-panel tl-ft", "aria-label": `Freeze plan of ${this.fixed.backbone}`, "data-lm-suppress-shortcuts": "true", on: { keydown: (event) => this.anywhere(event) } },
      node("h3", {}, this.fixed.backbone), this.lines, this.warning,
      node("div", { class: "tl-line", role: "toolbar", "aria-label": "Plan" }, this.presets, node("span", { class: "tl-ft-gap" }), this.undoing, this.redoing, this.fixed.labels ? this.measuring : ""),
      this.grid, node("p", { class: "tl-quiet tl-ft-help" }, HELP),
      node("div", { class: "tl-line" }, this.opening.yaml, this.opening.code), this.text, this.link.bar, this.link.line);
    el.replaceChildren(this.root);
  }

  buildStage(stage) {
    const { name } = stage, one = { stage, moving: stage.parameters > 0, underWay: 0 };
    const number = (label, more, act) => node("input", { type: "number", tabindex: -1, "aria-label": label, ...more, on: { change: act } });
    one.fold = node("button", { type: "button", tabindex: -1, class: "tl-ft-fold", "aria-hidden": "true", hidden: !stage.blocks.length, on: { click: () => this.unfold(one.row, one.inner, stage.blocks, 2) } }, "▸");
    const cells = [node("span", { class: "tl-ft-name" }, one.fold, node("span", {}, name)), node("span", { class: "tl-number tl-ft-count", title: NUMBER.format(stage.parameters) }, stage.parameters ? short(stage.parameters) : "–")];
    if (one.moving && !stage.head) {
      one.frozen = node("input", { type: "checkbox", tabindex: -1, "aria-label": `Freeze ${name}`, on: { change: () => this.toggle(one) } });
      one.bar = node("span", { class: "tl-ft-bar" });
      one.slider = node("span", { class: "tl-ft-slider", role: "slider", tabindex: -1, "aria-label": `${name} trains from epoch`, "aria-valuemin": 0, "aria-valuemax": this.epochs, on: {
        pointerdown: (event) => this.grab(event, one), pointermove: (event) => this.drag(event, one), pointerup: (event) => this.drop(event, one),
        pointercancel: () => this.letGo(one) } }, one.bar);
      one.epoch = number(`${name} trains from epoch`, { min: 0, step: 1, placeholder: "never", class: "tl-ft-epoch" }, () => this.typeEpoch(one));
    } else if (stage.head) one.always = node("span", { class: "tl-ft-slider tl-ft-always", title: "The head always trains" }, node("span", { class: "tl-ft-bar" }));
    if (one.moving) one.rate = number(`Learning rate of ${name}, times the base rate`, { min: 0, step: "any", class: "tl-ft-rate" }, () => this.typeRate(one));
    if (stage.statistics) {
      one.policy = node("select", { tabindex: -1, "aria-label": `Statistics of ${name}`, on: { change: () => this.link.send({ do: "normalisation", stage: name, policy: one.policy.value }) } },
        node("option", { value: "frozen" }, "frozen"), node("option", { value: "moving" }, "moving"));
    }
    for (const [place, part] of [["frozen", one.frozen], ["time", one.slider ?? one.always], ["epoch", one.epoch], ["rate", one.rate], ["policy", one.policy]]) cells.push(node("span", { class: `tl-ft-${place}-cell` }, part));
    for (const cell of cells) cell.setAttribute("role", "gridcell");
    const bare = one.moving || stage.statistics ? "" : " tl-ft-bare";
    one.row = node("div", { class: `tl-ft-row${bare}`, role: "row", tabindex: -1, "aria-level": 1, "aria-expanded": stage.blocks.length ? "false" : null, on: { dblclick: (event) => event.target.closest("input, select, [role=slider]") ?? one.fold.click() } }, ...cells);
    one.row.stage = one;
    one.inner = node("div", { role: "rowgroup", hidden: true });
    this.stages.push(one);
    return stage.blocks.length ? [one.row, one.inner] : [one.row];
  }

  // Blocks of a stage are made when somebody looks at them.
  unfold(row, inner, blocks, level) {
    if (!inner.children.length) {
      for (const block of blocks) {
        const below = node("div", { role: "rowgroup", hidden: true });
        const fold = node("button", { type: "button", tabindex: -1, class: "tl-ft-fold", "aria-hidden": "true", hidden: !block.blocks.length, on: { click: () => this.unfold(made, below, block.blocks, level + 1) } }, "▸");
        const made = node("div", { class: "tl-ft-row tl-ft-block", role: "row", tabindex: -1, "aria-level": level, "aria-expanded": block.blocks.length ? "false" : null, style: `--level:${level - 1}` },
          node("span", { role: "gridcell", class: "tl-ft-name" }, fold, node("span", {}, block.name, " ", node("span", { class: "tl-quiet" }, block.kind))),
          node("span", { role: "gridcell", class: "tl-number tl-ft-count", title: NUMBER.format(block.parameters) }, short(block.parameters)));
        made.fold = fold;
        inner.append(made, ...(block.blocks.length ? [below] : []));
      }
    }
    inner.hidden = !inner.hidden;
    row.setAttribute("aria-expanded", String(!inner.hidden));
    write(row.querySelector(".tl-ft-fold"), inner.hidden ? "▸" : "▾");
    if (inner.hidden && !this.active?.checkVisibility()) this.activate(row);
  }

  // Drawing

  draw(state) {
    this.state = state;
    this.lines.replaceChildren(...state.lines.map((line) => node("li", {}, line)));
    this.warning.hidden = !state.warning;
    write(this.warning, `⚠ ${state.warning}`);
    for (const button of this.presets) button.setAttribute("aria-pressed", String(button.dataset.name === state.preset));
    this.undoing.disabled = !state.undo;
    this.redoing.disabled = !state.redo;
    write(this.measuring, state.measured ? "Measure again" : "Measure the time here");
    this.stages.forEach((one, at) => one.stage.head ? fill(one.rate, state.head_rate) : this.drawStage(one, state.stages[at]));
    write(this.mark, state.computed_until == null ? "↑ computed once" : `↑ computed once, until epoch ${state.computed_until}`);
    const last = this.stages[state.computed_once - 1];
    if (last) (last.stage.blocks.length ? last.inner : last.row).after(this.mark);
    else this.mark.remove();
    this.drawText();
  }

  drawStage(one, plan) {
    const from = !plan.frozen ? 0 : plan.thaw_at;
    one.plan = plan;
    one.row.classList.toggle("tl-ft-still", from == null || !one.moving);
    if (one.policy) one.policy.value = plan.normalisation;
    if (!one.moving) return;
    one.frozen.checked = from == null;
    one.frozen.indeterminate = from > 0;
    fill(one.epoch, from);
    fill(one.rate, plan.rate);
    one.rate.disabled = from == null;
    if (this.dragged !== one && !one.underWay) this.drawBar(one, from ?? this.epochs);
  }

  drawBar(one, from) {
    const words = from >= this.epochs ? "never" : from ? `epoch ${from}` : "from the start";
    one.from = Math.min(from, this.epochs);
    one.slider.style.setProperty("--from", one.from / this.epochs);
    one.slider.setAttribute("aria-valuenow", one.from);
    one.slider.setAttribute("aria-valuetext", words);
    one.slider.title = words;
  }

  // Editing a stage

  toggle(one) {
    this.drawStage(one, one.plan); // the box says what is so; the answer changes it
    this.turn = (this.turn ?? Promise.resolve()).then(() => { // one after the other: each turns what the last one made
      const never = one.plan.frozen && one.plan.thaw_at == null;
      return this.link.send(never ? { do: "thaw", stage: one.stage.name, epoch: 0 } : { do: "freeze", stage: one.stage.name });
    });
  }

  setEpoch(one, epoch) {
    const { name } = one.stage;
    return this.link.send(epoch == null || epoch >= this.epochs ? { do: "freeze", stage: name } : { do: "thaw", stage: name, epoch });
  }

  async shift(one, by) {
    const epoch = Math.max(0, Math.min(this.epochs, one.from + by));
    if (epoch === one.from) return;
    this.drawBar(one, epoch);
    one.underWay += 1; // answers to earlier keys do not pull the bar back
    await this.setEpoch(one, epoch);
    one.underWay -= 1;
    this.drawStage(one, one.plan);
  }

  async typeEpoch(one) {
    const field = one.epoch, epoch = field.value.trim() === "" && !field.validity.badInput ? null : Number(field.value);
    if (field.validity.badInput || (epoch !== null && !Number.isInteger(epoch))) return this.refuse(field, "An epoch is a whole number from 0; nothing means never.");
    const { name } = one.stage;
    const done = await this.link.send(epoch === null ? { do: "freeze", stage: name } : { do: "thaw", stage: name, epoch });
    if (!done) this.refuse(field);
  }

  async typeRate(one) {
    const rate = Number(one.rate.value);
    if (one.rate.value.trim() === "" || !Number.isFinite(rate)) return this.refuse(one.rate, "A rate is a number above 0, such as 0.1.");
    if (!(await this.link.send({ do: "rate", stage: one.stage.name, rate }))) this.refuse(one.rate);
  }

  refuse(field, words) {
    field.setAttribute("aria-invalid", "true");
    if (words) this.link.say(words, true);
  }

  // Dragging the epoch

  at(event, one) {
    const box = one.slider.getBoundingClientRect();
    return Math.round(Math.max(0, Math.min(1, (event.clientX - box.left) / box.width)) * this.epochs);
  }

  grab(event, one) {
    if (event.button) return;
    event.preventDefault();
    this.dragged = one;
    one.slider.setPointerCapture(event.pointerId);
    one.slider.focus();
    this.drawBar(one, this.at(event, one));
  }

  drag(event, one) { if (this.dragged === one) this.drawBar(one, this.at(event, one)); }

  async drop(event, one) {
    if (this.dragged !== one) return;
    await this.setEpoch(one, this.at(event, one));
    this.letGo(one);
  }

  letGo(one) {
    this.dragged = null;
    this.drawStage(one, one.plan);
  }

  // Keys

  rows() { return [...this.grid.querySelectorAll("[role=row][tabindex]")].filter((row) => row.checkVisibility()); }

  activate(row, focus = true) {
    if (!row?.hasAttribute("tabindex")) return;
    if (row !== this.active) {
      for (const [old, index] of [[this.active, -1], [row, 0]]) {
        if (!old) continue;
        old.tabIndex = index;
        for (const part of old.querySelectorAll("input, select, [role=slider]")) part.tabIndex = index;
      }
      this.active = row;
    }
    if (focus) row.focus();
  }

  key(event) {
    const row = event.target.closest("[role=row]"), one = row?.stage, { target, key } = event;
    if (!row || event.ctrlKey || event.metaKey || event.altKey) return;
    const onRow = target === row, onSlider = target === one?.slider;
    if (key === "Escape" && !onRow) {
      if (this.dragged) this.letGo(this.dragged);
      if ("drawn" in target.dataset) {
        target.value = target.dataset.drawn;
        target.removeAttribute("aria-invalid");
      }
      this.activate(row);
    } else if (key === "Enter" && onRow) {
      const field = one?.epoch ?? one?.rate ?? one?.policy;
      field?.focus();
      field?.select?.();
    } else if (key === "Enter" && target.matches("input[type=number]")) {
      target.blur();
      this.activate(row);
    } else if ((onRow || onSlider || target === one?.frozen) && (key === "ArrowUp" || key === "ArrowDown")) {
      const rows = this.rows(), next = rows[rows.indexOf(row) + (key === "ArrowUp" ? -1 : 1)];
      if (next) {
        this.activate(next);
        if (!onRow) (onSlider ? next.stage?.slider : next.stage?.frozen)?.focus();
      }
    } else if (onRow && (key === "Home" || key === "End")) this.activate(this.rows().at(key === "Home" ? 0 : -1));
    else if ((onSlider || (onRow && event.shiftKey && one?.slider)) && (key === "ArrowLeft" || key === "ArrowRight")) this.shift(one, key === "ArrowLeft" ? -1 : 1);
    else if (onSlider && (key === "Home" || key === "End")) this.shift(one, key === "Home" ? -this.epochs : this.epochs);
    else if (onRow && (key === "ArrowRight" || key === "ArrowLeft")) {
      const open = row.getAttribute("aria-expanded");
      if (open === String(key === "ArrowLeft")) (one?.fold ?? row.fold).click();
      else if (key === "ArrowLeft" && row.getAttribute("aria-level") > 1) this.activate(row.parentElement.previousElementSibling);
    } else if (onRow && key === " ") {
      if (one?.frozen) this.toggle(one);
    } else return;
    event.preventDefault();
  }

  anywhere(event) {
    event.stopPropagation(); // the notebook has its own meaning of z
    const typing = event.target.closest("textarea, input[type=number]");
    if (event.key.toLowerCase() !== "z" || typing || event.altKey) return;
    event.preventDefault();
    this.link.send({ do: event.shiftKey ? "redo" : "undo" });
  }

  // The plan as text

  show(kind) {
    const leaving = this.shown === kind;
    if (this.dirty) {
      if (!leaving) this.link.say("Read the text back first, or take its changes back.", true);
      return;
    }
    this.shown = leaving ? null : kind;
    this.drawText();
    if (this.shown) this.area.focus();
  }

  drawText() {
    const { draft } = this.state;
    if (draft && !this.dirty) this.shown = draft.kind;
    this.text.hidden = !this.shown;
    for (const [kind, button] of Object.entries(this.opening)) button.setAttribute("aria-expanded", String(kind === this.shown));
    if (!this.shown) return;
    const plan = this.state[this.shown], mine = draft?.kind === this.shown ? draft : null;
    if (!this.dirty) {
      const text = mine?.text ?? plan;
      if (this.area.value !== text) this.area.value = text;
      this.area.rows = Math.min(24, text.split("\n").length + 1);
    }
    this.area.setAttribute("aria-label", this.shown === "yaml" ? "The plan as YAML" : "The plan as a code cell");
    const refused = mine && this.area.value === mine.text;
    this.trouble.hidden = !refused;
    write(this.trouble, refused ? mine.trouble : "");
    this.area.setAttribute("aria-invalid", String(Boolean(refused)));
    this.reading.disabled = this.discarding.disabled = this.area.value === plan;
  }

  typed() {
    this.dirty = this.area.value !== this.state[this.shown];
    this.drawText();
  }

  async read() {
    if (await this.link.send({ do: this.shown, text: this.area.value })) this.dirty = false;
    this.drawText();
  }

  async discard() {
    this.dirty = false;
    await this.link.send({ do: "discard" });
    this.drawText();
  }

  areaKey(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      this.read();
    } else if (event.key === "Escape") this.opening[this.shown].focus();
  }
}

export default {
  render({ model, el }) {
    const tree = new Tree(model, el);
    return () => tree.close();
  },
};
