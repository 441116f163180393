// The training monitor in a browser: draws what the kernel has read in the run folder, and sends orders.

import { Link, copy, node, write } from "./panel.js";
import { CurvePlot, drawn, roomy } from "./curve_plot.js";

const SOON = 1500; // ms without an answer before the panel says that it waits
const HERE_EVERY = 10_000; // ms between two signs that somebody looks
const PANELS = [
  { name: "loss", curves: ["training loss", "held-out loss"] },
  { name: "accuracy", curves: ["training accuracy", "held-out accuracy"], most: 1 },
];
const COUNT = new Intl.NumberFormat("en");
const NONE = { colour: "#7d858e", dash: [] };

const number = (value) => {
  const size = Math.abs(value);
  return size === 0 ? "0" : size < 1e-3 ? value.toExponential(1) : size < 999.5 ? value.toPrecision(3) : COUNT.format(Math.round(value));
};
const floats = (view) => new Float32Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));

// The place in a rising array that is nearest to a value.
function nearest(xs, value) {
  let low = 0, high = xs.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (xs[middle] < value) low = middle;
    else high = middle;
  }
  return value - xs[low] < xs[high] - value ? low : high;
}

class Monitor {
  constructor(model, el) {
    this.model = model;
    const { name, stop } = model.get("fixed");
    this.link = new Link(model, {
      patience: SOON,
      excuse: `The kernel does not answer: a cell is running, and orders from here wait for its end; or it was restarted, and this cell has to be run again. In a terminal this acts at once: ${stop}`,
    });
    this.whole = new Map(); // arm -> curve -> [steps, values]
    this.cursor = null; // the epoch at which values are read; null: the newest
    this.seen = true; // the panel is within the window
    this.drawing = 0;
    this.build(el, name, stop);
    this.link.watch("state", (state) => this.drawState(state));
    this.link.watch("stages", (stages) => this.drawStages(stages));
    this.link.watch("machine", (machine) => this.drawMachine(machine));
    this.link.watch("orders", (orders) => this.drawOrders(orders));
    this.link.watch("log", (log) => this.drawLog(log));
    this.link.watch("curves", (curves) => this.unpack(curves));
    this.link.watch("latest", () => this.redraw());
    this.link.on("comm_live_update", () => this.link.send({ do: "here" }, true));
    this.sizes = new ResizeObserver(() => this.redraw());
    this.sizes.observe(this.plots);
    this.sight = new IntersectionObserver(([entry]) => {
      this.seen = entry.isIntersecting;
      this.redraw();
    });
    this.sight.observe(this.root);
    this.shown = () => {
      this.here();
      this.redraw();
    };
    document.addEventListener("visibilitychange", this.shown);
    this.signs = setInterval(() => this.state.ended || this.here(), HERE_EVERY);
    this.here();
  }

  close() {
    clearInterval(this.signs);
    cancelAnimationFrame(this.drawing);
    document.removeEventListener("visibilitychange", this.shown);
    this.sizes.disconnect();
    this.sight.disconnect();
    this.link.close();
  }

  // Parts that stay while their content changes

