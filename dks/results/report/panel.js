// The panel behind a cell: its runs, their curves, where they come from, and their configuration.

const COST = { "cost/parameters": "parameters", "cost/seconds_per_epoch": "an epoch" };

function heads(columns) {
  return element("thead", {}, element("tr", {}, columns.map((column) => element("th", { scope: "col", class: column.words ? "words" : null }, column.head))));
}

/** A table with a line for every run; columns in which no run has anything are left out. */
function runTable(runs, columns) {
  const shown = columns.filter((column) => runs.some((run) => column.cell(run) !== ""));
  const line = (run) => element("tr", {}, shown.map((column, at) =>
    element(at ? "td" : "th", { class: column.words ? "words" : null, scope: at ? null : "row" }, column.cell(run))));
  return element("div", { class: "scroll", tabindex: 0 }, element("table", { class: "plain" }, heads(shown), element("tbody", {}, runs.map(line))));
}

function epochs(run) {
  const last = told(run, "epoch"), asked = told(run, "epochs");
  return last ? `${last}${asked && asked !== last ? ` of ${asked}` : ""}` : "";
}

function best(run, classifier) {
  const value = percent(told(run, `best/test/top1_error${classifier}`)), at = told(run, `best/epoch${classifier}`);
  return value && at !== null ? `${value} (epoch ${at})` : value;
}

function results(cell, runs) {
  const own = `test/top1_error${cell.classifier}`;
  return runTable(runs, [
    { head: "seed", cell: (run) => String(told(run, "seed")) },
    { head: "state", cell: (run) => stateChip(told(run, "state")), words: true },
    { head: "epochs", cell: epochs },
    { head: "top-1 error", cell: (run) => percent(told(run, `final/${own}`)) },
    { head: "best top-1 error", cell: (run) => best(run, cell.classifier) },
    { head: "top-5 error", cell: (run) => percent(told(run, `final/test/top5_error${cell.classifier}`)) },
    { head: "training error", cell: (run) => percent(told(run, `final/train/top1_error${cell.classifier}`)) },
  ]);
}

function costs(runs) {
  const known = Object.keys(contents.runs).filter((name) => name in COST);
  return runTable(runs, [
    { head: "seed", cell: (run) => String(told(run, "seed")) },
    { head: "time", cell: (run) => duration(told(run, "cost/seconds")) },
    { head: "operations", cell: (run) => scaled(told(run, "cost/training_flops"), "FLOP") },
    { head: "images/s", cell: (run) => scaled(told(run, "cost/images_per_second"), "", [["", 1]]) },
    { head: "peak memory", cell: (run) => memory(told(run, "cost/peak_memory_mib")) },
    ...known.map((name) => ({
      head: COST[name],
      cell: (run) => (name === "cost/parameters" ? scaled(told(run, name), "") : duration(told(run, name))),
    })),
  ]);
}

function memory(mib) {
  return typeof mib !== "number" ? "" : mib < 1024 ? `${mib.toFixed(0)} MiB` : `${(mib / 1024).toFixed(1)} GiB`;
}

/** A card for every run that was begun. */
function origins(runs) {
  const facts = (run) => [
    ["cell", element("code", {}, told(run, "cell_id"))],
    ["begun (UTC)", moment(told(run, "started"))],
    ["device", told(run, "device")],
    ["commit", commit(run)],
    ["attempts", String(told(run, "attempts") || "")],
    ["MLflow run", tracked(run)],
    ["MLflow experiment", told(run, "mlflow_run_id") && told(run, "mlflow_experiment_id")],
    ["MLflow store", told(run, "mlflow_run_id") && told(run, "mlflow_uri")],
    ["place", element("code", {}, told(run, "place"))],
  ].filter(([, value]) => value);
  const begun = runs.filter((run) => told(run, "place"));
  if (begun.length === 0) return [element("p", { class: "small" }, "No run has begun.")];
  return begun.map((run) => element("div", { class: "run" }, element("h4", {}, `seed ${told(run, "seed")}`), settings(facts(run))));
}

function settings(entries) {
  return element("dl", { class: "settings" }, entries.map(([name, value]) =>
    element("div", {}, element("dt", {}, name), element("dd", {}, value === "" ? element("span", { class: "small" }, "none") : value))));
}

function commit(run) {
  const [digits, ...rest] = told(run, "git_commit").split("-");
  return digits ? element("code", { title: told(run, "git_commit") }, [digits.slice(0, 10), ...rest].join("-")) : "";
}

