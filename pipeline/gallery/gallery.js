// The gallery of an output. Rows come as scripts (rows-000.js, ...): a page that is opened from a disk cannot fetch.
// All text is from strangers and gets onto the page as text nodes alone. panels.js has the histograms and the other views.
"use strict";

const KEY = 0, UNIT = 1, STATUS = 2, PROMPT = 3, CAPTION = 4, REASON = 8, WIDTH = 9, HEIGHT = 10, STEPS = 12, SEED = 13, PICTURES = 14, ALTERNATIVES = 15;
const SCORES = [[5, "similarity"], [6, "caption similarity"], [7, "regenerated similarity"]];
const PAGE = 60;

const $ = (id) => document.getElementById(id);
const body = document.body.dataset;
const rows = [];        // as they come, in the order of the output
const texts = [];       // of each row, what the filter looks at
let units = [], failures = [];
let chosen = [];        // indices of the rows that pass the filters, sorted
let shown = 0;          // of these, on the page
let ranges = new Map(); // column of a score -> [least, most] that is asked for
let loaded = 0;

// ---- data -------------------------------------------------------------------------------------------------------

const gallery = {
  rows(number, some) {
    for (const row of some) {
      rows.push(row);
      texts.push(`${row[KEY]}\n${row[PROMPT] ?? ""}\n${row[CAPTION] ?? ""}\n${row[REASON] ?? ""}`.toLowerCase());
    }
    loaded = number + 1;
  },
  units(all, failed) { units = all; failures = failed; },
};
window.gallery = gallery;

function load(name) {
  return new Promise((done) => {
    const script = document.createElement("script");
    script.src = name;
    script.onload = () => done(true);
    script.onerror = () => done(false);
    document.head.append(script);
  });
}

async function loadAll() {
  await load("units.js");
  fillUnitChoice();
  const chunks = Number(body.chunks);
  for (let number = 0; number < chunks; number++) {
    if (!await load(`rows-${String(number).padStart(3, "0")}.js`)) break;
    if (number === 0 && chunks > 1) begin();  // something to see while the others come
  }
  begin();
  performance.mark("ready");
  document.documentElement.dataset.ready = "true";
}

// ---- choosing and sorting ---------------------------------------------------------------------------------------

const value = (row, column) => (column === "gain" ? difference(row) : column === "key" ? row[KEY] : row[column]);
const difference = (row) => (row[5] === null || row[6] === null ? null : row[5] - row[6]);

function compare(column, direction) {
  return (a, b) => {
    const x = value(rows[a], column), y = value(rows[b], column);
    if (x === y) return a - b;
    if (x === null) return 1;   // rows without the score come last, whatever the order
    if (y === null) return -1;
    return (x < y ? -1 : 1) * direction;
  };
}

function update() {
  const words = $("text").value.toLowerCase().split(/\s+/).filter(Boolean);
  const status = $("status").value, unit = $("unit").value;
  chosen = [];
  for (let i = 0; i < rows.length; i++) {
    const row = rows[i];
    if (status === "failed" ? row[STATUS] === "ok" : status && row[STATUS] !== status) continue;
    if (unit !== "" && row[UNIT] !== Number(unit)) continue;
    if (!words.every((word) => texts[i].includes(word))) continue;
    let inside = true;
    for (const [column, [least, most]] of ranges) {
      if (row[column] === null || row[column] < least || row[column] > most) { inside = false; break; }
    }
    if (inside) chosen.push(i);
  }
  const [column, direction] = $("sort").value.split(" ");
  if (column !== "order") chosen.sort(compare(/^\d+$/.test(column) ? Number(column) : column, Number(direction)));
  const total = Number(body.rows), all = rows.length === total;
  $("count").textContent = `${number(chosen.length)} of ${number(all ? rows.length : total)} rows${all ? "" : `, ${number(rows.length)} loaded`}`;
  $("cards").replaceChildren();
  shown = 0;
  more();
  drawHistograms();
}

function more() {
  const next = chosen.slice(shown, shown + PAGE);
  $("cards").append(...next.map((index) => card(index)));
  shown += next.length;
  $("more").hidden = shown >= chosen.length;
}

// ---- one row ----------------------------------------------------------------------------------------------------

