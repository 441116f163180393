// The result of a run in a browser: draws what its parts say, opens cells of the confusion matrix, has a report made.

import { Link, copy, node, write } from "./panel.js";
import { Pictures } from "./pictures.js";

const MOVES = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

class Result {
  constructor(model, el) {
    this.model = model;
    this.link = new Link(model);
    this.pictures = new Pictures(this.link, () => [...this.root.querySelectorAll("[data-item]")].map((frame) => [Number(frame.dataset.item), frame]));
    this.at = [0, 0]; // the cell that the tab key reaches
    this.build(el);
    this.link.watch("about", (about) => this.drawAbout(about));
    this.link.watch("choice", (choice) => this.drawChoice(choice));
    this.link.watch("verdict", (verdict) => this.drawVerdict(verdict));
    this.link.watch("arms", (arms) => this.drawArms(arms));
    this.link.watch("matrix", (matrix) => this.drawMatrix(matrix));
    this.link.watch("cases", (cases) => this.drawCases(cases));
    this.link.watch("mistakes", (mistakes) => this.drawMistakes(mistakes));
    this.link.watch("runs", (runs) => this.drawRuns(runs));
    this.link.watch("report", (report) => this.drawReport(report));
    this.link.send({ do: "opened" }, true);
  }

  close() {
    this.link.close();
    this.pictures.close();
  }

  // What stays while its content changes

  build(el) {
    const button = (words, act, more = {}) => node("button", { type: "button", on: { click: act }, ...more }, words);
    const select = (label, act) => node("select", { "aria-label": label, on: { change: act } });
    this.title = node("h3");
    this.what = node("p", { class: "tl-quiet" });
    this.state = node("strong", { class: "tl-rs-state" });
    this.more = node("ul", { class: "tl-quiet" });
    const refresh = button("Refresh", () => this.link.send({ do: "refresh" }), { title: "Read the runs again" });
    this.verdict = node("section", { class: "tl-rs-verdict", "aria-label": "Verdict" });

    this.metric = select("Metric", () => this.link.send({ do: "choose", metric: this.metric.value }, true));
    this.budget = select("Labels a class", () => this.link.send({ do: "choose", labels_per_class: Number(this.budget.value) }, true));
    this.arms = node("div", { class: "tl-rs-arms", role: "table", "aria-label": "Every arm" });
    this.armsPart = node("section", { "aria-label": "Every arm" },
      node("div", { class: "tl-line" }, node("h4", {}, "Every arm"), node("label", {}, "by ", this.metric), node("label", {}, "at labels a class ", this.budget)),
      this.arms,
      node("p", { class: "tl-quiet" }, "In bold: declared before anything ran. All else is exploratory."));

    this.arm = select("Arm", () => this.link.send({ do: "choose", arm: this.arm.value }, true));
    this.matrix = node("div", { class: "tl-rs-matrix", role: "grid", "aria-label": "Confusion matrix: true class by predicted class", on: { keydown: (event) => this.key(event) } });
    this.how = node("p", { class: "tl-quiet" });
    this.opened = node("h4", { tabindex: -1 });
    this.cases = node("ul", { class: "tl-rs-shots" });
    this.moreCases = button("", () => this.link.send({ do: "more" }, true));
    this.cell = node("section", { class: "tl-rs-cell", "aria-label": "Images of a cell", on: { keydown: (event) => event.key === "Escape" && this.shut() } },
      node("div", { class: "tl-line" }, this.opened, button("Close", () => this.shut())), this.cases, this.moreCases);
    this.noImages = node("p", { class: "tl-rs-note" });
    this.mistakes = node("ul", { class: "tl-rs-shots" });
    this.worst = node("h4");
    this.failures = node("section", { "aria-label": "Where does it fail?" },
      node("div", { class: "tl-line" }, node("h4", {}, "What is taken for what"), node("label", {}, "by ", this.arm)),
      this.how, this.matrix, this.cell, this.noImages, this.worst, this.mistakes);

    this.shelf = select("A run to compare with", () => {
      if (this.shelf.value) this.link.send({ do: "compare", run: this.shelf.value }, true);
    });
    this.runs = node("div", { class: "tl-rs-runs", role: "table", "aria-label": "Runs" });
    this.runsPart = node("section", { "aria-label": "Other runs" }, node("div", { class: "tl-line" }, node("h4", {}, "Compared with other runs"), this.shelf), this.runs);

    this.making = button("", () => this.link.send({ do: this.model.get("report").going ? "stop report" : "report" }, true));
    this.progress = node("progress", { max: 1, "aria-label": "Progress of the report" });
    this.told = node("p", { class: "tl-rs-told", role: "status" });
    this.page = node("p", { class: "tl-rs-path" });
    this.same = node("p");
    this.command = node("code");
    this.notes = node("ul");
    this.noted = node("details", {}, node("summary", {}, "Orders and notes"), this.notes);
    this.reportPart = node("section", { "aria-label": "Report" },
      node("div", { class: "tl-line" }, this.making, this.progress, this.told), this.page, this.same,
      node("details", {}, node("summary", {}, "The command that makes it"), node("pre", {}, this.command),
        button("Copy", () => copy(this.command.textContent, this.link))));

    this.root = node("section", { class: "tl-panel tl-rs", "data-lm-suppress-shortcuts": "true", on: { keydown: (event) => event.stopPropagation() } },
      node("header", {}, this.title, this.what, node("div", { class: "tl-line" }, this.state, refresh), this.more),
      this.verdict, this.armsPart, this.failures, this.runsPart, this.reportPart, this.noted, this.link.bar, this.link.line);
    el.append(this.root);
  }