  build(el, name, stop) {
    const press = (words, act, more = {}) => node("button", { type: "button", "aria-describedby": this.about, ...more, on: { click: act } }, words);
    const field = (words, more) => node("input", { type: "number", "aria-label": words, ...more });
    this.about = `tl-tm-${this.link.me}`; // id of the line that says why buttons are off
    this.name = name;
    this.arm = node("span", { class: "tl-quiet" });
    this.badge = node("strong", { class: "tl-tm-state", role: "status" });
    this.bar = node("span");
    this.progress = node("div", { class: "tl-tm-bar", role: "progressbar", "aria-label": `Progress of ${name}`, "aria-valuemin": 0, "aria-valuemax": 100 }, this.bar);
    this.facts = ["share", "left", "speed", "rate", "message"].map((fact) => node("span", { class: fact === "message" ? "tl-quiet" : "tl-number" }));
    this.error = node("p", { class: "tl-said tl-bad", role: "alert" });
    this.result = node("ul", { class: "tl-tm-result" });

    this.holding = press("Pause", () => this.link.send({ do: this.state.state === "paused" ? "resume" : "pause" }));
    this.stopping = press("Stop, keep the best", () => this.link.send({ do: "stop" }));
    this.stage = node("select", { "aria-label": "Stages to thaw", on: { change: () => this.link.send({ do: "weigh", stages: this.chosen }) } });
    this.thawing = press("Thaw", () => this.thaw());
    this.factor = field("Factor on the learning rate", { min: 0, step: "any", value: 0.5, class: "tl-tm-small" });
    this.rating = press("Learning rate ×", () => this.give("rate", this.factor));
    this.more = field("Epochs more", { min: 1, step: 1, value: 5, class: "tl-tm-small" });
    this.adding = press("Add epochs", () => this.give("epochs", this.more));
    this.cost = node("span");
    this.sure = press("Thaw and compute again", () => this.decide());
    this.unsure = press("Leave it frozen", () => this.forget());
    this.weighed = node("div", { class: "tl-tm-weighed", role: "group", "aria-label": "What the thaw costs", hidden: true }, this.cost, node("span", { class: "tl-line" }, this.sure, this.unsure));
    this.why = node("p", { class: "tl-quiet", id: this.about });
    this.newest = node("ul", { class: "tl-tm-newest", "aria-live": "polite" });

    this.panels = PANELS.map((panel) => {
      const plot = new CurvePlot();
      return { ...panel, plot, el: node("div", { class: "tl-tm-panel" }, node("strong", {}, panel.name), plot.frame) };
    });
    this.plots = node("div", { class: "tl-tm-plots" }, this.panels.map(({ el: panel }) => panel));
    this.reader = node("div", { class: "tl-tm-reader", role: "slider", tabindex: 0, "aria-label": "Curves; arrow keys read values", "aria-valuemin": 0, on: {
      pointermove: (event) => this.hover(event), pointerleave: () => this.read(null), keydown: (event) => this.key(event), focus: () => this.describe(), blur: () => this.read(null) } }, this.plots);
    this.rows = node("ul", { class: "tl-tm-rows" });
    this.log = node("input", { type: "checkbox", on: { change: () => this.redraw() } });
    this.legend = node("p", { class: "tl-quiet tl-tm-legend" }, node("label", {}, this.log, " loss on a log scale"), node("span", {}, "thin: images it trains on · thick: held-out images, accuracy balanced · ◆ best epoch · dotted: stages thaw"));
    this.none = node("p", { class: "tl-quiet" }, "No step has been told yet.");

    this.machine = node("ul", { class: "tl-tm-machine", "aria-label": "Machine" });
    this.listed = node("ul");
    this.summary = node("summary");
    this.text = node("pre", { tabindex: 0, "aria-label": "Log of the worker" });
    this.command = node("code", {}, stop);
    this.root = node("section", { class: "tl-panel tl-tm", "aria-label": `Training ${name}`, "data-lm-suppress-shortcuts": "true", on: { keydown: (event) => event.stopPropagation() } },
      node("header", {}, node("div", { class: "tl-line tl-tm-head" }, node("h3", {}, name), node("span", { class: "tl-line" }, this.arm, this.badge)), node("p", { class: "tl-quiet" }, this.model.get("fixed").about)),
      node("div", {}, this.progress, node("p", { class: "tl-tm-facts" }, this.facts)), this.error, this.result,
      node("div", { class: "tl-tm-orders" },
        node("div", { class: "tl-line", role: "toolbar", "aria-label": "Orders" }, node("span", { class: "tl-line" }, this.holding, this.stopping), node("span", { class: "tl-line" }, this.thawing, this.stage), node("span", { class: "tl-line" }, this.rating, this.factor), node("span", { class: "tl-line" }, this.adding, this.more)),
        this.weighed, this.why, this.newest, this.link.bar, this.link.line),
      node("div", { class: "tl-tm-curves" }, this.reader, this.rows, this.none, this.legend), this.machine,
      node("details", {}, this.summary, this.listed,
        node("p", { class: "tl-line" }, node("span", { class: "tl-quiet" }, "When the kernel is busy, a terminal acts:"), this.command, press("Copy", () => copy(stop, this.link), { "aria-describedby": null }))),
      this.logged = node("details", {}, node("summary", {}, "Log of the worker"), this.text));
    el.replaceChildren(this.root);
  }

  // State

  get state() { return this.model.get("state"); }

