// Making elements. Text is only ever put in as text, so a label or an error message can do nothing.

const SVG = "http://www.w3.org/2000/svg";

/** An element with properties (`class`, `data-...`, `onclick`, ...) and children: elements, texts, or nothing. */
function element(name, properties = {}, ...children) {
  return filled(document.createElement(name), properties, children);
}

function shape(name, properties = {}, ...children) {
  return filled(document.createElementNS(SVG, name), properties, children);
}

function filled(made, properties, children) {
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== null && value !== false && value !== undefined) made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const contents = JSON.parse(document.getElementById("contents").textContent);

/** The value of a column for a run; null where there is none. */
function told(run, name) {
  const column = contents.runs[name];
  if (column === undefined) return null;
  return Array.isArray(column) ? column[run] : column.pool[column.at[run]];
}

function percent(value) {
  return value === null ? "" : typeof value === "number" ? value.toFixed(2) : value;
}

function scaled(value, unit, steps = [["Z", 1e21], ["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
  if (typeof value !== "number") return value ?? "";
  const [prefix, size] = steps.find(([, least]) => Math.abs(value) >= least) ?? ["", 1];
  return `${Number((value / size).toPrecision(3)).toLocaleString("en")} ${prefix}${unit}`.trim();
}

function duration(seconds) {
  if (typeof seconds !== "number") return seconds ?? "";
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds), minutes = Math.floor(whole / 60) % 60, hours = Math.floor(whole / 3600);
  return hours ? `${hours} h ${String(minutes).padStart(2, "0")} min` : `${minutes} min ${String(whole % 60).padStart(2, "0")} s`;
}

/** "2026-11-21 03:43" of an ISO time, UTC. */
function moment(text) {
  return text ? text.slice(0, 16).replace("T", " ") : "";
}

function stateChip(state, text = state) {
  return element("span", { class: `state s-${state}` }, text);
}
