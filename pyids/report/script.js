"use strict";
// Draws the report from the JSON block of the page. Texts of rows reach the page as text nodes only.
const D = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const number = (x) => (x == null ? "–" : Math.abs(x) >= 1000 || Number.isInteger(x)
  ? Math.round(x).toLocaleString("en") : Number(x.toPrecision(3)).toString());
const percent = (x) => `${(100 * x).toFixed(1)}%`;
const times = (x) => (x == null ? "–" : `×${number(x)}`);
const sum = (list) => list.reduce((a, b) => a + b, 0);
const max = (list) => list.reduce((a, b) => Math.max(a, b), 0);
const bytes = (n) => { const k = n ? Math.min(4, Math.floor(Math.log(n) / Math.log(1024))) : 0;
  return `${number(n / 1024 ** k)} ${["B", "KiB", "MiB", "GiB", "TiB"][k]}`; };
const duration = (s) => (s == null ? "–" : s < 90 ? `${s.toFixed(1)} s` : s < 5400 ? `${(s / 60).toFixed(1)} min` : `${(s / 3600).toFixed(1)} h`);

function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child != null).map((child) => (child instanceof Node ? child : String(child))));
  return element;
}
function draw(tag, options = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(options)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}
// A text of the data: in its own direction, and without effect on its neighbors'.
const text = (value, tag = "div") => make(tag, { class: "text", dir: "auto" }, value);
const name = (value) => make("bdi", {}, value);

function section(id, title, ...children) {
  document.querySelector("nav").append(make("a", { href: `#${id}` }, title));
  const made = make("section", { id, "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title` }, title), ...children);
  document.getElementById("main").append(made);
  return made;
}
function bar(share, kind = "") {
  if (!share) return make("span");
  const made = make("span", { class: `bar ${kind}`, "aria-hidden": "true" });
  made.style.width = `${Math.min(100, 100 * share).toFixed(2)}%`;
  return made;
}
// Columns: [heading, "number" or "", function of a row].
function table(columns, rows) {
  const head = make("tr", {}, ...columns.map(([title, kind]) => make("th", { scope: "col", class: kind }, title)));
  const body = rows.map((row) => make("tr", {}, ...columns.map(([, kind, cell]) => make("td", { class: kind }, cell(row)))));
  return make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "table" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body)));
}

// ---- charts ----

const W = 640, H = 220, LEFT = 48, BOTTOM = 24;
function frame(title, low, high, top, format) {
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  svg.append(draw("line", { class: "axis", x1: LEFT, x2: W, y1: H - BOTTOM, y2: H - BOTTOM }));
  const label = (x, y, anchor, value) => svg.append(draw("text", { x, y, "text-anchor": anchor }, value));
  label(LEFT, H - 6, "start", low); label(W, H - 6, "end", high);
  label(LEFT - 6, 14, "end", format(top)); label(LEFT - 6, H - BOTTOM, "end", format(0));
  return svg;
}
function histogram(title, found, names) {
  const shares = found.counts.map((group) => { const all = sum(group) || 1; return group.map((n) => n / all); });
  const top = max(shares.flat()) || 1, bins = found.edges.length - 1, edge = (n) => number(found.edges[n]);
  const svg = frame(title, edge(0), edge(bins), top, percent);
  svg.append(draw("text", { x: (LEFT + W) / 2, y: H - 6, "text-anchor": "middle" }, edge(Math.floor(bins / 2))));
  const step = (W - LEFT) / bins, width = (step - 2) / shares.length;
  shares.forEach((group, g) => group.forEach((share, n) => {
    const height = (share / top) * (H - BOTTOM - 8);
    const made = draw("rect", { class: g ? "other" : "first", x: LEFT + n * step + g * width, y: H - BOTTOM - height, width: Math.max(0.5, width - 0.5), height });
    if (g > 1) made.setAttribute("opacity", Math.max(0.3, 1 - 0.25 * (g - 1)));
    made.append(draw("title", {}, `${names[g]}: ${percent(share)} between ${edge(n)} and ${edge(n + 1)}`));
    svg.append(made);
  }));
  const key = names.map((one, g) => make("span", {}, make("i", { class: `bar ${g ? "second" : ""} dot` }), name(one)));
  const rows = found.edges.slice(0, -1).map((_, n) => n);
  const columns = [["from", "number", edge], ["to", "number", (n) => edge(n + 1)], ...names.map((one, g) => [one, "number", (n) => percent(shares[g][n])])];
  return make("div", {}, make("h3", {}, title), svg, make("div", { class: "legend" }, ...key), make("details", {}, make("summary", {}, "As a table"), table(columns, rows)));
}
// Lines: [class, values, label]; values above 0 on a logarithmic axis if `log`.
function lines(title, xs, list, log = false) {
  const map = (v) => (log ? Math.log(Math.max(v, 1e-9)) : v);
  const all = list.flatMap(([, values]) => values.map(map));
  const low = Math.min(...all, log ? 0 : Infinity), high = Math.max(...all, log ? 0 : -Infinity), span = high - low || 1;
  const back = (v) => number(log ? Math.exp(v) : v);
  const svg = frame(title, xs[0], xs[xs.length - 1], 1, (v) => back(v ? high : low));
  const x = (n) => LEFT + 4 + (n * (W - LEFT - 8)) / Math.max(1, xs.length - 1);
  const y = (v) => 8 + (H - BOTTOM - 12) * (1 - (map(v) - low) / span);
  if (log && (high - map(1)) / span > 0.08 && (map(1) - low) / span > 0.08) {
    svg.append(draw("line", { class: "axis", x1: LEFT, x2: W, y1: y(1), y2: y(1) }), draw("text", { x: LEFT - 6, y: y(1) + 4, "text-anchor": "end" }, "1"));
  }
  for (const [kind, values, label] of list) {
    const path = draw("path", { class: kind, d: values.map((v, n) => `${n ? "L" : "M"}${x(n).toFixed(1)},${y(v).toFixed(1)}`).join("") });
    path.append(draw("title", {}, label));
    svg.append(path);
    values.forEach((v, n) => {
      const dot = draw("circle", { class: kind.replace("line1", "first").replace("line2", "other"), cx: x(n), cy: y(v), r: 3 });
      dot.append(draw("title", {}, `${label}: ${number(v)} at ${xs[n]}`));
      svg.append(dot);
    });
  }
  return svg;
}