  // Drawing

  drawAbout({ name, what, state, words, more, notes, command, no_images }) {
    this.root.setAttribute("aria-label", `Result of ${name}`);
    this.root.dataset.state = state;
    write(this.title, `Result of ${name}`);
    write(this.what, what);
    write(this.state, words);
    this.more.replaceChildren(...more.map((line) => node("li", {}, line)));
    this.notes.replaceChildren(...notes.map((line) => node("li", {}, line)));
    this.noted.hidden = notes.length === 0;
    write(this.command, command);
    write(this.noImages, no_images && `Images cannot be shown. ${no_images}`);
    this.noImages.hidden = !no_images;
  }

  drawChoice({ arms, arm, budgets, labels_per_class, metrics, metric }) {
    const fill = (field, values, words, chosen) => {
      field.replaceChildren(...values.map((value, at) => node("option", { value }, words[at])));
      field.value = chosen;
    };
    fill(this.arm, arms, arms, arm);
    fill(this.budget, budgets, budgets, labels_per_class);
    fill(this.metric, metrics.map(([name]) => name), metrics.map(([, words]) => words), metric);
    this.budget.parentElement.hidden = budgets.length < 2;
    this.armsPart.hidden = this.failures.hidden = arms.length === 0;
    write(this.worst, `The worst mistakes of ${arm}, the surest first`);
  }

  drawVerdict(verdict) {
    this.verdict.hidden = !verdict;
    if (!verdict) return;
    const { lines, gain, plain } = verdict;
    const list = lines.map(({ verdict: kind, shape, words, needed }) => node("li", { "data-verdict": kind },
      node("span", { class: "tl-rs-shape" }, shape), node("span", {}, words), needed.map((note) => node("span", { class: "tl-quiet tl-rs-needed" }, note))));
    const number = gain
      ? node("div", { class: "tl-rs-gain" }, node("strong", { class: "tl-number" }, gain.points),
        node("div", {}, node("p", {}, gain.where), node("p", {}, node("span", { class: "tl-number" }, gain.interval), " ", node("span", { class: "tl-quiet" }, gain.who))))
      : node("p", {}, "The run was stopped before it reached the comparison that was declared.");
    this.verdict.replaceChildren(node("ul", {}, list), number, node("p", { class: "tl-quiet" }, plain));
  }