function element(tag, name, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

const number = (n) => n.toLocaleString("en");
const three = (n) => n.toFixed(3);

function thumbnail(index, mark) {
  return `thumbs/${String(Math.floor(index / 1000)).padStart(3, "0")}/${String(index).padStart(6, "0")}${mark}.webp`;
}

function picture(index, there, mark, label, missing) {
  const frame = element("span", "picture");
  if (there) {
    const image = document.createElement("img");
    image.loading = "lazy";
    image.decoding = "async";
    image.src = thumbnail(index, mark);
    image.alt = mark ? "generated from the prompt" : rows[index][CAPTION] || rows[index][KEY];
    frame.append(image);
  } else frame.append(element("i", "", missing));
  if (label) frame.append(element("b", "", label));
  return frame;
}

function pictures(index, tag) {
  const row = rows[index], pair = (row[PICTURES] & 2) !== 0;
  const box = element(tag, "pictures", picture(index, row[PICTURES] & 1, "", pair ? "original" : "", row[STATUS] === "ok" ? "image not found" : row[STATUS]));
  if (pair) box.append(picture(index, true, "-r", "generated", ""));
  return box;
}

function card(index) {
  const row = rows[index], item = element("li"), box = element("article", "card");
  const open = pictures(index, "button");
  open.type = "button";
  open.setAttribute("aria-label", `Details of ${row[KEY]}`);
  open.onclick = () => detail(index);
  const text = element("div", "text");
  if (row[PROMPT] !== null) text.append(promptOf(row));
  if (row[REASON] !== null) text.append(element("p", "error clamp", row[REASON]));
  if (row[CAPTION]) text.append(element("p", "caption clamp", row[CAPTION]));
  text.append(scores(row), element("span", "key", row[KEY]));
  box.append(open, text);
  item.append(box);
  return item;
}

function promptOf(row) {
  const button = element("button", "prompt", row[PROMPT]);
  button.type = "button";
  button.title = "Copy the prompt";
  button.onclick = () => copy(row[PROMPT]);
  return button;
}

function scores(row) {
  const box = element("div", "scores");
  for (const [column, name] of SCORES) {
    if (row[column] === null) continue;
    const meter = document.createElement("meter");
    const [least, most] = extent(column);
    Object.assign(meter, { min: Math.min(least, 0), max: Math.max(most, 0.001), value: row[column] });
    meter.setAttribute("aria-hidden", "true");
    box.append(element("span", "", name.replace(" similarity", "").replace("similarity", "prompt")), meter, element("b", "", three(row[column])));
  }
  return box;
}

async function copy(text) {
  let done = true;
  try {
    await navigator.clipboard.writeText(text);
  } catch {  // not allowed for this page
    const area = element("textarea");
    area.value = text;
    document.body.append(area);
    area.select();
    done = document.execCommand("copy");
    area.remove();
  }
  $("toast").textContent = done ? "Prompt copied" : "The browser does not allow copying";
  $("toast").classList.add("on");
  clearTimeout(copy.timer);
  copy.timer = setTimeout(() => $("toast").classList.remove("on"), 1500);
}

// ---- details ----------------------------------------------------------------------------------------------------

let current = 0;

function detail(index) {
  current = index;
  const row = rows[index], list = element("dl", "settings");
  const unit = units[row[UNIT]];
  const values = [
    ["key", row[KEY]], ["unit", unit ? unit[0] : row[UNIT]], ["file", unit ? unit[1] : null], ["status", row[STATUS]],
    ["size", row[WIDTH] ? `${row[WIDTH]} × ${row[HEIGHT]}` : null],
    ...SCORES.map(([column, name]) => [name, row[column] === null ? null : row[column].toFixed(4)]),
    ["similarity of the tokens", row[11] === null ? null : row[11].toFixed(4)], ["steps", row[STEPS]], ["seed", row[SEED]],
  ];
  for (const [name, shownValue] of values) {
    if (shownValue === null) continue;
    list.append(element("div", "", element("dt", "", name), element("dd", "", String(shownValue))));
  }
  $("detail-body").replaceChildren(
    pictures(index, "div"),
    ...(row[PROMPT] !== null ? [promptOf(row)] : []),
    ...(row[REASON] !== null ? [element("p", "error", row[REASON])] : []),
    ...(row[CAPTION] ? [element("p", "caption", row[CAPTION])] : []),
    ...(row[ALTERNATIVES] ? [alternatives(row)] : []),
    list,
  );
  const place = chosen.indexOf(index);
  $("previous").disabled = place <= 0;
  $("next").disabled = place < 0 || place === chosen.length - 1;
  if (!$("detail").open) $("detail").showModal();
  $("detail").scrollTop = 0;
}

function alternatives(row) {
  const list = element("ol", "alternatives");
  for (const [text, similarity] of row[ALTERNATIVES]) {
    const button = element("button", "prompt", text);
    button.type = "button";
    button.title = "Copy the prompt";
    button.onclick = () => copy(text);
    list.append(element("li", "", button, element("span", "", three(similarity))));
  }
  return element("section", "", element("h3", "", "Alternatives"), list);
}

function step(by) {
  const next = chosen[chosen.indexOf(current) + by];
  if (next !== undefined && chosen.includes(current)) detail(next);
}

// ---- the page ---------------------------------------------------------------------------------------------------

function view() {
  const name = ["images", "extremes", "units", "settings"].find((one) => location.hash === `#${one}`) ?? "images";
  for (const section of document.querySelectorAll("main > section")) section.hidden = section.id !== `view-${name}`;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (name === "extremes") drawExtremes();
  if (name === "units") drawUnits();
}

function begin() {
  const there = SCORES.filter(([column]) => rows.some((row) => row[column] !== null));
  const sort = $("sort"), before = sort.value, by = $("by"), byBefore = by.value;
  sort.replaceChildren(new Option("input order", "order 1"));
  by.replaceChildren();
  for (const [column, name] of there) {
    sort.append(new Option(`${name}, best first`, `${column} -1`), new Option(`${name}, worst first`, `${column} 1`));
    by.append(new Option(name, column));
  }
  if (there.some(([column]) => column === 6)) {
    sort.append(new Option("gain over the caption, largest first", "gain -1"), new Option("gain over the caption, smallest first", "gain 1"));
  }
  sort.append(new Option("key", "key 1"));
  if (before) sort.value = before;
  if (byBefore) by.value = byBefore;
  const status = $("status"), statusBefore = status.value, counts = new Map();
  for (const row of rows) counts.set(row[STATUS], (counts.get(row[STATUS]) ?? 0) + 1);
  status.replaceChildren(new Option("all", ""));
  if (counts.size > 2) status.append(new Option("without a prompt", "failed"));
  for (const [name, n] of counts) status.append(new Option(`${name} (${number(n)})`, name));
  status.parentElement.hidden = counts.size < 2;
  status.value = statusBefore || "";
  for (const id of ["cards", "best", "worst"]) $(id).classList.toggle("pairs", rows.some((row) => row[PICTURES] & 2));
  if (ranges.size === 0) buildHistograms();
  update();
  view();
}

function resetRanges() {
  ranges = new Map();
  buildHistograms();
}

$("controls").addEventListener("submit", (event) => event.preventDefault());
$("clear").addEventListener("click", () => { $("controls").reset(); resetRanges(); update(); });
for (const id of ["text", "sort", "status", "unit"]) $(id).addEventListener("input", update);
$("more").addEventListener("click", more);
$("previous").addEventListener("click", () => step(-1));
$("next").addEventListener("click", () => step(1));
$("detail").addEventListener("click", (event) => { if (event.target === $("detail")) $("detail").close(); });
new IntersectionObserver((seen) => { if (seen[0].isIntersecting && !$("more").hidden) more(); }, { rootMargin: "600px" }).observe($("more"));
window.addEventListener("hashchange", view);
window.addEventListener("keydown", (event) => {
  const typing = event.target.matches("input:not([type=range]), select, textarea");
  if (event.key === "/" && !typing && !$("detail").open) { event.preventDefault(); location.hash = "#images"; $("text").focus(); }
  if (!$("detail").open) return;
  if (event.key === "ArrowLeft") step(-1);
  if (event.key === "ArrowRight") step(1);
});
document.addEventListener("DOMContentLoaded", () => { view(); loadAll(); });  // after panels.js