// ---- clusters ----

const C = D.clusters, P = D.points;
const position = new Map(C ? C.id.map((id, n) => [id, n]) : []);
const first = (n) => C.weights[n][0], last = (n) => C.weights[n][C.weights[n].length - 1];
const change = (n) => (C.weights[n].length ? last(n) / first(n) : 1);
const words = (n) => C.words[n].join(", ") || "no words in common";
const detail = make("div", { id: "detail", tabindex: -1, "aria-live": "polite" }, make("p", { class: "note" }, "Choose a point, or a cluster in the table below."));
let chosen = null;

function chooseCluster(id, focus = false, point = null) {
  chosen = C ? id : null;
  const n = position.get(id);
  const parts = [];
  if (C) parts.push(make("h3", {}, `Cluster ${id}`));
  if (n != null) {
    parts.push(make("p", {}, make("b", {}, text(words(n), "span"))));
    parts.push(make("p", {}, `${number(C.size[n])} rows, ${number(C.selected[n])} selected` + (C.weights[n].length ? `; weight ${times(first(n))} → ${times(last(n))} of an equal one` : "")));
    if (C.weights[n].length > 1) parts.push(lines(`Weight of cluster ${id} over the rounds`, C.rounds.map((r) => `round ${r}`), [["line1", C.weights[n], `cluster ${id}`]], true));
  }
  if (point != null) parts.push(make("p", { class: "note" }, `Row ${P.id[point]}, ${where(point)}`), text(P.text[point]));
  let rows = n != null ? C.examples[n] : [];
  if (!rows.length && C && P) rows = P.cluster.flatMap((c, k) => (c === id ? [[P.id[k], P.text[k]]] : [])).slice(0, 3);
  for (const [row, value] of rows) parts.push(make("p", { class: "note" }, `Example: row ${row}`), text(value));
  if (C) parts.push(make("button", { type: "button", onclick: () => { chosen = null; detail.replaceChildren(make("p", { class: "note" }, "No cluster chosen.")); paint(); } }, "Show all clusters"));
  detail.replaceChildren(...parts);
  paint();
  if (focus) { detail.scrollIntoView({ block: "nearest" }); detail.focus({ preventScroll: true }); }
}
const where = (k) => `${C ? `cluster ${P.cluster[k]}, ` : ""}${P.sources[P.source[k]]}, ${P.round[k] ? (D.rounds.length ? `drawn in round ${P.round[k]}` : "selected") : "not selected"}`;

// ---- the map ----