  drawArms({ baseline, rows }) {
    const head = node("div", { role: "row", class: "tl-rs-head" }, ["arm", "value, 95 % interval", "", `gain over ${baseline}`, "verdict"].map((words) => node("span", { role: "columnheader" }, words)));
    const body = rows.map((row) => {
      const [low, mean, high] = row.bar, bar = node("span", { class: "tl-rs-bar" }, node("i"), node("b"));
      bar.style.setProperty("--low", `${low}%`);
      bar.style.setProperty("--wide", `${high - low}%`);
      bar.style.setProperty("--mean", `${mean}%`);
      bar.style.setProperty("--arm", row.colour);
      return node("div", { role: "row", class: row.declared && "tl-rs-declared" },
        node("span", { role: "rowheader" }, row.arm),
        node("span", { role: "cell", class: "tl-number" }, `${row.value} `, node("span", { class: "tl-quiet" }, row.interval)),
        node("span", { role: "cell", "aria-hidden": "true" }, bar),
        node("span", { role: "cell", class: "tl-number", "data-label": "gain" }, row.gain && [`${row.gain} `, node("span", { class: "tl-quiet" }, row.gain_interval)]),
        node("span", { role: "cell" }, row.verdict));
    });
    this.arms.replaceChildren(head, ...body);
  }

  drawMatrix(matrix) {
    if (!matrix) return this.matrix.replaceChildren();
    const { classes, counts, totals, shares, draws, open } = matrix, active = this.matrix.contains(this.root.getRootNode().activeElement);
    write(this.how, `A row is a true class${draws > 1 ? `; counts are the mean over ${draws} draws` : ""}. A click on a cell opens its images.`);
    this.at = this.at.map((code) => Math.min(code, classes.length - 1));
    this.matrix.style.setProperty("--classes", classes.length);
    const head = node("div", { role: "row" }, node("span", { role: "columnheader", class: "tl-quiet" }, "true ＼ predicted"),
      classes.map((name) => node("span", { role: "columnheader" }, name)));
    const body = classes.map((name, i) => node("div", { role: "row" }, node("span", { role: "rowheader" }, name),
      classes.map((predicted, j) => {
        const percent = `${Math.round(100 * shares[i][j])} %`, pressed = open?.[0] === i && open?.[1] === j;
        const cell = node("button", {
          type: "button", class: i === j ? "tl-rs-right" : "tl-rs-wrong", "aria-pressed": String(pressed), "data-cell": `${i} ${j}`,
          "aria-label": `${name}, predicted ${predicted}: ${counts[i][j]} of ${totals[i]}, ${percent}`,
          on: { click: () => this.open(i, j), focus: () => this.reach(i, j) },
        }, node("strong", {}, percent), node("span", {}, `${counts[i][j]} of ${totals[i]}`));
        cell.style.setProperty("--share", `${Math.round(36 * shares[i][j])}%`);
        return node("span", { role: "gridcell" }, cell);
      })));
    this.matrix.replaceChildren(head, ...body);
    this.reach(...this.at);
    if (active) this.cellAt(...this.at).focus();
  }

  cellAt(i, j) { return this.matrix.querySelector(`[data-cell="${i} ${j}"]`); }

  reach(i, j) {
    this.at = [i, j];
    for (const cell of this.matrix.querySelectorAll("button")) cell.tabIndex = cell === this.cellAt(i, j) ? 0 : -1;
  }

  drawCases(cases) {
    this.cell.hidden = !cases;
    if (!cases) return this.cases.replaceChildren();
    write(this.opened, cases.title);
    this.cases.replaceChildren(...cases.rows.map((row) => this.shot(row)));
    this.moreCases.hidden = !cases.more;
    write(this.moreCases, `Show more: ${cases.more} left`);
    this.pictures.show();
  }

  drawMistakes(mistakes) {
    this.mistakes.replaceChildren(...mistakes.map((row) => this.shot(row)));
    if (!mistakes.length) this.mistakes.append(node("li", { class: "tl-rs-none" }, "No test case was wrong in most draws."));
    this.pictures.show();
  }

