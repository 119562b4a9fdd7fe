// What answers a click.

/** Sort by the column of a head: first up, then down, then as it was; what has no value stays behind. */
function sortBy(head) {
  const table = head.closest("table"), body = table.tBodies[0], column = Number(head.dataset.sort);
  const order = { none: "ascending", ascending: "descending", descending: "none" }[head.getAttribute("aria-sort")];
  for (const other of table.querySelectorAll("th[aria-sort]")) other.setAttribute("aria-sort", "none");
  head.setAttribute("aria-sort", order);
  const rows = [...body.rows];
  rows.forEach((row, at) => { row.dataset.at ??= at; });
  const sign = order === "descending" ? -1 : 1;
  const key = (row) => row.cells[column].dataset.value === undefined ? null : Number(row.cells[column].dataset.value);
  const numeric = rows.some((row) => key(row) !== null);
  rows.sort((a, b) => {
    const still = a.dataset.at - b.dataset.at;
    if (order === "none") return still;
    if (!numeric) return sign * a.cells[column].textContent.localeCompare(b.cells[column].textContent, "en", { numeric: true }) || still;
    const [x, y] = [key(a), key(b)];
    return x === null || y === null ? (x === null) - (y === null) || still : sign * (x - y) || still;
  });
  body.append(...rows);
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    getSelection().selectAllChildren(source); // a browser may refuse; then the text is selected, ready to be copied
    button.textContent = document.execCommand("copy") ? "Copied" : "Selected";
    return;
  }
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
}

document.addEventListener("click", (event) => {
  const head = event.target.closest("th[aria-sort]"), opener = event.target.closest("button.open");
  if (head) sortBy(head);
  else if (opener) openPanel(Number(opener.dataset.table), Number(opener.dataset.cell));
  else if (event.target.closest("button.copy")) copy(event.target.closest("button.copy"));
  else if (event.target.id === "panel") event.target.close(); // beside the panel
});

const FIRST_SHOWN = 6;

for (const place of document.querySelectorAll("[data-curves]")) {
  const table = contents.tables[Number(place.dataset.curves)];
  const entries = table.first.map((at) => {
    const cell = table.cells[at], count = cell.runs.filter((run) => told(run, "state") === "done").length;
    const part = count < cell.wanted ? ` (${count} of ${cell.wanted} done)` : "";
    return { name: cell.label + part, curves: contents.configs[cell.config]?.curves ?? {}, classifier: cell.classifier };
  });
  const drawable = [...entries.keys()].filter((at) => Object.keys(entries[at].curves).length > 0);
  if (drawable.length === 0) {
    place.append(element("p", { class: "small" }, "No epoch has been recorded yet."));
    continue;
  }
  const several = table.cells.some((cell) => cell.wanted > 1);
  const chart = new Chart(table.title, entries, drawable.slice(0, FIRST_SHOWN), { height: 360, ofClassifiers: table.classifiers });
  place.append(
    chart.box,
    element("p", { class: "small" }, "Solid: test. Dashed: training, measured while it goes on.",
      several ? " Lines are means over the finished runs, or over what there is where none is finished; the band reaches from the lowest to the highest." : ""),
    thinning() ?? "");
}

const links = new Map([...document.querySelectorAll(".toc a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((each) => each.isIntersecting)) {
    for (const [id, link] of links) link.classList.toggle("here", id === entry.target.id);
  }
}, { rootMargin: "-10% 0px -80% 0px" });
for (const section of document.querySelectorAll("main > section")) watcher.observe(section);