const canvas = make("canvas", { tabindex: 0, role: "application", "aria-label": "Map of the embedding space. Arrow keys go from point to point, Enter shows the cluster, Escape leaves." });
const tip = document.getElementById("tip");
const coloring = make("select", { id: "coloring", onchange: () => paint() }, ...["cluster", "source", "round", "weight"].filter((by) => C || (by !== "cluster" && by !== "weight")).map((by) => make("option", { value: by }, by)));
const onlySelected = make("input", { type: "checkbox", id: "only", onchange: () => paint() });
const legend = make("div", { class: "legend" });
let places = [], current = null;
const dark = matchMedia("(prefers-color-scheme: dark)");
const hue = (n) => `hsl(${((n * 137.508) % 360).toFixed(0)} 62% ${dark.matches ? 64 : 44}%)`;
function weightColor(w) { // blue where weight grew, orange where it faded
  const t = Math.max(-1, Math.min(1, Math.log2(Math.max(w, 1e-6)) / 3)), light = dark.matches ? 70 - 12 * Math.abs(t) : 62 - 20 * Math.abs(t);
  return `hsl(${t >= 0 ? 212 : 26} ${(90 * Math.abs(t)).toFixed(0)}% ${light.toFixed(0)}%)`;
}
function roundColor(r, rounds) { return r ? `hsl(${(250 - (220 * (r - 1)) / Math.max(1, rounds - 1)).toFixed(0)} 80% ${dark.matches ? 66 : 45}%)` : getComputedStyle(document.body).getPropertyValue("--gone"); }
function color(k) {
  if (coloring.value === "cluster") return hue(P.cluster[k]);
  if (coloring.value === "source") return hue(P.source[k] * 3 + 1);
  if (coloring.value === "round") return roundColor(P.round[k], Math.max(1, D.rounds.length));
  return weightColor(C.point_weight[k]);
}
function paint() {
  if (!P) return;
  const width = canvas.clientWidth || 600, height = Math.round(Math.min(560, width * 0.8)), ratio = Math.min(2, window.devicePixelRatio || 1);
  canvas.width = width * ratio; canvas.height = height * ratio;
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  const scale = Math.min(width, height * 1.25) / 2 - 12;
  places = P.x.map((x, k) => [width / 2 + x * scale, height / 2 - P.y[k] * scale * Math.min(1, (height - 20) / (2 * scale))]);
  const order = P.x.map((_, k) => k).sort((a, b) => !!P.round[a] - !!P.round[b]);
  for (const k of order) {
    if (onlySelected.checked && !P.round[k]) continue;
    context.globalAlpha = chosen != null && P.cluster[k] !== chosen ? 0.07 : P.round[k] ? 0.95 : 0.55;
    context.fillStyle = color(k);
    context.beginPath(); context.arc(...places[k], P.round[k] ? 3.4 : 2.2, 0, 7); context.fill();
  }
  context.globalAlpha = 1;
  if (current != null) {
    context.strokeStyle = getComputedStyle(document.body).color; context.lineWidth = 2;
    context.beginPath(); context.arc(...places[current], 7, 0, 7); context.stroke();
  }
  paintLegend();
}
function paintLegend() {
  const entry = (fill, label) => { const dot = make("i", { class: "dot" }); dot.style.background = fill; return make("span", {}, dot, name(label)); };
  const by = coloring.value;
  let entries = [];
  if (by === "source") entries = P.sources.slice(0, 12).map((one, n) => entry(hue(n * 3 + 1), one)).concat(P.sources.length > 12 ? [make("span", {}, `and ${P.sources.length - 12} more`)] : []);
  else if (by === "round") entries = [0, ...D.rounds.map((_, n) => n + 1)].concat(D.rounds.length ? [] : [1]).map((r) => entry(roundColor(r, Math.max(1, D.rounds.length)), r ? (D.rounds.length ? `round ${r}` : "selected") : "not selected"));
  else if (by === "weight") entries = [0.125, 0.5, 1, 2, 8].map((w) => entry(weightColor(w), times(w)));
  else entries = [make("span", {}, "one hue a cluster; large dots are selected rows")];
  legend.replaceChildren(...entries);
}
const visible = (k) => (!onlySelected.checked || P.round[k]) && (chosen == null || P.cluster[k] === chosen);
function nearest(x, y, within) {
  let best = null, least = within * within;
  places.forEach(([px, py], k) => { const d = (px - x) ** 2 + (py - y) ** 2; if (d < least && visible(k)) { best = k; least = d; } });
  return best;
}
function point(k, x, y) {
  if (k !== current) { current = k; paint(); }
  tip.hidden = k == null;
  if (k == null) return;
  tip.replaceChildren(make("div", { class: "note" }, `Row ${P.id[k]}, `, name(where(k))), text(P.text[k]));
  tip.style.left = `${Math.max(8, Math.min(x + 14, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${Math.max(8, y + 18 + tip.offsetHeight > innerHeight ? y - tip.offsetHeight - 12 : y + 18)}px`;
}
function step(key) { // the nearest point in the direction of the key
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  const [x, y] = current != null ? places[current] : [canvas.clientWidth / 2, canvas.clientHeight / 2];
  let best = null, least = Infinity;
  places.forEach(([px, py], k) => {
    const along = (px - x) * dx + (py - y) * dy, aside = Math.abs((px - x) * dy) + Math.abs((py - y) * dx);
    if (k !== current && visible(k) && along > 0.5 && along + 2 * aside < least) { best = k; least = along + 2 * aside; }
  });
  if (best == null) return;
  const box = canvas.getBoundingClientRect();
  point(best, box.left + places[best][0], box.top + places[best][1]);
}
canvas.addEventListener("mousemove", (event) => point(nearest(event.offsetX, event.offsetY, 14), event.clientX, event.clientY));
canvas.addEventListener("mouseleave", () => point(null));
canvas.addEventListener("blur", () => point(null));
canvas.addEventListener("click", (event) => { const k = nearest(event.offsetX, event.offsetY, 18); if (k != null) chooseCluster(P.cluster[k], false, k); });
canvas.addEventListener("keydown", (event) => {
  if (event.key.startsWith("Arrow")) { event.preventDefault(); step(event.key); }
  else if (event.key === "Enter" && current != null) chooseCluster(P.cluster[current], true, current);
  else if (event.key === "Escape") { point(null); chosen = null; paint(); }
});
addEventListener("resize", () => paint());
dark.addEventListener("change", () => paint());