  drawState(state) {
    const { arm, words, progress, left, speed, rate, message, error, ended, reasons } = state, share = `${Math.floor(100 * progress)} %`;
    write(this.arm, arm);
    write(this.badge, words);
    this.root.dataset.state = state.state;
    this.bar.style.inlineSize = `${100 * progress}%`;
    this.progress.setAttribute("aria-valuenow", Math.floor(100 * progress));
    this.progress.setAttribute("aria-valuetext", left ? `${share}, ${left}` : share);
    const said = [share, left, speed, rate == null || ended ? "" : `learning rate ${number(rate)}`, message === state.state ? "" : message];
    this.facts.forEach((fact, at) => write(fact, said[at]));
    this.error.hidden = !error;
    write(this.error, error);
    this.result.replaceChildren(...state.result.map((line) => node("li", {}, line)));
    write(this.holding, state.state === "paused" ? "Resume" : "Pause");
    const off = { pause: [this.holding], stop: [this.stopping], thaw: [this.thawing, this.stage, this.sure], rate: [this.rating, this.factor], epochs: [this.adding, this.more] };
    const why = new Map(); // reason -> orders it speaks of
    for (const [kind, parts] of Object.entries(off)) {
      for (const part of parts) part.disabled = Boolean(reasons[kind]);
      if (reasons[kind]) why.set(reasons[kind], [...why.get(reasons[kind]) ?? [], kind]);
    }
    this.why.hidden = !why.size;
    write(this.why, [...why].map(([reason, kinds]) => kinds.length === 5 ? reason : `${kinds.join(", ")}: ${reason}`).join(" "));
    if (ended) this.weighed.hidden = true;
    this.redraw();
  }

  // Signs of life

  async here() {
    if (this.asking || document.hidden) return;
    this.asking = true;
    await this.link.send({ do: "here" }, true);
    this.asking = false;
  }

  // Orders

  get chosen() { return this.stage.value ? JSON.parse(this.stage.value) : []; }

  drawStages({ frozen, weighed }) {
    const downwards = [...frozen].reverse(), choices = downwards.map((name) => [name]);
    if (frozen.length > 1) choices.push(downwards);
    const values = choices.map((stages) => JSON.stringify(stages));
    if ([...this.stage.options].map((one) => one.value).join() !== values.join()) {
      const before = this.stage.value;
      this.stage.replaceChildren(...choices.map((stages, at) => node("option", { value: values[at] }, stages.length > 1 ? `all ${stages.length} frozen stages` : stages[0])));
      if (values.includes(before)) this.stage.value = before;
    }
    const mine = weighed && JSON.stringify(weighed.stages) === this.stage.value;
    this.weighed.hidden = !mine;
    if (!mine) return;
    write(this.cost, weighed.text);
    this.sure.parentElement.hidden = !weighed.again || !this.deciding;
  }

  // What it costs is shown first; where something is computed again it needs a second yes.
  async thaw() {
    const stages = this.chosen;
    this.deciding = true;
    if (!stages.length || !(await this.link.send({ do: "weigh", stages }))) return;
    const { weighed } = this.model.get("stages");
    this.drawStages(this.model.get("stages"));
    if (weighed?.again) this.sure.focus();
    else this.link.send({ do: "thaw", stages });
  }

  async decide() {
    this.deciding = false;
    await this.link.send({ do: "thaw", stages: this.chosen });
    this.thawing.focus();
  }

  forget() {
    this.deciding = false;
    this.link.send({ do: "weigh", stages: [] });
    this.thawing.focus();
  }

  async give(kind, field) {
    const value = Number(field.value), wrong = field.value.trim() === "" || !Number.isFinite(value);
    const done = !wrong && (await this.link.send({ do: kind, value }));
    field.setAttribute("aria-invalid", String(!done));
    if (wrong) this.link.say(`${field.getAttribute("aria-label")}: give a number.`, true);
  }

  drawOrders({ all, count }) {
    const show = (list, lines) => {
      while (list.children.length > lines.length) list.lastChild.remove();
      lines.forEach((line, at) => list.children[at] ? write(list.children[at], line) : list.append(node("li", {}, line)));
    };
    show(this.newest, all.slice(0, 2));
    show(this.listed, all);
    write(this.summary, count ? `All orders (${count})` : "No order was given yet");
  }

  // Curves