/** A link where the run has a page; else its ids. The link was made from an http address, which is looked at here once more. */
function tracked(run) {
  const link = told(run, "mlflow_link"), id = told(run, "mlflow_run_id");
  if (!id) return "";
  if (/^https?:\/\//.test(link)) return element("a", { href: link, rel: "noopener noreferrer", target: "_blank" }, element("code", {}, id));
  return element("code", {}, id);
}

/** What runs of one configuration differ in besides their seed. */
function mixed(runs) {
  const begun = runs.filter((run) => told(run, "started"));
  const parts = [["git_commit", "commit"], ["device", "device"]].filter(([name]) => new Set(begun.map((run) => told(run, name))).size > 1);
  return parts.length ? element("p", { class: "note" }, `These runs differ in ${parts.map(([, word]) => word).join(" and ")} too.`) : null;
}

function configuration(table, cell) {
  const own = contents.configs[cell.config]?.own;
  if (!own) return [element("p", { class: "small" }, "Not known before a run has begun.")];
  const others = new Set(table.cells.map((each) => each.config));
  const differs = Object.keys(own).filter((key) =>
    [...others].some((other) => contents.configs[other]?.own && contents.configs[other].own[key] !== own[key]));
  const whole = Object.entries({ ...contents.common, ...own }).sort(([a], [b]) => (a < b ? -1 : 1));
  return [
    differs.length
      ? [element("p", { class: "small" }, "What differs between the configurations of this table:"), settings(differs.map((key) => [key, own[key]]))]
      : [],
    element("details", {}, element("summary", {}, `The whole configuration, ${whole.length} settings`), settings(whole)),
  ].flat();
}

function curvesOf(cell, runs) {
  const curves = contents.configs[cell.config]?.curves ?? {};
  const begun = runs.filter((run) => told(run, "epoch") > 0);
  let entries = [{ name: begun.length === 1 ? `seed ${told(begun[0], "seed")}` : `mean of ${begun.length} runs`, curves }];
  if (begun.length > 1 && contents.curves.runs !== null) {
    entries = begun.map((run) => ({ name: `seed ${told(run, "seed")}`, curves: contents.curves.runs[run] ?? {} }));
  }
  entries = entries.filter((entry) => Object.keys(entry.curves).length).map((entry) => ({ ...entry, classifier: cell.classifier }));
  if (entries.length === 0) return null;
  const chart = new Chart("Error of each run against epoch", entries, entries.keys(), { height: 260, ofClassifiers: Boolean(cell.classifier) });
  return [element("h3", {}, "Curves"), chart.box, thinning()];
}

function failures(runs) {
  return runs.filter((run) => told(run, "error")).map((run) =>
    element("div", { class: "failure" }, element("p", {}, `seed ${told(run, "seed")} `, stateChip(told(run, "state"))), element("pre", {}, told(run, "error"))));
}

/** Open the panel of a cell. */
function openPanel(tableAt, cellAt) {
  const dialog = document.getElementById("panel");
  const table = contents.tables[tableAt], cell = table.cells[cellAt];
  const runs = [...cell.runs].sort((a, b) => told(a, "seed") - told(b, "seed"));
  const section = (title, ...inside) => [element("h3", {}, title), ...inside];
  dialog.replaceChildren(
    element("div", { class: "bar" },
      element("div", {}, element("p", { class: "kicker" }, table.title), element("h2", { id: "panel-title" }, cell.label)),
      element("button", { type: "button", class: "close", "aria-label": "Close", onclick: () => dialog.close() }, "×")),
    element("div", { class: "inside" },
      element("dl", { class: "facts" }, cell.facts.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)))),
      cell.leftOut.length ? element("p", { class: "warning" }, `Finished but left out: ${cell.leftOut.join(", ")}.`) : "",
      cell.differs.length ? element("p", { class: "note" }, `Not the paper's setting: ${cell.differs.join("; ")}.`) : "",
      runs.length
        ? section("Runs", results(cell, runs), ...failures(runs))
        : element("p", { class: "note" }, "These runs wait until a hyper-parameter is chosen by others; they have no identity before."),
      curvesOf(cell, runs) ?? "",
      runs.some((run) => told(run, "place")) ? section("Cost", costs(runs)) : "",
      section("Configuration", element("p", { class: "small" }, "config ", element("code", {}, contents.configs[cell.config]?.id ?? "not chosen yet")), ...configuration(table, cell)),
      section("Where they come from", mixed(runs) ?? "", ...origins(runs))));
  dialog.showModal();
  dialog.scrollTop = 0;
}