// ---- sections ----

function clusterTable() {
  const columns = [["cluster", "number", (n) => C.id[n]], ["words", "name", words], ["rows", "number", (n) => C.size[n]], ["selected", "number", (n) => C.selected[n]]];
  if (C.rounds.length) columns.push(["first weight", "number", first], ["last weight", "number", last], ["change", "number", change]);
  if (C.score.some((s) => s != null)) columns.push(["score", "number", (n) => C.score[n]]);
  const state = { by: C.rounds.length ? "change" : "rows", down: true, most: 30, filter: "" };
  const body = make("tbody"), count = make("span", { class: "note", role: "status" });
  const heads = columns.map(([title, kind]) => make("th", { scope: "col", class: kind }, make("button", { type: "button", onclick: () => { state.down = state.by === title ? !state.down : kind === "number"; state.by = title; fill(); } }, title)));
  const more = make("button", { type: "button", onclick: () => { state.most = Infinity; fill(); } }, "Show all");
  function fill() {
    const value = columns.find(([title]) => title === state.by)[2];
    const rows = C.id.map((_, n) => n).filter((n) => !state.filter || `${C.id[n]} ${words(n)}`.toLowerCase().includes(state.filter));
    rows.sort((a, b) => { const [x, y] = [value(a), value(b)]; const d = typeof x === "string" ? x.localeCompare(y) : (x ?? -Infinity) - (y ?? -Infinity); return (state.down ? -d : d) || C.id[a] - C.id[b]; });
    heads.forEach((head, n) => head.setAttribute("aria-sort", columns[n][0] === state.by ? (state.down ? "descending" : "ascending") : "none"));
    body.replaceChildren(...rows.slice(0, state.most).map((n) => make("tr", {}, ...columns.map(([title, kind, cell]) => make("td", { class: kind },
      title === "cluster" ? make("button", { type: "button", "data-cluster": C.id[n], onclick: () => chooseCluster(C.id[n], true) }, C.id[n])
        : title === "words" ? text(words(n)) : title === "change" || title.endsWith("weight") ? times(cell(n)) : number(cell(n)))))));
    count.textContent = `${Math.min(rows.length, state.most)} of ${number(C.total)} clusters` + (C.total > C.id.length ? `; the ${C.id.length} whose weight changed most, or the largest, are listed` : "");
    more.hidden = rows.length <= state.most;
  }
  fill();
  const filter = make("input", { type: "search", id: "filter", oninput: (event) => { state.filter = event.target.value.toLowerCase(); fill(); } });
  return [make("div", { class: "controls" }, make("label", { for: "filter" }, "Filter by word "), filter, count, more),
    make("div", { class: "scroll", tabindex: 0, role: "group", "aria-label": "Clusters" }, make("table", {}, make("thead", {}, make("tr", {}, ...heads)), body))];
}
function mix(rows, names) {
  const top = max(rows.flatMap((row) => row.shares)) || 1;
  return table([["", "name", (row) => name(row.name)], ...names.map((one, n) => [one, "number", (row) => percent(row.shares[n])]),
    ["", "bars", (row) => make("div", {}, ...row.shares.map((share, n) => bar(share / top, n ? "second" : "")))]], rows);
}