  shot({ item, name, words, truth = "" }) {
    const frame = item == null ? "" : node("span", { class: "tl-shot", "data-item": item, role: "img", "aria-label": `${name}: ${words} ${truth}` });
    return node("li", { title: name }, frame, node("span", { class: "tl-rs-caption" }, node("strong", {}, words), truth && node("span", {}, truth), node("span", { class: "tl-quiet" }, name)));
  }

  drawRuns({ metric, rows, shelf }) {
    this.shelf.replaceChildren(node("option", { value: "" }, shelf.length ? "Choose a run …" : "No other run has results"), ...shelf.map((name) => node("option", { value: name }, name)));
    this.shelf.disabled = shelf.length === 0;
    this.runs.hidden = rows.length === 0;
    if (!rows.length) return this.runs.replaceChildren();
    const head = node("div", { role: "row", class: "tl-rs-head" }, ["run", "what differs", metric, "its own verdict", "against the first", ""].map((words) => node("span", { role: "columnheader" }, words)));
    this.runs.replaceChildren(head, ...rows.map((row, at) => node("div", { role: "row" },
      node("span", { role: "rowheader" }, row.name),
      node("span", { role: "cell" }, at ? row.differs.length ? node("ul", {}, row.differs.map((one) => node("li", {}, one))) : "no parameter differs" : ""),
      node("span", { role: "cell", class: "tl-number", "data-label": metric }, `${row.value} `, node("span", { class: "tl-quiet" }, row.interval)),
      node("span", { role: "cell", "data-label": "its own verdict" }, row.verdict || row.state),
      node("span", { role: "cell", "data-label": row.reason ? null : "against the first" }, at ? this.against(row) : ""),
      node("span", { role: "cell" }, at ? node("button", { type: "button", "aria-label": `Leave out ${row.name}`, on: { click: () => this.link.send({ do: "leave out", run: row.name }, true) } }, "✕") : ""))));
  }

  against({ reason, gain, between, caution, needed }) {
    if (reason) return node("strong", { class: "tl-rs-note" }, `✕ not comparable: ${reason}`);
    const parts = [gain && node("span", { class: "tl-number" }, `${gain} `), between, ...[needed, caution].filter(Boolean).map((words) => node("span", { class: "tl-quiet tl-rs-needed" }, words))];
    return parts.some(Boolean) ? node("span", {}, parts.filter(Boolean)) : "its declared arm was not reached";
  }

  drawReport({ reason, going, progress = 0, words, page, beside, same = "" }) {
    write(this.making, going ? "Stop making it" : page ? "Make the report again" : "Make this a report");
    this.making.disabled = !going && Boolean(reason);
    this.progress.hidden = !going;
    this.progress.value = progress;
    write(this.told, going || !page ? words || reason : words);
    this.page.hidden = !page;
    if (this.page.dataset.page !== page) this.link_to(page, beside);
    write(this.same, same);
  }

  // Where the page lies, as a link where the lab serves it.
  async link_to(page, beside) {
    this.page.dataset.page = page;
    this.page.replaceChildren(page);
    const manager = this.model.widget_manager;
    if (!page || !beside || !manager?.resolveUrl) return;
    const address = await manager.resolveUrl(beside);
    if (this.page.dataset.page === page) this.page.replaceChildren(node("a", { href: address, target: "_blank", rel: "noopener" }, page));
  }

  // Acting

  open(i, j) {
    this.reach(i, j);
    const { open } = this.model.get("matrix");
    if (open?.[0] === i && open?.[1] === j) this.link.send({ do: "close" }, true);
    else this.link.send({ do: "open", true: i, predicted: j }, true);
  }

  async shut() {
    await this.link.send({ do: "close" }, true);
    this.cellAt(...this.at)?.focus();
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !(event.key in MOVES)) return;
    const [down, right] = MOVES[event.key], last = this.model.get("matrix").classes.length - 1;
    const bounded = (code) => Math.max(0, Math.min(last, code));
    event.preventDefault();
    this.cellAt(bounded(this.at[0] + down), bounded(this.at[1] + right)).focus();
  }
}

export default {
  render({ model, el }) {
    const result = new Result(model, el);
    return () => result.close();
  },
};
