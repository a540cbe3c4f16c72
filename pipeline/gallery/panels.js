// The parts of the gallery around its cards: histograms, best and worst, units. gallery.js has the rows and what is chosen.
"use strict";

const BINS = 40, EXTREMES = 12, UNITS_A_PAGE = 100;

// ---- histograms -------------------------------------------------------------------------------------------------

const extents = new Map();

function extent(column) {
  if (!extents.has(column)) {
    let least = Infinity, most = -Infinity;
    for (const row of rows) {
      if (row[column] === null) continue;
      least = Math.min(least, row[column]);
      most = Math.max(most, row[column]);
    }
    extents.set(column, [least, most]);
  }
  return extents.get(column);
}

function buildHistograms() {
  extents.clear();
  $("histograms").replaceChildren();
  for (const [column, name] of SCORES) {
    const [least, most] = extent(column);
    if (least >= most) continue;
    const box = element("fieldset", "histogram");
    const mean = element("span");
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("viewBox", `0 0 ${BINS} 20`);
    drawing.setAttribute("preserveAspectRatio", "none");
    drawing.setAttribute("role", "img");
    const range = element("div", "range");
    const ends = element("div", "ends", element("span", "", three(least)), element("span", "", three(most)));
    for (const [end, label] of [[0, "least"], [1, "most"]]) {
      const slider = element("input");
      Object.assign(slider, { type: "range", min: 0, max: BINS, step: 1, value: end * BINS });
      slider.setAttribute("aria-label", `${label} ${name}`);
      slider.oninput = () => slide(column, range, ends);
      range.append(slider);
    }
    box.append(element("legend", "", name, mean), drawing, range, ends);
    box.dataset.column = column;
    $("histograms").append(box);
  }
}

let waiting = 0;

function slide(column, range, ends) {
  const [least, most] = extent(column);
  const marks = [...range.children].map((slider) => Number(slider.value)).sort((a, b) => a - b);
  const [low, high] = marks.map((mark) => least + ((most - least) * mark) / BINS);
  if (marks[0] === 0 && marks[1] === BINS) ranges.delete(column);
  else ranges.set(column, [low - 1e-9, high + 1e-9]);
  ends.replaceChildren(element("span", "", three(low)), element("span", "", three(high)));
  [...range.children].forEach((slider) => slider.setAttribute("aria-valuetext", three(least + ((most - least) * slider.value) / BINS)));
  cancelAnimationFrame(waiting);
  waiting = requestAnimationFrame(update);
}

function drawHistograms() {
  for (const box of $("histograms").children) {
    const column = Number(box.dataset.column), [least, most] = extent(column), counts = new Array(BINS).fill(0);
    let sum = 0, there = 0;
    for (const index of chosen) {
      const score = rows[index][column];
      if (score === null) continue;
      counts[Math.min(Math.floor(((score - least) / (most - least)) * BINS), BINS - 1)] += 1;
      sum += score;
      there += 1;
    }
    const highest = Math.max(...counts, 1), drawing = box.querySelector("svg");
    drawing.replaceChildren(...counts.map((count, i) => {
      const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
      const height = count ? Math.max((20 * count) / highest, 0.7) : 0.25;
      const place = { x: i + 0.08, y: 20 - height, width: 0.84, height };
      for (const [name, size] of Object.entries(place)) bar.setAttribute(name, size);
      if (count) bar.setAttribute("class", "in");
      return bar;
    }));
    const mean = there ? `mean ${three(sum / there)}` : "none";
    box.querySelector("legend span").textContent = mean;
    drawing.setAttribute("aria-label", `${number(there)} rows, ${mean}`);
  }
}

// ---- best and worst ---------------------------------------------------------------------------------------------

function drawExtremes() {
  const column = Number($("by").value);
  const order = rows.map((_, index) => index).filter((index) => rows[index][column] !== null).sort(compare(column, -1));
  $("best").replaceChildren(...order.slice(0, EXTREMES).map(card));
  $("worst").replaceChildren(...order.slice(-EXTREMES).reverse().map(card));
}

// ---- units ------------------------------------------------------------------------------------------------------

let unitOrder = ["0", 1], unitsShown = UNITS_A_PAGE;
const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

function fillUnitChoice() {
  if (units.length < 2) { $("unit").parentElement.hidden = true; return; }
  units.slice(0, 1000).forEach((unit, index) => $("unit").append(new Option(unit[0], index)));
}

function drawUnits() {
  const by = ([column]) => (unit) => (column === "failed" ? sum(unit[4]) : column === "warnings" ? unit[8].length : unit[Number(column)]);
  const key = by(unitOrder), order = units.map((_, index) => index);
  order.sort((a, b) => {
    const x = key(units[a]), y = key(units[b]);
    return x === y ? a - b : (x === null || x < y ? -1 : 1) * unitOrder[1];
  });
  $("units").tBodies[0].replaceChildren(...order.slice(0, unitsShown).map(unitRow));
  $("more-units").hidden = unitsShown >= units.length;
  for (const button of $("units").querySelectorAll("th button")) {
    const on = button.dataset.by === unitOrder[0];
    button.setAttribute("aria-pressed", on);
    button.parentElement.setAttribute("aria-sort", on ? (unitOrder[1] > 0 ? "ascending" : "descending") : "none");
  }
  $("failures").replaceChildren(...failures.map(([stem, log]) => element("details", "failure",
    element("summary", "", `${stem} failed`), element("pre", "", log))));
}

function unitRow(index) {
  const [stem, file, count, ok, failed, mean, seconds, reasons, warnings, leftOut] = units[index];
  const open = element("button", "link", stem);
  open.type = "button";
  open.onclick = () => { $("controls").reset(); resetRanges(); $("unit").value = String(index); location.hash = "#images"; update(); };
  const cell = (content, name) => element("td", name, content);
  const known = rows.some((row) => row[UNIT] === index);
  const without = Object.entries(failed).map(([status, n]) => `${status} ${number(n)}`).join(", ");
  const lost = Object.entries(leftOut).map(([reason, n]) => `left out: ${reason} ${number(n)}`);
  return element("tr", "",
    element("td", "", known ? open : stem, element("div", "path", file)),
    cell(number(count), "number"), cell(number(ok), "number"), cell(mean === null ? "–" : three(mean), "number"),
    cell(number(Math.round(seconds)), "number"),
    cell(folded(without, reasons), without ? "bad" : ""),
    cell(folded(warnings.length ? `${number(warnings.length)} ${warnings.length === 1 ? "warning" : "warnings"}` : lost.length ? "left out" : "", [...warnings, ...lost]), "warn"));
}

function folded(title, lines) {
  if (!title) return "–";
  if (!lines.length) return title;
  return element("details", "", element("summary", "", title), element("ul", "", ...lines.map((line) => element("li", "", line))));
}

$("by").addEventListener("input", drawExtremes);
$("more-units").addEventListener("click", () => { unitsShown += UNITS_A_PAGE; drawUnits(); });
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const same = unitOrder[0] === button.dataset.by;
    unitOrder = [button.dataset.by, same ? -unitOrder[1] : button.dataset.by === "0" ? 1 : -1];
    drawUnits();
  });
}