function runReport() {
  const read = D.funnel[0].rows, selected = D.funnel[D.funnel.length - 1].rows;
  document.querySelector("h1").append(name(D.title));
  document.getElementById("lead").textContent = `${number(selected)} rows selected out of ${number(read)} read` + (C ? `, from ${number(C.total)} clusters` : "") + (D.rounds.length ? ` in ${D.rounds.length} rounds` : "") + ". Charts rest on " + `${number(D.looked_at.pool)} rows of the pool and ${number(D.looked_at.selected)} selected ones.`;
  section("rows", "What became of the rows",
    table([["", "name", (s) => s.name], ["rows", "number", (s) => number(s.rows)], ["share", "number", (s) => percent(s.rows / (read || 1))],
      ["", "bars", (s) => bar(s.rows / (read || 1), s.kind === "stay" ? "" : "gone")], ["listed in", "name", (s) => (s.rows && s.file) || ""]], D.funnel),
    D.reasons.length ? make("div", {}, make("h3", {}, "Why rows are unusable"), table([["reason", "name", (r) => text(r.reason)], ["rows", "number", (r) => number(r.rows)]], D.reasons)) : null);
  if (P) {
    section("map", "Map of the embedding space",
      make("div", { class: "controls" }, make("label", { for: "coloring" }, "Color by "), coloring, make("label", {}, onlySelected, " selected rows only")),
      make("div", { class: "two" }, make("div", {}, canvas, legend, make("p", { class: "note" }, P.projection === "pca" ? `Principal components: ${percent(P.explained)} of the variance of the ${number(P.id.length)} points shown; near on the map need not be near in the space.` : `UMAP of ${number(P.id.length)} points: distances between groups mean little.`)), detail));
    if (!C) { coloring.value = "round"; detail.replaceChildren(make("p", { class: "note" }, "Choose a point.")); }
  }
  if (C) {
    if (C.rounds.length > 1) {
      const order = C.id.map((_, n) => n).sort((a, b) => change(b) - change(a));
      const grew = order.filter((n) => change(n) > 1.001).slice(0, 6), faded = order.reverse().filter((n) => change(n) < 0.999).slice(0, 6);
      const list = (which, kind) => make("div", {}, ...which.map((n) => make("details", {}, make("summary", {}, make("b", { class: kind }, `${times(first(n))} → ${times(last(n))} `), `cluster ${C.id[n]}: `, text(words(n), "span")), ...C.examples[n].map(([, value]) => text(value)))));
      section("weights", "Which clusters grew, which faded",
        lines("Weights of clusters by round, as multiples of an equal weight", C.rounds.map((r) => `round ${r}`), [...grew.map((n) => ["line1", C.weights[n], `cluster ${C.id[n]} (${words(n)})`]), ...faded.map((n) => ["line2", C.weights[n], `cluster ${C.id[n]} (${words(n)})`])], true),
        make("p", { class: "note" }, "The weights of the clusters that changed most, as multiples of an equal weight, on a logarithmic axis."),
        make("div", { class: "two" }, make("div", {}, make("h3", {}, "Grew"), grew.length ? list(grew, "up") : "none"), make("div", {}, make("h3", {}, "Faded"), faded.length ? list(faded, "down") : "none")));
    }
    section("clusters", "Clusters", ...clusterTable());
  }
  if (D.rounds.length) section("rounds", "Rounds", table([["round", "number", ([, n]) => n], ["drawn", "number", ([r]) => number(r.drawn)], ["from clusters", "number", ([r]) => number(r.clusters)], ["training loss", "number", ([r]) => number(r.loss)],
    ["training", "number", ([r]) => duration(r.seconds)], ["scored rows", "number", ([r]) => number(r.scored_rows)], ["gain in standard errors", "number", ([r]) => number(r.paired_t)], ["clusters differ by", "number", ([r]) => number(r.between_cluster_z)],
    ["weights changed", "", ([r]) => (r.weights_changed == null ? "–" : r.weights_changed ? "yes" : "no: the scores are noise")]], D.rounds.map((r, n) => [r, n + 1])));
  const both = ["pool", "selected"];
  section("mix", "Before and after", make("h3", {}, "Sources"), mix(D.mix.map((row) => ({ name: row.name, shares: [row.pool, row.selected] })), both),
    D.mix.length > 12 ? make("p", { class: "note" }, `${D.mix.length} lines, the largest first; the table scrolls.`) : null,
    D.lengths ? histogram("Characters of the answers", D.lengths, both) : null, D.lengths ? make("p", { class: "note" }, `Median ${number(D.lengths.median[0])} in the pool, ${number(D.lengths.median[1])} selected. Bins of equal ratio.`) : null);
  if (D.scores || D.quality) section("scores", "Scores and quality", make("div", { class: "charts" }, D.scores ? histogram("Scores of the probe rows", D.scores, D.scores.counts.map((_, n) => `round ${n + 1}`)) : null, D.quality ? histogram(`Quality: ${D.quality.name}`, D.quality, both) : null));
  if (D.k) section("k", `Why ${number(D.k.k)} clusters`, make("p", {}, `The number of clusters was ${D.k.why}.` + (D.k.elbow_k ? ` The elbow of the inertia is at ${number(D.k.elbow_k)}.` : "")),
    D.k.grid.length ? make("div", { class: "charts" }, make("div", {}, make("h3", {}, "Silhouette by number of clusters"), lines("Silhouette by number of clusters", D.k.grid.map((g) => g.k), [["line1", D.k.grid.map((g) => g.silhouette), "silhouette"]])), make("div", {}, make("h3", {}, "Inertia a row by number of clusters"), lines("Inertia by number of clusters", D.k.grid.map((g) => g.k), [["line2", D.k.grid.map((g) => g.inertia), "inertia"]]))) : null);
  section("costs", "What it took", table([["stage", "name", (c) => c.stage], ["wall time", "number", (c) => duration(c.seconds)]], D.costs), make("p", { class: "note" }, "As the times of the files say: a pause counts, and a copied folder tells nothing."),
    table([["in the run folder", "name", ([entry]) => name(entry)], ["size", "number", ([, size]) => bytes(size)]], Object.entries(D.disk)));
  section("provenance", "Provenance", table([["", "name", ([key]) => key], ["", "name", ([, value]) => text(value)]], D.provenance), make("h3", {}, "Configuration"), make("pre", { tabindex: 0, dir: "auto" }, D.config));
  paint();
}

