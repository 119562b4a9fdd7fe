// A line plot of errors against epochs: axes, lines, bands, and what is under the pointer.

const MARGIN = { left: 46, right: 14, top: 10, bottom: 38 };

/** Round numbers from `low` to `high`, about `count` of them. */
function ticks(low, high, count) {
  const rough = (high - low) / Math.max(1, count) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) found.push(Number(at.toPrecision(12)));
  return found;
}

class Plot {
  /** `height` in CSS pixels; the width is that of the place it is put in. */
  constructor(name, height) {
    this.height = height;
    this.series = [];
    this.from = 0;
    this.label = "";
    this.svg = shape("svg", { tabindex: 0, role: "img", "aria-label": `${name}; arrow keys read the values of an epoch` });
    this.tip = element("div", { class: "tip", hidden: true });
    this.spoken = element("p", { class: "unseen", "aria-live": "polite" });
    this.box = element("div", { class: "plot" }, this.svg, this.tip, this.spoken);
    this.svg.addEventListener("pointermove", (event) => this.point(event));
    this.svg.addEventListener("pointerdown", (event) => this.point(event));
    this.svg.addEventListener("pointerleave", () => this.read(null));
    this.svg.addEventListener("blur", () => this.read(null));
    this.svg.addEventListener("keydown", (event) => this.key(event));
    new ResizeObserver(() => this.draw()).observe(this.box);
  }

  /**
   * Show these lines: `{name, colour, mark, dashed, epochs, values, low, high}`.
   * @param from part of the epochs that is left out, 0 to 1
   */
  show(series, label, from) {
    this.series = series;
    this.label = label;
    this.from = from;
    this.draw();
  }

