"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const root = document.documentElement;

// Colours: the system's, unless the button was pressed; a page from a file may have no storage.
const stored = () => { try { return localStorage.getItem("dhkd-theme"); } catch { return null; } };
const store = (theme) => { try { localStorage.setItem("dhkd-theme", theme); } catch { /* it lasts as long as the page */ } };
const system = matchMedia("(prefers-color-scheme: dark)");
let chosen = stored();
const isDark = () => (chosen ? chosen === "dark" : system.matches);

function layoutOf(chart) {
  const style = getComputedStyle(root);
  const ink = style.getPropertyValue("--ink"), line = style.getPropertyValue("--line");
  const layout = { ...chart.layout, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: ink } };
  for (const key of Object.keys(chart.layout).filter((name) => /^[xy]axis/.test(name))) {
    layout[key] = { ...chart.layout[key], gridcolor: line, zerolinecolor: line, linecolor: line };
  }
  return layout;
}
const drawn = new Map();
function draw(id, chart) {
  drawn.set(id, chart);
  Plotly.react(id, chart.data, layoutOf(chart), { responsive: true, displaylogo: false });
}
function paint() {
  root.classList.toggle("dark", isDark());
  const button = document.getElementById("theme");
  button.setAttribute("aria-pressed", String(isDark()));
  for (const [id, chart] of drawn) draw(id, chart);
}
document.getElementById("theme").addEventListener("click", () => {
  chosen = isDark() ? "light" : "dark";
  store(chosen);
  paint();
});
system.addEventListener("change", paint);

// Sorting: numbers as numbers, what is empty last, equal rows as they were.
function sort(header) {
  const table = header.closest("table"), column = header.cellIndex;
  const direction = header.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
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
}
for (const button of document.querySelectorAll("thead button")) {
  button.addEventListener("click", () => sort(button.closest("th")));
}

// Filtering: rows that hold every word. A served page is loaded anew time and again, and keeps what was typed.
for (const input of document.querySelectorAll("input[data-filters]")) {
  const kept = `dhkd-${input.id}`;
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
    if (data.version) sessionStorage.setItem(kept, input.value);
  };
  if (data.version) input.value = sessionStorage.getItem(kept) ?? "";
  input.addEventListener("input", filter);
  filter();
}

// A run: everything as text, so that no name or setting is ever markup.
function fill(id, rows, tag) {
  const body = document.getElementById(id);
  body.replaceChildren(...rows.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells.map((text) => Object.assign(document.createElement(tag), { textContent: text })));
    return row;
  }));
}
for (const button of document.querySelectorAll(".open")) {
  button.addEventListener("click", () => {
    const run = data.runs[button.dataset.run];
    document.getElementById("run-name").textContent = button.dataset.run;
    fill("run-head", [run.columns], "th");
    fill("run-epochs", run.epochs, "td");
    fill("run-settings", run.settings, "td");
    document.getElementById("run").showModal();
    draw("run-chart", run.chart);
  });
}
document.getElementById("run").addEventListener("close", () => drawn.delete("run-chart"));

paint();
for (const [id, chart] of Object.entries(data.charts)) draw(id, chart);

// Served while a sweep runs: loaded anew when something has changed, where the reader was, unless a run is open.
if (data.version) {
  setInterval(async () => {
    const answer = await fetch("version").catch(() => null);
    const changed = answer && answer.ok && (await answer.text()) !== data.version;
    if (changed && !document.getElementById("run").open) location.reload();
  }, 2000);
}
