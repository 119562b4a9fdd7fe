// A plot with its controls: which curves, which metric, which part of the epochs.

const COLOURS = 8;

/** What can be drawn of these entries: a title, and the metrics of the dashed and of the solid line. */
function choices(entries, ofClassifiers) {
  const all = [{ title: "top-1 error (%)", train: "train/top1_error", test: "test/top1_error", own: true }];
  for (const name of ofClassifiers ? [] : ["c2", "c3", "c4"]) {
    all.push({ title: `top-1 error of ${name} (%)`, train: `train/top1_error_${name}`, test: `test/top1_error_${name}` });
  }
  all.push({ title: "top-5 error (%)", test: "test/top5_error" }, { title: "loss", train: "train/loss", test: "test/loss" });
  return all.filter((choice) => entries.some((entry) => curveOf(entry, choice, "test") || curveOf(entry, choice, "train")));
}

/** `[grid, values, low, high]` of an entry, whose classifier may be another than the network's own. */
function curveOf(entry, choice, split) {
  return choice[split] && entry.curves[choice[split] + (choice.own ? entry.classifier : "")];
}

class Chart {
  /**
   * @param entries `{name, curves, classifier}`: what can be shown
   * @param shown places of those that are shown at first
   */
  constructor(name, entries, shown, { height, ofClassifiers }) {
    this.entries = entries;
    this.slots = new Map(); // entry -> which colour and mark it has
    this.plot = new Plot(name, height);
    this.choices = choices(entries, ofClassifiers);
    const curves = entries.flatMap((entry) => Object.values(entry.curves));
    this.metric = element("select", { onchange: () => this.draw() }, this.choices.map((choice, at) => element("option", { value: at }, choice.title)));
    this.part = element("select", { onchange: () => this.draw() },
      element("option", { value: 0 }, "all epochs"),
      element("option", { value: 0.5 }, "second half"),
      element("option", { value: 0.75 }, "last quarter"));
    this.training = element("input", { type: "checkbox", checked: true, onchange: () => this.draw() });
    this.range = element("input", { type: "checkbox", checked: true, onchange: () => this.draw() });
    const hasRange = curves.some((curve) => curve.length > 2);
    this.keys = entries.map((entry, at) => this.key(entry, at));
    this.box = element("div", { class: "chart" },
      element("div", { class: "controls" },
        element("label", {}, "Show ", this.metric),
        element("label", {}, "of ", this.part),
        element("label", { class: "switch" }, this.training, "training (dashed)"),
        hasRange ? element("label", { class: "switch" }, this.range, "range over seeds") : null),
      this.plot.box,
      this.legend());
    for (const at of shown) this.toggle(at, false);
    this.draw();
  }

  key(entry, at) {
    const swatch = shape("svg", { class: "swatch", viewBox: "-11 -6 22 12", "aria-hidden": "true" });
    const button = element("button", { type: "button", class: "key", "aria-pressed": "false", onclick: () => this.toggle(at) }, swatch, entry.name);
    for (const [event, name] of [["pointerenter", entry.name], ["focus", entry.name], ["pointerleave", null], ["blur", null]]) {
      button.addEventListener(event, () => this.point(name));
    }
    if (Object.keys(entry.curves).length === 0) {
      button.disabled = true;
      button.title = "no epoch has been recorded";
    }
    return button;
  }

  legend() {
    const several = this.keys.length > 1;
    const filter = element("input", {
      type: "search", placeholder: "find", "aria-label": "Find curves",
      oninput: () => this.keys.forEach((key) => { key.hidden = !key.textContent.toLowerCase().includes(filter.value.toLowerCase()); }),
    });
    const all = (on) => () => {
      this.keys.forEach((key, at) => {
        const isOn = this.slots.has(this.entries[at]);
        if (!key.hidden && !key.disabled && isOn !== on && (!on || this.slots.size < 40)) this.toggle(at, false);
      });
      this.draw();
    };
    return element("div", { class: "legend", role: "group", "aria-label": "Curves" },
      this.keys,
      several ? element("span", { class: "tools" },
        this.keys.length > 12 ? filter : null,
        element("button", { type: "button", class: "quiet", onclick: all(true) }, "all"),
        element("button", { type: "button", class: "quiet", onclick: all(false) }, "none")) : null);
  }

  toggle(at, draw = true) {
    const entry = this.entries[at], key = this.keys[at], swatch = key.querySelector("svg");
    if (key.disabled) return;
    swatch.replaceChildren();
    if (this.slots.delete(entry)) {
      key.setAttribute("aria-pressed", "false");
      swatch.setAttribute("class", "swatch");
    } else {
      const taken = new Set(this.slots.values());
      let slot = 0;
      while (taken.has(slot)) slot += 1;
      this.slots.set(entry, slot);
      key.setAttribute("aria-pressed", "true");
      swatch.setAttribute("class", `swatch c${slot % COLOURS}`);
      swatch.append(shape("path", { d: "M-10,0H10" }));
      if (slot >= COLOURS) swatch.append(mark(Math.floor(slot / COLOURS), 0, 0));
    }
    if (draw) this.draw();
  }

  point(name) {
    for (const line of this.plot.svg.querySelectorAll(".line")) line.classList.toggle("faint", name !== null && line.dataset.name !== name && this.isShown(name));
  }

  isShown(name) {
    return this.entries.some((entry) => entry.name === name && this.slots.has(entry));
  }

  draw() {
    const choice = this.choices[Number(this.metric.value)];
    if (choice === undefined) return;
    const series = [];
    for (const entry of this.entries) {
      if (!this.slots.has(entry)) continue;
      const slot = this.slots.get(entry);
      for (const split of this.training.checked ? ["train", "test"] : ["test"]) {
        const curve = curveOf(entry, choice, split);
        if (!curve) continue;
        const [grid, values, low, high] = curve, banded = split === "test" && this.range.checked;
        series.push({
          name: entry.name, colour: slot % COLOURS, mark: Math.floor(slot / COLOURS), dashed: split === "train",
          epochs: contents.curves.grids[grid], values, low: banded ? low : undefined, high: banded ? high : undefined,
        });
      }
    }
    this.plot.show(series, choice.title, Number(this.part.value));
  }
}

/** A word on what the curves leave out; null where they are complete. */
function thinning() {
  const parts = [];
  if (contents.curves.step > 1) parts.push(`Up to ${contents.curves.step} epochs lie between two points.`);
  if (contents.curves.runs === null) parts.push("With so many runs, this page holds the mean curves of configurations alone.");
  return parts.length ? element("p", { class: "small" }, parts.join(" ")) : null;
}
