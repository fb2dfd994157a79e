"""The style sheet and the script of the HTML page; both go inline, nothing is fetched."""

CSS = """
:root { color-scheme: light dark;
  --page: #fbfbf9; --card: #ffffff; --ink: #1c2430; --muted: #667180; --hair: #e4e7ea;
  --front: #1f4e8c; --winner: #cf4408; --budget: #b42318; --random: #857347; --good: #1a7f4b;
  --o0: #bcd4ea; --o1: #96bde0; --o2: #6aa2d4; --o3: #3f80bf; --o4: #255e9e; --o5: #123e73; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #191f27; --ink: #e6eaef; --muted: #96a1ae; --hair: #2b333d;
  --front: #7db4f0; --winner: #ff8a4c; --budget: #f0746a; --random: #c2ad78; --good: #5cc490;
  --o0: #2b4868; --o1: #33608f; --o2: #3f7ab5; --o3: #5b97d2; --o4: #86b8ea; --o5: #bcdcff; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Inter, Roboto, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 40px 24px 72px; }
h1 { font-size: 27px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em; }
h2 { font-size: 18px; margin: 48px 0 4px; letter-spacing: -.005em; }
h3 { font-size: 13px; font-weight: 600; margin: 0 0 6px; }
p { margin: 0 0 12px; max-width: 92ch; } .lede, .note { color: var(--muted); }
.note { font-size: 13px; margin-top: 10px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px;
  margin: 24px 0 8px; }
.card { background: var(--card); border: 1px solid var(--hair); border-radius: 10px;
  padding: 14px 16px; }
.card b { display: block; font-size: 26px; line-height: 1.2; font-weight: 650;
  letter-spacing: -.02em; font-variant-numeric: tabular-nums; }
.card b small { font-size: 15px; font-weight: 500; letter-spacing: 0; }
.card span { display: block; color: var(--muted); font-size: 13px; line-height: 1.4; }
.card .name { font-size: 12.5px; margin-bottom: 2px; }
.card.lead { border-color: var(--winner); } .card.lead b { color: var(--winner); }
.good { color: var(--good) !important; } .bad { color: var(--budget) !important; }
.panel { background: var(--card); border: 1px solid var(--hair); border-radius: 10px;
  padding: 16px 16px 12px; margin: 12px 0; overflow-x: auto; }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font-size: 12px; fill: var(--ink); font-family: inherit; }
svg .label text { paint-order: stroke; stroke: var(--card); stroke-width: 2.2px;
  stroke-linejoin: round; }
.axis { stroke: var(--muted); opacity: .6; }
.ring { fill: none; stroke: var(--ink); stroke-width: 1.6; display: none; }
.key { display: flex; flex-wrap: wrap; gap: 4px 20px; color: var(--muted); font-size: 12.5px;
  margin: 8px 4px 0; }
.key i { display: inline-block; width: 9px; height: 9px; border-radius: 50%; margin-right: 5px; }
.key .ramp { width: 84px; border-radius: 3px; margin: 0 6px; background: linear-gradient(90deg,
  var(--o0), var(--o1), var(--o2), var(--o3), var(--o4), var(--o5)); }
.key .bar { width: 1px; border-radius: 0; background: var(--muted); }
.key .bar.stopped { background: var(--budget); width: 2px; }
.effects { display: grid; grid-template-columns: repeat(auto-fit, minmax(400px, 1fr)); gap: 12px; }
.effects .panel { margin: 0; padding: 12px 16px 10px; }
.heads { display: grid; grid-template-columns: 32% 37% 1fr; color: var(--muted);
  font-size: 11.5px; }
.gain rect { fill: var(--front); } .cost rect { fill: var(--random); }
.unsure rect { opacity: .28; } svg .unsure .value { fill: var(--muted); }
.whisker { stroke: var(--ink); stroke-width: 1.2; opacity: .75; }
svg .level.won { font-weight: 700; fill: var(--winner); }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums;
  width: 100%; }
th { text-align: right; font-weight: 500; color: var(--muted); padding: 4px 10px;
  border-bottom: 1px solid var(--hair); white-space: nowrap; }
.sort th { cursor: pointer; user-select: none; } .sort th:hover { color: var(--ink); }
td { text-align: right; padding: 4px 10px; border-bottom: 1px solid var(--hair);
  white-space: nowrap; }
th:first-child, td:first-child, .sort :is(th, td):last-child { text-align: left; }
tr:last-child td { border-bottom: 0; } tr.win td { color: var(--winner); font-weight: 600; }
tr[data-row]:hover td { background: var(--page); }
td.fill { background: linear-gradient(var(--o2), var(--o2)) no-repeat right 10px bottom 2px;
  background-size: calc(var(--share) * 60%) 2px; }
td.changed { font-weight: 700; color: var(--winner); }
.pill { display: inline-block; border-radius: 99px; padding: 0 9px; font-size: 12px;
  border: 1px solid currentColor; }
pre { background: var(--card); border: 1px solid var(--hair); border-radius: 10px; margin: 8px 0;
  padding: 12px 16px; overflow: auto; max-height: 420px; font: 12.5px/1.5 ui-monospace,
  SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.split { display: flex; height: 26px; border-radius: 6px; overflow: hidden; margin: 8px 0;
  gap: 2px; } .split div { min-width: 2px; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(430px, 760px)); gap: 12px; }
.facts td:first-child { color: var(--muted); } .facts td + td { text-align: left;
  white-space: normal; overflow-wrap: anywhere; }
pre.shell { white-space: pre-wrap; }
details { margin: 8px 0; } summary { cursor: pointer; color: var(--muted); }
#tip { position: fixed; display: none; z-index: 9; pointer-events: none; max-width: 460px;
  background: var(--card); color: var(--ink); border: 1px solid var(--hair); border-radius: 8px;
  padding: 10px 12px; font-size: 12.5px; box-shadow: 0 6px 24px rgb(0 0 0 / .18); }
#tip table { font-size: 12px; width: auto; margin-top: 6px; } #tip td, #tip th {
  padding: 1px 8px 1px 0; border: 0; text-align: left; }
footer { margin-top: 56px; color: var(--muted); font-size: 12.5px; }
@media (max-width: 560px) { main { padding: 24px 12px 48px; }
  .effects, .facts { grid-template-columns: 1fr; } }
@media print { .panel, .card, pre { break-inside: avoid; } pre { max-height: none; } }
"""

