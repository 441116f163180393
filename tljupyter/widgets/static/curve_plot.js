// A plot of curves against epochs in SVG. Colours come from the style sheet, so a change of theme needs no drawing.

const SVG = "http://www.w3.org/2000/svg";
const EDGE = { left: 44, right: 10, top: 8, bottom: 20 }; // px around the curves

export function drawn(tag, attributes = {}) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

// As many children as there are values, each dressed by `dress`; those that are there already are used again.
function fit(group, tag, values, dress) {
  while (group.children.length > values.length) group.lastChild.remove();
  while (group.children.length < values.length) group.append(drawn(tag));
  values.forEach((value, at) => dress(group.children[at], value));
}

function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    const text = String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

const round = (number) => Math.round(number * 10) / 10;

// Round numbers in a range, about `wanted` of them.
export function ticks(low, high, wanted) {
  const raw = (high - low) / wanted, size = 10 ** Math.floor(Math.log10(raw)), step = size * [1, 2, 5, 10].find((one) => one * size >= raw);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9); at * step <= high + step * 1e-9; at += 1) found.push(Number((at * step).toPrecision(12)));
  return found;
}

// Powers of ten in a range, and between them where they would be fewer than three.
function logTicks(low, high) {
  const every = (parts) => {
    const found = [];
    for (let power = Math.floor(Math.log10(low)); 10 ** power <= high; power += 1) found.push(...parts.map((one) => Number((one * 10 ** power).toPrecision(6))));
    return found.filter((one) => one >= low && one <= high);
  };
  const [few, more, all] = [[1], [1, 3], [1, 2, 5]].map(every);
  const enough = few.length >= 3 ? few : more.length >= 3 ? more : all;
  return enough.filter((_, at) => at % Math.ceil(enough.length / 6) === 0);
}

// A round number that is not smaller, so that an axis grows in steps and not with every point.
export function roomy(number) {
  const size = 10 ** Math.floor(Math.log10(number));
  return size * [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((one) => one * size >= number * 0.999999);
}

const label = (number) => {
  const size = Math.abs(number);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? number.toExponential(0).replace("e+", "e") : String(number);
};

export class CurvePlot {
  constructor(height = 170) {
    this.height = height;
    const group = (name) => drawn("g", { class: `tl-tm-${name}` });
    [this.grid, this.names, this.epochs, this.thaws, this.lines, this.marks, this.dots] = ["grid", "names", "epochs", "thaws", "lines", "marks", "dots"].map(group);
    this.base = drawn("line", { class: "tl-tm-base" });
    this.cursor = drawn("line", { class: "tl-tm-cursor" });
    this.frame = drawn("svg", { height, "aria-hidden": "true", focusable: "false" });
    this.frame.append(this.grid, this.base, this.names, this.epochs, this.thaws, this.cursor, this.lines, this.marks, this.dots);
  }

  // lines: {xs, ys, colour, dash, thick}, xs and ys lists of arrays; thaws: {x, colour}; marks: {x, y, colour}.
  draw({ width, right, lines, thaws = [], marks = [], log = false, most = Infinity }) {
    this.width = Math.max(160, width);
    this.right = right;
    this.scale(lines, log, most);
    set(this.frame, { width: this.width, viewBox: `0 0 ${this.width} ${this.height}` });
    const y = this.height - EDGE.bottom, end = this.width - EDGE.right;
    fit(this.grid, "line", this.rungs, (line, value) => set(line, { x1: EDGE.left, x2: end, y1: round(this.y(value)), y2: round(this.y(value)) }));
    fit(this.names, "text", this.rungs, (text, value) => {
      set(text, { x: EDGE.left - 6, y: round(this.y(value)) + 4, "text-anchor": "end" });
      text.textContent = label(value);
    });
    set(this.base, { x1: EDGE.left, x2: end, y1: y, y2: y });
    const epochs = ticks(0, right, Math.max(2, Math.min(6, this.width / 90))).filter((one) => Number.isInteger(one));
    fit(this.epochs, "text", epochs, (text, value) => {
      set(text, { x: round(this.x(value)), y: y + 15, "text-anchor": value === 0 ? "start" : this.x(value) > end - 12 ? "end" : "middle" });
      text.textContent = value === 0 ? "epoch 0" : value.toLocaleString("en");
    });
    fit(this.thaws, "line", thaws, (line, { x, colour }) => set(line, { x1: round(this.x(x)), x2: round(this.x(x)), y1: EDGE.top, y2: y, style: `--arm:${colour}` }));
    fit(this.lines, "path", lines, (path, line) => set(path, { d: this.path(line), class: line.thick ? "tl-tm-thick" : "tl-tm-thin", style: `--arm:${line.colour}`, "stroke-dasharray": line.dash.map((part) => part * (line.thick ? 2.2 : 1.2)).join(" ") }));
    fit(this.marks, "path", marks, (path, mark) => set(path, { d: `M${round(this.x(mark.x))} ${round(this.y(mark.y))}m0 -6l6 6l-6 6l-6 -6z`, style: `--arm:${mark.colour}` }));
  }

  // How values become pixels.
  scale(lines, log, most) {
    let low = Infinity, high = -Infinity, least = Infinity;
    for (const { ys } of lines) {
      for (const part of ys) {
        for (const value of part) {
          if (value < low) low = value;
          if (value > high) high = value;
          if (value > 0 && value < least) least = value;
        }
      }
    }
    if (low > high) [low, high] = [0, 1];
    this.log = log && least < high;
    if (this.log) {
      this.low = Math.log10(least) - 0.05;
      this.high = Math.log10(high) + 0.05;
      this.rungs = logTicks(10 ** this.low, 10 ** this.high);
    } else {
      const room = high > low ? 0.06 * (high - low) : Math.max(Math.abs(high) * 0.1, 0.1);
      this.low = low >= 0 ? Math.max(0, low - room) : low - room;
      this.high = Math.min(most, high + room);
      this.rungs = ticks(this.low, this.high, 4);
    }
  }

  x(epoch) { return EDGE.left + epoch / this.right * (this.width - EDGE.left - EDGE.right); }

  y(value) {
    const at = this.log ? Math.log10(Math.max(value, 10 ** this.low)) : value;
    return this.height - EDGE.bottom - (at - this.low) / (this.high - this.low) * (this.height - EDGE.top - EDGE.bottom);
  }

  // The epoch at a pixel of the plot.
  epoch(x) { return Math.max(0, Math.min(this.right, (x - EDGE.left) / (this.width - EDGE.left - EDGE.right) * this.right)); }

  path({ xs, ys }) {
    const parts = [];
    xs.forEach((part, which) => {
      for (let at = 0; at < part.length; at += 1) parts.push(`${round(this.x(part[at]))} ${round(this.y(ys[which][at]))}`);
    });
    return parts.length ? `M${parts.join("L")}${parts.length === 1 ? "h0" : ""}` : "";
  }

  // A line where somebody reads, and dots on what is read there: {x, y, colour}.
  point(epoch, dots) {
    this.cursor.style.display = epoch == null ? "none" : "";
    if (epoch != null) set(this.cursor, { x1: round(this.x(epoch)), x2: round(this.x(epoch)), y1: EDGE.top, y2: this.height - EDGE.bottom });
    fit(this.dots, "circle", dots, (dot, { x, y, colour }) => set(dot, { cx: round(this.x(x)), cy: round(this.y(y)), r: 3.5, style: `--arm:${colour}` }));
  }
}