function comparison() {
  const names = D.selections.map((s, n) => `[${n + 1}]`), of = new Map(D.selections.map((s, n) => [s.name, names[n]]));
  document.querySelector("h1").append(name(D.title));
  document.getElementById("lead").textContent = `${names.length} selections side by side.`;
  section("selections", "Selections", table([["", "", (s) => of.get(s.name)], ["selection", "name", (s) => name(s.name)], ["rows", "number", (s) => number(s.rows)], ["distinct", "number", (s) => number(s.distinct)], [`mean ${D.unit}`, "number", (s) => number(s.mean_length)], ["median", "number", (s) => number(s.median_length)],
    ["longest", "number", (s) => number(s.longest)], ["groups", "number", (s) => number(s.topics)], ["effective groups", "number", (s) => number(s.effective_topics)], ["distance from [1]", "number", (s) => number(s.distance)]], D.selections));
  section("overlap", "Rows in common", table([["pair", "", (o) => `${of.get(o.first)} ${of.get(o.second)}`], ["rows", "number", (o) => number(o.common)], ["Jaccard", "number", (o) => number(o.jaccard)], ["", "bars", (o) => bar(o.jaccard)]], D.overlaps));
  section("mix", `By ${D.group_by}`, mix(D.mix, names), D.groups > D.mix.length ? make("p", { class: "note" }, `The ${D.mix.length} of ${number(D.groups)} groups that differ most.`) : null);
  for (const [measure, found] of Object.entries(D.histograms)) section(`by-${measure}`, measure, histogram(measure === "length" ? `Length in ${D.unit}` : measure, found, names));
  const evaluated = D.evaluations.filter((e) => e);
  if (evaluated.length) section("loss", "Loss on held-out rows", table([["model", "name", (e) => name(e.model)], ["NLL per token, macro average", "number", (e) => number(e.macro.token_nll)]], evaluated));
}

if (D.kind === "run") runReport(); else comparison();
