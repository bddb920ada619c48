"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

// A served page reloads itself. Filters, sorting and hidden lines are kept for as long as the tab is open.
const kept = {
  get: (name) => (data.version ? sessionStorage.getItem(`dhkd-${name}`) : null),
  set: (name, value) => { if (data.version) sessionStorage.setItem(`dhkd-${name}`, value); },
};

// Colours follow the system's theme until the button is pressed. A page opened from a file may have no storage.
const stored = () => { try { return localStorage.getItem("dhkd-theme"); } catch { return null; } };
const store = (theme) => { try { localStorage.setItem("dhkd-theme", theme); } catch { /* then the choice lasts as long as the page */ } };
const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = stored();
const isDark = () => (chosen ? chosen === "dark" : system.matches);

function layoutOf(figure) {
  const style = getComputedStyle(root);
  const ink = style.getPropertyValue("--ink"), line = style.getPropertyValue("--line");
  const layout = { ...figure.layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink } };
  for (const axis of ["xaxis", "yaxis"]) {
    layout[axis] = { ...figure.layout[axis], gridcolor: line, zerolinecolor: line, linecolor: line };
  }
  return layout;
}

// `drawn` maps each page element to its figure, so that figures can be redrawn in other colours. `hidden` maps each
// chart's id to the names whose lines are hidden.
const drawn = new Map();
const hidden = new Map();
function draw(place, figure) {
  const out = hidden.get(place.parentElement.id) ?? new Set();
  const traces = figure.data.map((trace) => ({ ...trace, visible: !out.has(trace.legendgroup) }));
  drawn.set(place, figure);
  place.classList.toggle("own-height", Boolean(figure.layout.height));
  Plotly.react(place, traces, layoutOf(figure), { responsive: true, displaylogo: false });
}
function drawChart(id, chart) {
  const places = document.getElementById(id).children;
  chart.figures.forEach((figure, number) => draw(places[number], figure));
}
function paint() {
  root.classList.toggle("dark", isDark());
  document.getElementById("theme").setAttribute("aria-pressed", String(isDark()));
  for (const [place, figure] of drawn) draw(place, figure);
}
document.getElementById("theme").addEventListener("click", () => {
  chosen = isDark() ? "light" : "dark";
  store(chosen);
  paint();
});
system.addEventListener("change", paint);

// One legend for all figures of a chart. A click on a name hides or shows its lines in all figures.
function makeLegend(id, chart) {
  const out = new Set(JSON.parse(kept.get(`hidden-${id}`) ?? "[]"));
  hidden.set(id, out);
  document.getElementById(`${id}-legend`).replaceChildren(...chart.legend.map(([name, colour, dash]) => {
    const button = Object.assign(document.createElement("button"), { type: "button", textContent: name });
    button.style.setProperty("--colour", colour);
    button.style.setProperty("--dash", dash);
    const show = () => button.setAttribute("aria-pressed", String(!out.has(name)));
    button.addEventListener("click", () => {
      if (!out.delete(name)) out.add(name);
      kept.set(`hidden-${id}`, JSON.stringify([...out]));
      show();
      drawChart(id, chart);
    });
    show();
    return button;
  }));
}

// Sorting: numbers are sorted by value, empty cells come last, and equal rows keep their order.
function sort(header, direction) {
  const table = header.closest("table"), column = header.cellIndex;
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", direction);
  const body = table.tBodies[0], sign = direction === "ascending" ? 1 : -1;
  const value = (row) => row.cells[column].dataset.value;
  const rows = [...body.rows].sort((one, other) => {
    const [a, b] = [value(one), value(other)];
    if (a === "" || b === "") return (a === "") - (b === "");
    const difference = Number(a) - Number(b);
    return sign * (Number.isNaN(difference) ? a.localeCompare(b, "en", { numeric: true }) : difference);
  });
  body.append(...rows);
  kept.set(`sorted-${table.id}`, JSON.stringify([header.textContent, direction]));
}
for (const button of document.querySelectorAll("thead button")) {
  const header = button.closest("th");
  button.addEventListener("click", () => {
    sort(header, header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending");
  });
  // A column is found by its name, because columns may be added while a sweep runs.
  const [name, direction] = JSON.parse(kept.get(`sorted-${header.closest("table").id}`) ?? "[]");
  if (name === header.textContent) sort(header, direction);
}

// Filtering: show the rows that contain every word.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const rows = [...document.getElementById(input.dataset.filters).tBodies[0].rows];
  const filter = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += row.hidden ? 0 : 1;
    }
    document.getElementById(`${input.dataset.filters}-count`).textContent = `${shown} of ${rows.length}`;
    kept.set(input.id, input.value);
  };
  input.value = kept.get(input.id) ?? "";
  input.addEventListener("input", filter);
  filter();
}

// The details of a run. Everything is set as text, so that no name or setting is parsed as markup.
function fill(id, rows, tag) {
  const body = document.getElementById(id);
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
    return row;
  }));
}
const opened = document.getElementById("run"), runChart = document.getElementById("run-chart");
for (const button of document.querySelectorAll(".open")) {
  button.addEventListener("click", () => {
    const run = data.runs[button.dataset.run];
    document.getElementById("run-name").textContent = button.dataset.run;
    fill("run-head", [run.columns], "th");
    fill("run-epochs", run.epochs, "td");
    fill("run-settings", [...run.settings, ...data.shared], "td");
    const figures = Object.entries(run.curves).map(([label, y]) => {
      const { data: [line], layout } = data.runCharts[label];
      return { data: [{ ...line, mode: y.length > 60 ? "lines" : line.mode, y }], layout };
    });
    runChart.replaceChildren(...figures.map(() => Object.assign(document.createElement("div"), { className: "chart" })));
    opened.showModal();
    drawChart("run-chart", { figures });
  });
}
opened.addEventListener("close", () => { for (const place of runChart.children) drawn.delete(place); });

paint();
for (const [id, chart] of Object.entries(data.charts)) {
  if (chart.legend.length) makeLegend(id, chart);
  drawChart(id, chart);
}

// A served page reloads when its version has changed, but not while the details of a run are open.
if (data.version) {
  setInterval(async () => {
    const answer = await fetch("version").catch(() => null);
    const changed = answer && answer.ok && (await answer.text()) !== data.version;
    if (changed && !opened.open) location.reload();
  }, 2000);
}