  draw() {
    const width = this.box.clientWidth;
    if (width === 0) return;
    this.width = width;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${this.height}`);
    this.svg.setAttribute("height", this.height);
    this.svg.replaceChildren();
    this.read(null);
    const last = Math.max(1, ...this.series.map((each) => each.epochs.at(-1)));
    this.last = last;
    const first = Math.min(last, ...this.series.map((each) => each.epochs[0]));
    const left = first + this.from * (last - first);
    this.epochs = [...new Set(this.series.flatMap((each) => each.epochs))].filter((epoch) => epoch >= left).sort((a, b) => a - b);
    const seen = this.series.flatMap((each) =>
      each.epochs.flatMap((epoch, at) => (epoch < left ? [] : [each.values[at], each.low?.[at], each.high?.[at]]))
    ).filter((value) => typeof value === "number");
    if (seen.length === 0) {
      this.svg.append(shape("text", { x: width / 2, y: this.height / 2, class: "empty" }, "nothing to draw yet"));
      return;
    }
    let low = seen.reduce((a, b) => Math.min(a, b)), high = seen.reduce((a, b) => Math.max(a, b));
    if (low === high) [low, high] = [low - 1, high + 1];
    const room = (high - low) * 0.04;
    [low, high] = [low >= 0 ? Math.max(0, low - room) : low - room, high + room];
    const inner = width - MARGIN.left - MARGIN.right, tall = this.height - MARGIN.top - MARGIN.bottom;
    const right = Math.max(last, left + 1);
    this.x = (epoch) => MARGIN.left + ((epoch - left) / (right - left)) * inner;
    this.y = (value) => MARGIN.top + (1 - (value - low) / (high - low)) * tall;
    this.axes(low, high, left, right, inner, tall);
    const clip = shape("svg", { x: MARGIN.left, y: 0, width: inner + MARGIN.right, height: this.height - MARGIN.bottom });
    clip.setAttribute("viewBox", `${MARGIN.left} 0 ${inner + MARGIN.right} ${this.height - MARGIN.bottom}`);
    this.svg.append(clip);
    for (const each of this.series) if (each.low) clip.append(this.band(each));
    for (const each of this.series) clip.append(this.line(each));
    this.pointer = shape("g", { class: "pointer" });
    this.svg.append(this.pointer);
  }

  axes(low, high, left, right, inner, tall) {
    const bottom = MARGIN.top + tall;
    const group = shape("g", { class: "axes" });
    for (const value of ticks(low, high, Math.max(3, tall / 45))) {
      group.append(shape("line", { x1: MARGIN.left, x2: MARGIN.left + inner, y1: this.y(value), y2: this.y(value) }));
      group.append(shape("text", { x: MARGIN.left - 8, y: this.y(value), class: "left" }, String(value)));
    }
    for (const epoch of ticks(left, right, Math.max(2, inner / 110)).filter(Number.isInteger)) {
      group.append(shape("text", { x: this.x(epoch), y: bottom + 16, class: "below" }, String(epoch)));
      group.append(shape("line", { x1: this.x(epoch), x2: this.x(epoch), y1: bottom, y2: bottom + 4, class: "tick" }));
    }
    group.append(shape("line", { x1: MARGIN.left, x2: MARGIN.left + inner, y1: bottom, y2: bottom, class: "base" }));
    group.append(shape("text", { x: MARGIN.left + inner, y: bottom + 33, class: "title end" }, "epoch"));
    group.append(shape("text", { x: MARGIN.left, y: bottom + 33, class: "title" }, this.label));
    this.svg.append(group);
  }

  band(each) {
    const there = each.epochs.map((epoch, at) => [this.x(epoch), each.low[at], each.high[at]]).filter((point) => point[1] !== null);
    const points = [...there.map(([x, , up]) => [x, this.y(up)]), ...there.reverse().map(([x, down]) => [x, this.y(down)])];
    return shape("path", { class: `band c${each.colour}`, d: `M${points.map((point) => point.map(short).join(",")).join("L")}Z` });
  }

  line(each) {
    const points = each.epochs.map((epoch, at) => [epoch, each.values[at]]).filter(([, value]) => value !== null);
    const drawn = points.map(([epoch, value]) => [this.x(epoch), this.y(value)]);
    const group = shape("g", { class: `line c${each.colour}${each.dashed ? " dashed" : ""}`, "data-name": each.name });
    group.append(shape("path", { d: `M${drawn.map((point) => point.map(short).join(",")).join("L")}` }));
    const every = Math.max(1, Math.round(drawn.length / 8));
    drawn.forEach(([x, y], at) => {
      if (drawn.length === 1 || (each.mark > 0 && at % every === 0)) group.append(mark(each.mark, x, y));
    });
    const [x, y] = drawn.at(-1) ?? [];
    if (points.at(-1)?.[0] < this.last) group.append(shape("circle", { class: "end", cx: short(x), cy: short(y), r: 3.5 })); // it stopped here
    return group;
  }

  point(event) {
    if (!this.epochs?.length) return;
    const box = this.svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * this.width;
    const near = this.epochs.reduce((best, epoch) => (Math.abs(this.x(epoch) - at) < Math.abs(this.x(best) - at) ? epoch : best));
    this.read(near);
  }

  key(event) {
    const moves = { ArrowLeft: -1, ArrowRight: 1, PageUp: -10, PageDown: 10, Home: -Infinity, End: Infinity };
    if (!(event.key in moves) || !this.epochs?.length) return;
    event.preventDefault();
    const now = this.epoch === null ? -1 : this.epochs.indexOf(this.epoch);
    const next = Math.min(this.epochs.length - 1, Math.max(0, now + moves[event.key]));
    this.read(this.epochs[next]);
    this.spoken.textContent = this.tip.textContent;
  }

  /** Show the values of an epoch; null: of none. */
  read(epoch) {
    this.epoch = epoch;
    this.tip.hidden = true;
    this.pointer?.replaceChildren();
    if (epoch === null) return;
    const found = new Map();
    const x = this.x(epoch);
    this.pointer.append(shape("line", { x1: x, x2: x, y1: MARGIN.top, y2: this.height - MARGIN.bottom }));
    for (const each of this.series) {
      const value = each.values[each.epochs.indexOf(epoch)];
      if (typeof value !== "number") continue;
      this.pointer.append(shape("circle", { class: `c${each.colour}`, cx: x, cy: this.y(value), r: 3.5 }));
      const line = found.get(each.name) ?? { colour: each.colour, name: each.name };
      line[each.dashed ? "train" : "test"] = value;
      found.set(each.name, line);
    }
    if (found.size === 0) return;
    const lines = [...found.values()].sort((a, b) => (a.test ?? a.train) - (b.test ?? b.train));
    const figure = (value) => element("td", {}, value === undefined ? "" : percent(value));
    const has = (split) => lines.some((line) => line[split] !== undefined);
    const splits = ["test", "train"].filter(has);
    this.tip.replaceChildren(
      element("table", {},
        element("thead", {}, element("tr", {},
          element("th", {}, `epoch ${epoch}`), splits.map((split) => element("th", {}, split)))),
        element("tbody", {}, lines.slice(0, 14).map((line) =>
          element("tr", {},
            element("th", {}, element("span", { class: `swatch c${line.colour}` }), line.name),
            splits.map((split) => figure(line[split])))))),
      lines.length > 14 ? `and ${lines.length - 14} more` : ""
    );
    this.tip.hidden = false;
    const scale = this.svg.getBoundingClientRect().width / this.width;
    const wide = this.tip.offsetWidth, fits = x * scale + 14 + wide < this.box.clientWidth;
    this.tip.style.left = `${Math.max(0, fits ? x * scale + 14 : x * scale - wide - 14)}px`;
    this.tip.style.top = `${MARGIN.top}px`;
  }
}

function short(value) {
  return Number(value.toFixed(1));
}

/** Beyond eight lines colours repeat, and marks tell the lines apart. */
function mark(kind, x, y) {
  const paths = ["M-3,0a3,3 0 1,0 6,0a3,3 0 1,0 -6,0", "M-3,-3h6v6h-6Z", "M0,-4l4,7h-8Z", "M0,-4l4,4l-4,4l-4,-4Z", "M-4,-3h8l-4,7Z"];
  return shape("path", { class: "mark", d: paths[kind % paths.length], transform: `translate(${short(x)},${short(y)})` });
}
