"use strict";
// Text is only ever put in as text, so a label or an error message can do nothing.
const contents = JSON.parse(document.getElementById("contents").textContent);
for (const [head, column] of Object.entries(contents.runs)) {
  if (column.pool) contents.runs[head] = column.at.map((at) => column.pool[at]);
}

/** An element with attributes and children: elements, texts, or nothing. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.flat(2).filter((child) => child || child === 0));
  return made;
}

function grid(heads, rows) {
  return element("table", { class: "plain" },
    element("thead", {}, element("tr", {}, heads.map((head) => element("th", {}, head)))),
    element("tbody", {}, rows.map((row) => element("tr", {}, row.map((cell, at) =>
      element(at ? "td" : "th", {}, cell))))));
}

function pairs(entries) {
  return element("dl", { class: "settings" }, entries.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value || "none"))));
}

/** Sort by a head: up, then down, then as it was; what has no value stays behind. */
function sortBy(head) {
  const table = head.closest("table"), rows = [...table.tBodies[0].rows];
  const order = { none: "ascending", ascending: "descending", descending: "none" }[head.ariaSort];
  for (const other of table.querySelectorAll("th[aria-sort]")) other.ariaSort = "none";
  head.ariaSort = order;
  rows.forEach((row, at) => { row.dataset.at ??= at; });
  const sign = order === "descending" ? -1 : 1, cell = (row) => row.cells[head.dataset.sort];
  const isNumeric = rows.some((row) => cell(row).dataset.value);
  const compared = (a, b) => {
    if (!isNumeric) return sign * a.textContent.localeCompare(b.textContent, "en", { numeric: true });
    const [x, y] = [a.dataset.value, b.dataset.value];
    return x && y ? sign * (x - y) : !x - !y;
  };
  rows.sort((a, b) => order !== "none" && compared(cell(a), cell(b)) || a.dataset.at - b.dataset.at);
  table.tBodies[0].append(...rows);
}

function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const done = () => { button.textContent = "Copied"; };
  const refused = () => getSelection().selectAllChildren(source);
  navigator.clipboard.writeText(source.textContent).then(done, refused);
}