  unpack(curves) {
    this.whole = new Map(Object.entries(curves).map(([arm, all]) => [arm, Object.fromEntries(Object.entries(all).map(([curve, pair]) => [curve, pair.map(floats)]))]));
    this.redraw();
  }

  redraw() {
    if (this.drawing || !this.seen || document.hidden) return;
    this.drawing = requestAnimationFrame(() => {
      this.drawing = 0;
      this.draw();
    });
  }

  // Every curve with its epochs instead of steps.
  get arms() {
    const latest = this.model.get("latest"), { looks } = this.model.get("fixed");
    return [...this.whole].filter(([arm]) => arm in latest).map(([arm, whole]) => {
      const { per_epoch: per, added, ...more } = latest[arm], curves = {};
      for (const [curve, [xs, ys]] of Object.entries(whole)) curves[curve] = { xs: [xs.map((x) => x / per), added[curve][0].map((x) => x / per)], ys: [ys, added[curve][1]] };
      return { arm, per, curves, look: looks[arm] ?? NONE, ...more };
    });
  }

  draw() {
    const arms = this.arms, { ended } = this.state;
    const last = Math.max(0, ...arms.flatMap(({ curves }) => Object.values(curves).flatMap(({ xs }) => xs.map((part) => part.at(-1) ?? 0))));
    this.none.hidden = last > 0;
    this.reader.hidden = this.legend.hidden = !last;
    this.drawn = arms;
    if (!last) return this.rows.replaceChildren();
    const planned = Math.max(...arms.map(({ planned: steps, per }) => steps / per));
    this.last = last;
    this.right = ended ? last : Math.min(Math.max(planned, last), roomy(last));
    for (const panel of this.panels) {
      const lines = arms.flatMap(({ curves, look }) => panel.curves.map((curve, thick) => ({ ...curves[curve], ...look, thick })).filter(({ xs }) => xs.some((part) => part.length)));
      panel.el.hidden = !lines.length;
      if (!lines.length) continue;
      const thaws = arms.flatMap(({ thaws: all, per, look }) => all.map(([step]) => ({ x: step / per, colour: look.colour })));
      const marks = arms.filter(({ best }) => best?.[panel.most ? 2 : 1] != null).map(({ best, per, look }) => ({ x: best[0] / per, y: best[panel.most ? 2 : 1], colour: look.colour }));
      panel.plot.draw({ width: panel.el.clientWidth, right: this.right, lines, thaws, marks, log: !panel.most && this.log.checked, most: panel.most });
    }
    this.drawCursor();
  }

  // Reading values

  // What an arm has at an epoch: curve -> value; the newest where no epoch is asked for.
  at(curves, epoch) {
    const found = {};
    for (const [curve, { xs, ys }] of Object.entries(curves)) {
      const part = xs[1].length && (epoch == null || !xs[0].length || epoch >= xs[1][0]) ? 1 : 0, all = xs[part];
      if (!all.length) continue;
      const place = epoch == null ? all.length - 1 : nearest(all, epoch);
      if (epoch == null || Math.abs(all[place] - epoch) <= Math.max(1, this.right / 50)) found[curve] = { x: all[place], y: ys[part][place] };
    }
    return found;
  }

  drawCursor() {
    const read = this.drawn.map((one) => ({ ...one, values: this.at(one.curves, this.cursor) }));
    for (const { plot, curves, el } of this.panels) {
      if (el.hidden) continue;
      const dots = this.cursor == null ? [] : read.flatMap(({ values, look }) => curves.filter((curve) => values[curve]).map((curve) => ({ ...values[curve], colour: look.colour })));
      plot.point(this.cursor, dots);
    }
    while (this.rows.children.length > read.length) this.rows.lastChild.remove();
    read.forEach((one, at) => {
      const row = this.rows.children[at] ?? this.rows.appendChild(this.buildRow());
      row.style.setProperty("--arm", one.look.colour);
      row.firstChild.firstChild.setAttribute("stroke-dasharray", one.look.dash.map((part) => part * 2).join(" "));
      write(row.children[1], one.arm);
      write(row.children[2], this.rowWords(one));
    });
  }

  buildRow() {
    const swatch = drawn("svg", { width: 22, height: 10, "aria-hidden": "true" });
    swatch.append(drawn("line", { x1: 1, x2: 21, y1: 5, y2: 5 }));
    return node("li", {}, swatch, node("strong"), node("span", { class: "tl-tm-values" }));
  }