# Hover and keyboard: the nearest dot of a chart answers, the same trial is ringed in every chart.
SCRIPT = """
const data = JSON.parse(document.getElementById("data").textContent);
const tip = document.getElementById("tip");
const charts = [...document.querySelectorAll("svg.chart")].map(svg => ({svg,
  ring: svg.querySelector(".ring"),
  dots: [...svg.querySelectorAll("[data-n]")].map(e => { const b = e.getBBox();
    return {n: +e.dataset.n, x: b.x + b.width / 2, y: b.y + b.height / 2}; })}));
const element = (name, text) => { const e = document.createElement(name);
  if (text !== undefined) e.textContent = text; return e; };
function choices(row) {
  const lines = new Map(), columns = [];
  data.decisions.forEach((name, i) => {
    if (row.choices[i] < 0) return;
    const split = name.match(/^(.*?\\d+)[_./](.+)$/) || [name, name, "choice"];
    if (!columns.includes(split[2])) columns.push(split[2]);
    if (!lines.has(split[1])) lines.set(split[1], {});
    lines.get(split[1])[split[2]] = data.options[i][row.choices[i]];
  });
  const table = element("table"), head = table.insertRow();
  ["", ...columns].forEach(c => head.append(element("th", c)));
  for (const [name, values] of lines) { const line = table.insertRow();
    line.append(element("td", name));
    columns.forEach(c => line.append(element("td", values[c] ?? ""))); }
  return table;
}
function show(n, x, y) {
  for (const {ring, dots} of charts) { const dot = dots.find(d => d.n === n);
    ring.style.display = dot ? "inline" : "none";
    if (dot) { ring.setAttribute("cx", dot.x); ring.setAttribute("cy", dot.y); } }
  const row = data.trials[n];
  if (!row) { tip.style.display = "none"; return; }
  tip.replaceChildren(element("b", `trial ${n}, ${row.state}`));
  row.lines.forEach(line => tip.append(element("div", line)));
  tip.append(choices(row));
  tip.style.display = "block";
  const w = tip.offsetWidth, h = tip.offsetHeight;
  tip.style.left = Math.max(4, x + 18 + w > innerWidth ? x - w - 14 : x + 18) + "px";
  tip.style.top = Math.max(4, Math.min(y + 14, innerHeight - h - 6)) + "px";
}
function hide() { tip.style.display = "none";
  charts.forEach(c => c.ring.style.display = "none"); }
charts.forEach(({svg, dots}) => {
  svg.addEventListener("pointermove", event => {
    const p = new DOMPoint(event.clientX, event.clientY)
      .matrixTransform(svg.getScreenCTM().inverse());
    let best = null, least = 18 ** 2;
    for (const d of dots) { const away = (d.x - p.x) ** 2 + (d.y - p.y) ** 2;
      if (away < least) { least = away; best = d; } }
    best ? show(best.n, event.clientX, event.clientY) : hide();
  });
  svg.addEventListener("pointerleave", hide);
});
document.querySelectorAll("tr[data-row]").forEach(row => {
  row.addEventListener("pointermove", e => show(+row.dataset.row, e.clientX, e.clientY));
  row.addEventListener("pointerleave", hide);
});
document.querySelectorAll("table.sort th").forEach(head => head.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], i = head.cellIndex;
  const sign = head.dataset.sign === "1" ? -1 : 1;
  head.dataset.sign = sign;
  const key = row => row.cells[i].dataset.v ?? row.cells[i].textContent;
  const number = text => text === "" || isNaN(text) ? null : +text;
  [...body.rows].sort((a, b) => { const x = key(a), y = key(b), p = number(x), q = number(y);
    const order = p !== null && q !== null ? p - q : x.localeCompare(y);
    return sign * order; }).forEach(row => body.append(row));
}));
"""