/** The panel behind a cell: its runs, their cost, their configuration, where they come from. */
function openPanel(table, cell) {
  const text = (run, head) => (contents.runs[head + cell.classifier] ?? contents.runs[head])?.[run] ?? "";
  const shown = (run) => (head) => {
    const value = text(run, head);
    if (head === "state") return element("span", { class: `state s-${value}` }, value);
    if (head !== "MLflow page" || !/^https?:\/\//.test(value)) return value;
    return element("a", { href: value, rel: "noopener noreferrer", target: "_blank" }, "open");
  };
  const section = (title, runs) => {
    const heads = contents.sections[title].filter((head) => runs.some((run) => text(run, head)));
    return runs.length ? [element("h3", {}, title),
      element("div", { class: "scroll", tabindex: 0 }, grid(heads, runs.map((run) => heads.map(shown(run)))))] : [];
  };
  const runs = cell.runs.toSorted((a, b) => text(a, "seed") - text(b, "seed"));
  const begun = runs.filter((run) => text(run, "place"));
  const { id, own } = contents.configs[cell.config] ?? {};
  const whole = Object.entries({ ...contents.common, ...own }).sort();
  const dialog = document.getElementById("panel");
  dialog.replaceChildren(
    element("div", { class: "bar" },
      element("div", {}, element("p", { class: "kicker" }, table.title), element("h2", { id: "panel-title" }, cell.label)),
      element("button", { class: "close", "aria-label": "Close" }, "×")),
    element("div", { class: "inside" },
      element("dl", { class: "tiles" }, cell.facts.map(([name, value]) =>
        element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
      cell.notes.map((note) => element("p", { class: "note" }, note)),
      section("Runs", runs),
      runs.filter((run) => text(run, "error")).map((run) => element("div", { class: "failure" },
        element("p", {}, `seed ${text(run, "seed")}`), element("pre", {}, text(run, "error")))),
      section("Cost", begun),
      element("h3", {}, "Configuration"),
      element("p", { class: "small" }, "config ", element("code", {}, id ?? "not chosen yet")),
      own ? [pairs(table.differs.map((key) => [key, own[key]])), element("details", {},
        element("summary", {}, `The whole configuration, ${whole.length} settings`), pairs(whole))]
        : element("p", { class: "small" }, "Not known before a run has begun."),
      section("Where they come from", begun)));
  dialog.showModal();
  dialog.scrollTop = 0;
}

document.addEventListener("click", ({ target }) => {
  const opener = target.closest("button.open"), table = contents.tables[opener?.dataset.table];
  if (opener) openPanel(table, table.cells[opener.dataset.cell]);
  else if (target.closest("th[aria-sort]")) sortBy(target.closest("th[aria-sort]"));
  else if (target.matches(".copy")) copy(target);
  else if (target.matches("#panel, .close")) document.getElementById("panel").close();
});

/** The values under the pointer of a figure, and a legend that hides lines. */
function follow(box) {
  const svg = box.querySelector("svg"), { names, panels } = contents.figures[box.dataset.figure];
  const tip = element("div", { class: "tip", "aria-live": "polite", hidden: "" });
  const pointer = document.createElementNS(svg.namespaceURI, "path");
  pointer.setAttribute("class", "pointer");
  svg.append(pointer);
  box.append(tip);
  let panel = panels[0], epoch = null;
  const epochs = () => [...new Set(panel.lines.flatMap(([, , grid]) => grid))].sort((a, b) => a - b);

  function read(next) {
    epoch = next;
    tip.hidden = epoch === null;
    pointer.removeAttribute("d");
    if (tip.hidden) return;
    const rows = {}, [left, top, width, height] = panel.box, [first, last] = panel.x;
    for (const [series, part, grid, values] of panel.lines) {
      const value = values[grid.indexOf(epoch)], isOff = svg.querySelector(`.off[data-series="${series}"]`);
      if (value !== undefined && !isOff) (rows[series] ??= {})[part] = value;
    }
    const parts = ["test", "train"].filter((part) => Object.values(rows).some((row) => part in row));
    const sorted = Object.entries(rows).sort(([, a], [, b]) => (a.test ?? a.train) - (b.test ?? b.train));
    tip.replaceChildren(grid([`epoch ${epoch}`, ...parts], sorted.map(([series, row]) =>
      [names[series], ...parts.map((part) => row[part]?.toFixed(2))])));
    const x = left + (epoch - first) / (last - first) * width, edge = box.getBoundingClientRect();
    pointer.setAttribute("d", `M${x},${top}v${height}`);
    const at = new DOMPoint(x, top).matrixTransform(svg.getScreenCTM());
    const fits = at.x - edge.x + 14 + tip.offsetWidth < edge.width;
    tip.style.left = `${Math.max(0, at.x - edge.x + (fits ? 14 : -14 - tip.offsetWidth))}px`;
    tip.style.top = `${at.y - edge.y}px`;
  }

  function toggle(key) {
    const isOff = key.getAttribute("aria-pressed") === "true";
    key.setAttribute("aria-pressed", !isOff);
    for (const each of svg.querySelectorAll(`[data-series="${key.dataset.series}"]:not(.key)`)) {
      each.classList.toggle("off", isOff);
    }
  }

  box.addEventListener("pointermove", (event) => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
    const under = panels.find(({ lines, box: [left, top, width, height] }) => lines.length
      && at.x >= left && at.x <= left + width && at.y >= top && at.y <= top + height);
    if (!under) return read(null);
    panel = under;
    const here = panel.x[0] + (at.x - panel.box[0]) / panel.box[2] * (panel.x[1] - panel.x[0]);
    return read(epochs().reduce((a, b) => (Math.abs(b - here) < Math.abs(a - here) ? b : a)));
  });
  for (const name of ["pointerleave", "blur"]) box.addEventListener(name, () => read(null));
  box.addEventListener("click", ({ target }) => { if (target.matches(".key")) toggle(target); });
  box.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1, Home: -Infinity, End: Infinity }[event.key];
    if (event.target.matches(".key") && [" ", "Enter"].includes(event.key)) toggle(event.target);
    else if (move && panel.lines.length) {
      const all = epochs(), place = all.indexOf(epoch) + move;
      read(all[Math.max(0, Math.min(all.length - 1, place))]);
    } else return;
    event.preventDefault();
  });
}

document.querySelectorAll("[data-figure]").forEach(follow);