  rowWords({ values, per, best, state, planned }) {
    const last = Math.max(0, ...Object.values(values).map(({ x }) => x)), reading = this.cursor != null;
    if (!last) return "–";
    const epoch = reading ? this.cursor : last, now = !reading && state === "started" ? ` of ${COUNT.format(Math.round(planned / per))}` : "";
    const parts = [`epoch ${COUNT.format(Math.max(1, Math.ceil(epoch - 1e-6)))}${now}, step ${COUNT.format(Math.round(epoch * per))}`];
    for (const { name, curves: [own, held] } of PANELS) {
      const both = [values[own] && number(values[own].y), values[held] && `${number(values[held].y)} held out`].filter(Boolean);
      if (both.length) parts.push(`${name} ${both.join(", ")}`);
    }
    if (best) parts.push(`◆ epoch ${Math.round(best[0] / per)}`);
    if (state === "stopped") parts.push("stopped");
    return parts.join(" · ");
  }

  hover(event) {
    const panel = this.panels.find(({ el }) => el.contains(event.target)) ?? this.panels[0];
    if (panel.el.hidden) return;
    const box = panel.plot.frame.getBoundingClientRect();
    this.read(panel.plot.epoch(event.clientX - box.left));
  }

  read(epoch) {
    if (epoch === this.cursor || !this.drawn?.length || !this.last) return;
    this.cursor = epoch;
    this.drawCursor();
  }

  // Epochs at which something was told, rising.
  get stops() {
    const every = this.drawn.flatMap(({ curves }) => Object.values(curves).flatMap(({ xs }) => xs.flatMap((part) => [...part])));
    return [...new Set(every)].sort((a, b) => a - b);
  }

  key(event) {
    if (event.target !== this.reader || !this.last) return;
    const stops = this.stops, end = stops.length - 1, now = this.cursor == null ? end + 1 : nearest(stops, this.cursor), far = Math.max(1, Math.round(stops.length / 10));
    const goes = { ArrowLeft: now - 1, ArrowRight: now + 1, PageDown: now - far, PageUp: now + far, Home: 0, End: end };
    if (event.key in goes) this.read(stops[Math.max(0, Math.min(end, goes[event.key]))]);
    else if (event.key === "Escape") this.read(null);
    else return;
    event.preventDefault();
    this.describe();
  }

  // What a screen reader says of the place at which values are read.
  describe() {
    if (!this.last) return;
    this.reader.setAttribute("aria-valuemax", this.right);
    this.reader.setAttribute("aria-valuenow", this.cursor ?? this.last);
    this.reader.setAttribute("aria-valuetext", [...this.rows.children].map((row) => row.textContent).join("; "));
  }

  // Machine and log

  drawMachine({ rows, none }) {
    const list = rows.map(({ name, facts, missing }) => node("li", {}, node("strong", {}, name),
      ...facts.map(({ words, history }) => node("span", { class: "tl-number" }, history.length > 1 ? sparkline(history) : "", words)),
      missing ? node("span", { class: "tl-quiet" }, missing) : ""));
    this.machine.replaceChildren(...list, ...(none ? [node("li", { class: "tl-quiet" }, none)] : []));
  }

  drawLog(log) {
    this.logged.hidden = !log;
    const atEnd = this.text.scrollTop + this.text.clientHeight > this.text.scrollHeight - 8;
    write(this.text, log);
    if (atEnd) this.text.scrollTop = this.text.scrollHeight;
  }
}

// Percentages of the last minute, the newest at the right.
function sparkline(history) {
  const made = drawn("svg", { class: "tl-tm-spark", width: 60, height: 14, "aria-hidden": "true" }), step = 60 / Math.max(1, history.length - 1);
  let path = "", pen = "M";
  history.forEach((value, at) => {
    if (value == null) pen = "M";
    else {
      path += `${pen}${(at * step).toFixed(1)} ${(13 - Math.min(100, value) * 0.12).toFixed(1)}`;
      pen = "L";
    }
  });
  made.append(drawn("path", { d: path }));
  return made;
}

export default {
  render({ model, el }) {
    const monitor = new Monitor(model, el);
    return () => monitor.close();
  },
};
