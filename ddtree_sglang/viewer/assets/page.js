"use strict";
// Draws what page_data.py chose. All text goes in as text nodes, so a token is never markup.
const data = JSON.parse(document.getElementById("data").textContent);
const find = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const CHAR = 7.9, ROW = 40, NODE = 33, GAP = 34, LONGEST = 18;
const MOST_NODES = 600; // drawn at once; more would make a step slow
const state = { chosen: data.rounds.map((_, place) => place), at: 0, request: -1, tables: false, near: false };

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) node.setAttribute(name, value);
  for (const child of children) if (child !== null) node.append(child);
  return node;
}
const el = (name, attributes, ...children) => fill(document.createElement(name), attributes, children);
const svg = (name, attributes, ...children) => fill(document.createElementNS(SVG, name), attributes, children);
const fixed = (value, digits) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const word = (token) => data.tokens[token];
const percent = (value) => (value >= 0.0995 ? (100 * value).toFixed(0) : (100 * value).toPrecision(2)) + " %";
const round = () => data.rounds[state.chosen[state.at]];
const walkable = (part) => (part.limit === null ? part.parents.length : Math.min(part.limit, part.parents.length));

// -- the tree ---------------------------------------------------------------------------------------------------------

function kindOf(part, node) {
  if (node === 0) return "root";
  if (node === part.parents.length) return "bonus";
  if (part.path.includes(node)) return "accepted";
  return node >= walkable(part) ? "beyond" : "rejected";
}

// A character of an East Asian script takes two columns.
const width = (text) => [...text].reduce((sum, char) => sum + (char.codePointAt(0) > 0x2e7f ? 2 : 1), 0);
function short(text) {
  const chars = [...text];
  return chars.length <= LONGEST ? text : chars.slice(0, LONGEST - 1).join("") + "…";
}

function nodesOf(part) {
  const parents = [...part.parents];
  const tokens = [...part.tokens];
  if (part.rows.length > parents.length) {
    parents.push(part.path[part.path.length - 1]);
    tokens.push(part.emitted[part.emitted.length - 1]);
  }
  const depths = [];
  return parents.map((parent, node) => {
    depths.push(parent < 0 ? 0 : depths[parent] + 1);
    const kind = kindOf(part, node);
    const note = { root: "root", bonus: "bonus" }[kind] || percent(part.probs[node]);
    return { node, parent, kind, note, depth: depths[node], row: part.rows[node], text: word(tokens[node]) };
  });
}

function treeOf(part) {
  const nodes = nodesOf(part);
  const widths = [];
  for (const one of nodes) {
    const wanted = Math.max(50, CHAR * width(short(one.text)) + 18, 6.5 * one.note.length + 18);
    widths[one.depth] = Math.max(widths[one.depth] || 0, wanted);
  }
  const lefts = widths.map((_, depth) => 2 + widths.slice(0, depth).reduce((sum, one) => sum + one + GAP, 0));
  const wide = lefts[lefts.length - 1] + widths[widths.length - 1] + 2;
  const high = ROW * (1 + Math.max(...nodes.map((one) => one.row))) - ROW + NODE + 4;
  const label = `Draft tree of ${part.parents.length} nodes, ${part.path.length - 1} accepted`;
  const drawing = svg("svg", { width: wide, height: high, viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": label });
  const middle = (one) => 2 + ROW * one.row + NODE / 2;
  for (const one of nodes.filter((child) => child.parent >= 0)) {
    const above = nodes[one.parent];
    const [x1, y1, x2, y2] = [lefts[above.depth] + widths[above.depth], middle(above), lefts[one.depth], middle(one)];
    const bend = (x2 - x1) / 2;
    const hot = one.kind === "accepted" || one.kind === "bonus" ? " hot" : "";
    const path = `M${x1} ${y1}C${x1 + bend} ${y1} ${x2 - bend} ${y2} ${x2} ${y2}`;
    drawing.append(svg("path", { class: "edge" + hot, d: path }));
  }
  for (const one of nodes) drawing.append(boxOf(part, one, lefts[one.depth], widths[one.depth]));
  return drawing;
}

function boxOf(part, one, x, wide) {
  const y = 2 + ROW * one.row;
  const group = svg("g", { class: one.kind });
  group.append(svg("title", {}, `${one.text}\n${fateOf(part, one)}`));
  group.append(svg("rect", { class: "box " + one.kind, x, y, width: wide, height: NODE, rx: 7 }));
  group.append(svg("text", { x: x + wide / 2, y: y + 15, "text-anchor": "middle" }, short(one.text)));
  group.append(svg("text", { class: "small", x: x + wide / 2, y: y + 27, "text-anchor": "middle" }, one.note));
  if (one.node < part.parents.length) {
    const place = { x: x + 8, y: y + NODE - 4.5, height: 2, rx: 1 };
    group.append(svg("rect", { class: "track", ...place, width: wide - 16 }));
    group.append(svg("rect", { class: "chance " + one.kind, ...place, width: (wide - 16) * Math.min(1, part.probs[one.node]) }));
  }
  return group;
}

const FATES = {
  root: "the last committed token",
  accepted: "drafted and accepted",
  rejected: "drafted, not accepted",
  beyond: "drafted, beyond what the request allows itself",
  bonus: "the target's own next token",
};
function fateOf(part, one) {
  if (one.kind === "root" || one.kind === "bonus") return FATES[one.kind];
  return `${FATES[one.kind]}; path probability ${percent(part.probs[one.node])}`;
}

// -- one request's part -----------------------------------------------------------------------------------------------

function partOf(part, now, isDrawn) {
  const article = el("article", {});
  const facts = [];
  if (part.prefix !== null) facts.push(`${part.prefix} tokens before`);
  if (part.parents.length) facts.push(`${part.parents.length} nodes`);
  if (walkable(part) < part.parents.length) facts.push(`allows itself ${walkable(part)}`);
  if (part.expected !== null) facts.push(`expected ${fixed(part.expected, 2)} tokens`);
  if (part.commit !== null) facts.push(`emitted ${part.commit}`);
  article.append(el("div", { class: "head" }, el("h3", {}, data.requests[part.request].id), el("span", { class: "soft" }, facts.join(" · "))));
  article.append(textOf(part));
  if (!part.parents.length) {
    article.append(el("p", { class: "soft" }, "This line of the trace has no tree: an older build wrote it."));
    return article;
  }
  const draw = () => {
    const tree = el("div", { class: "tree", tabindex: 0 }, treeOf(part));
    return [el("div", { class: "sides" }, tree, gainsOf(part)), tableOf(part, now)];
  };
  const ask = el("button", {}, `Draw this tree of ${part.parents.length} nodes`);
  ask.addEventListener("click", () => ask.replaceWith(...draw()));
  article.append(...(isDrawn ? draw() : [ask]));
  return article;
}

function textOf(part) {
  const line = el("p", { class: "text" }, part.before);
  if (part.tokens.length) line.append(el("u", { title: FATES.root }, data.running[part.tokens[0]]));
  part.emitted.forEach((token, place) => {
    const isBonus = place === part.emitted.length - 1;
    line.append(el(isBonus ? "i" : "b", { title: isBonus ? FATES.bonus : FATES.accepted }, data.running[token]));
  });
  return line;
}

// A bar per node in the order in which the tree took them: what it added to the tokens that were expected.
function gainsOf(part) {
  const nodes = nodesOf(part).slice(1, part.parents.length);
  if (!nodes.length) return null;
  const [high, left, step] = [96, 34, Math.max(3, Math.min(16, 400 / nodes.length))];
  const most = Math.max(...part.probs.slice(1));
  const wide = left + step * nodes.length + 4;
  const drawing = svg("svg", { width: wide, height: high + 20, role: "img", "aria-label": "Expected tokens that each node added" });
  drawing.append(svg("text", { class: "small", x: left - 5, y: 10, "text-anchor": "end" }, most.toFixed(2)));
  drawing.append(svg("text", { class: "small", x: left - 5, y: high, "text-anchor": "end" }, "0"));
  nodes.forEach((one, place) => {
    const tall = (high * part.probs[one.node]) / Math.max(most, 1e-9);
    const bar = { class: "gain " + one.kind, x: left + step * place + 0.5, y: high - tall, width: Math.max(1, step - 2), height: tall };
    drawing.append(svg("rect", bar, svg("title", {}, `node ${one.node} ${one.text}: ${fixed(part.probs[one.node], 3)}`)));
  });
  drawing.append(svg("line", { class: "grid", x1: left, x2: wide, y1: high + 0.5, y2: high + 0.5 }));
  drawing.append(svg("text", { class: "small", x: left, y: high + 14 }, `node 1 to ${nodes.length}`));
  return el("figure", {}, el("figcaption", { class: "soft" }, "What each node added, in expected tokens"), drawing);
}

function tableOf(part, now) {
  const details = el("details", {}, el("summary", {}, "The nodes, in the order in which the tree took them"));
  const fillIn = () => { if (details.open && details.children.length === 1) details.append(rowsOf(part, now)); };
  details.open = state.tables;
  fillIn();
  details.addEventListener("toggle", () => { state.tables = details.open; fillIn(); });
  return details;
}

function rowsOf(part, now) {
  const perNode = now.nodes ? now.total / (now.nodes * now.batch) : null;
  const titles = ["node", "token", "depth", "parent", "path probability", "given its parent", "expected up to here", "its share, ms", "fate"];
  const body = el("tbody", {});
  let expected = 0;
  for (const one of nodesOf(part).slice(0, part.parents.length)) {
    const within = one.node < walkable(part);
    const prob = part.probs[one.node];
    if (within) expected += prob;
    const given = one.parent >= 0 && part.probs[one.parent] > 0 ? prob / part.probs[one.parent] : null;
    const cells = [one.depth, one.parent < 0 ? "–" : one.parent, fixed(prob, 4), fixed(given, 3), within ? fixed(expected, 2) : "–", fixed(perNode, 2), FATES[one.kind]];
    const name = el("td", {}, el("span", { class: "token" }, one.text));
    body.append(el("tr", {}, el("td", {}, String(one.node)), name, ...cells.map((cell) => el("td", {}, String(cell)))));
  }
  const head = el("thead", {}, el("tr", {}, ...titles.map((title) => el("th", { scope: "col" }, title))));
  return el("div", { class: "scroll" }, el("table", {}, head, body));
}

// -- the round --------------------------------------------------------------------------------------------------------

function showFacts(now) {
  const facts = [
    ["requests", String(now.batch)],
    ["nodes each (N)", now.nodes === null ? "–" : String(now.nodes)],
    ["emitted", fixed(now.tokens, 0), now.expected === null ? "" : ` of ${fixed(now.expected, 2)} expected`],
    ["time", fixed(now.total, 2) + " ms", now.expected_ms === null ? "" : ` of ${fixed(now.expected_ms, 2)} expected`],
    ["per emitted token", now.tokens ? fixed(now.total / now.tokens, 2) + " ms" : "–"],
    ["per verified node", now.nodes ? fixed(now.total / (now.nodes * now.batch), 3) + " ms" : "–"],
  ];
  if (now.free !== null) facts.push(["free KV slots", String(now.free)]);
  const list = facts.map(([name, value, more]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, more || ""))));
  if (now.decision !== null) list.push(el("div", {}, el("dt", {}, "decision"), el("dd", { class: "words" }, now.decision)));
  find("facts").replaceChildren(...list);
}

function swatch(stage) {
  const mark = el("span", { class: "swatch" });
  const known = getComputedStyle(document.documentElement).getPropertyValue("--" + stage);
  mark.style.background = `var(--${known ? stage : "other"})`;
  return mark;
}

function showCosts(now) {
  const stages = Object.entries(now.stages);
  find("bar").replaceChildren(...stages.filter(([, ms]) => ms > 0).map(([stage, ms]) => {
    const piece = swatch(stage);
    piece.className = "";
    piece.style.flex = `${ms} 0 0`;
    piece.title = `${stage} ${fixed(ms, 2)} ms`;
    return piece;
  }));
  const nodes = (now.nodes || 0) * now.batch;
  const each = (ms, count) => (count ? fixed(ms / count, 3) : "–");
  const row = (name, ms, mark) => el("tr", {}, el("th", { scope: "row" }, mark, name),
    ...[fixed(ms, 2), now.total ? percent(ms / now.total) : "–", each(ms, nodes), each(ms, now.tokens)].map((cell) => el("td", {}, cell)));
  const titles = ["stage", "ms", "share", "ms per node", "ms per emitted token"];
  find("costs").replaceChildren(
    el("thead", {}, el("tr", {}, ...titles.map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, ...stages.map(([stage, ms]) => row(stage, ms, swatch(stage)))),
    el("tfoot", {}, row("all", now.total, null)));
}

// -- the course -------------------------------------------------------------------------------------------------------

function pointsOfCourse() {
  if (state.request < 0 && !state.near) return data.course.points;
  const each = (value, batch) => (value === null || !batch ? null : value / batch);
  return state.chosen.map((place) => {
    const one = data.rounds[place];
    const point = { round: one.round, last: one.round, batch: one.batch, ms: one.total };
    if (state.request < 0) return { ...point, nodes: one.nodes, tokens: each(one.tokens, one.batch), expected: each(one.expected, one.batch) };
    const part = one.parts.find((mine) => mine.request === state.request);
    const nodes = part.parents.length ? walkable(part) : one.nodes;
    return { ...point, nodes, tokens: part.commit, expected: part.expected };
  });
}

const PANELS = [
  { title: "nodes a request could walk", whole: "nodes (N)", series: [["nodes", ""]], area: true },
  { title: "tokens: emitted, expected", whole: "tokens a request: emitted, expected", series: [["expected", "expected"], ["tokens", "came"]] },
  { title: "ms a round", whole: "ms a round", series: [["ms", ""]] },
  { title: "requests in the round", whole: "requests", series: [["batch", ""]], area: true },
];
const PANEL = 66, PLOT = 40, LEFT = 44;

let course = { drawn: "" };

// Drawn anew when what it shows or its width changes; else the cursor moves.
function showCourse() {
  const wide = Math.max(320, find("course").clientWidth);
  const wanted = [wide, state.request, state.near].join();
  if (course.drawn !== wanted) course = { drawn: wanted, ...drawCourse(wide) };
  const { points, cursor, x } = course;
  const at = x(nearest(points, round().round));
  cursor.setAttribute("x1", at);
  cursor.setAttribute("x2", at);
  find("near").checked = state.near;
  find("near").parentElement.hidden = data.rounds.length === data.rounds_in_all || state.request >= 0;
  readOut(points[nearest(points, round().round)]);
}

function drawCourse(wide) {
  const points = pointsOfCourse();
  const x = (place) => LEFT + ((wide - LEFT - 8) * (place + 0.5)) / Math.max(1, points.length);
  const drawing = svg("svg", { width: wide, height: PANEL * PANELS.length, role: "img", "aria-label": "Course over the rounds" });
  const inside = points.map((one) => one.round >= data.rounds[0].round && one.round <= data.rounds[data.rounds.length - 1].round);
  const [from, to] = [inside.indexOf(true), inside.lastIndexOf(true)];
  if (state.request < 0 && !state.near && from >= 0 && to - from + 1 < points.length) {
    drawing.append(svg("rect", { class: "shown", x: x(from) - 2, y: 0, width: x(to) - x(from) + 4, height: PANEL * PANELS.length }));
  }
  PANELS.forEach((panel, place) => drawPanel(drawing, panel, points, x, wide, place * PANEL));
  const cursor = svg("line", { class: "cursor", y1: 0, y2: PANEL * PANELS.length });
  drawing.append(cursor);
  const under = (event) => {
    const box = drawing.getBoundingClientRect();
    const found = Math.floor(((event.clientX - box.left - LEFT) / (wide - LEFT - 8)) * points.length);
    return points[Math.min(points.length - 1, Math.max(0, found))];
  };
  drawing.addEventListener("click", (event) => goToRound(under(event).round));
  drawing.addEventListener("pointermove", (event) => readOut(under(event)));
  drawing.addEventListener("pointerleave", () => readOut(points[nearest(points, round().round)]));
  find("course").replaceChildren(drawing);
  return { points, cursor, x };
}

function drawPanel(drawing, panel, points, x, wide, top) {
  const values = panel.series.flatMap(([name]) => points.map((one) => one[name])).filter((value) => value !== null);
  const most = Math.max(1e-9, ...values);
  const y = (value) => top + 18 + PLOT * (1 - value / most);
  drawing.append(svg("text", { class: "small", x: LEFT, y: top + 11 }, state.request < 0 ? panel.whole : panel.title));
  drawing.append(svg("line", { class: "grid", x1: LEFT, x2: wide - 8, y1: y(0), y2: y(0) }));
  if (!values.length) return;
  drawing.append(svg("text", { class: "small", x: LEFT - 6, y: y(most) + 4, "text-anchor": "end" }, most >= 100 ? most.toFixed(0) : String(+most.toFixed(1))));
  drawing.append(svg("text", { class: "small", x: LEFT - 6, y: y(0) + 4, "text-anchor": "end" }, "0"));
  const half = (wide - LEFT - 8) / points.length / 2;
  for (const [name, kind] of panel.series) {
    let line = "", area = "";
    points.forEach((one, place) => {
      if (one[name] === null) { line += " "; return; }
      const [from, to, at] = [x(place) - half, x(place) + half, y(one[name])];
      line += (line && !line.endsWith(" ") ? "L" : "M") + `${from.toFixed(1)} ${at.toFixed(1)}H${to.toFixed(1)}`;
      area += `M${from.toFixed(1)} ${y(0).toFixed(1)}V${at.toFixed(1)}H${to.toFixed(1)}V${y(0).toFixed(1)}`;
    });
    if (panel.area) drawing.append(svg("path", { class: "area", d: area }));
    drawing.append(svg("path", { class: "stroke " + kind, d: line }));
  }
}

function nearest(points, number) {
  let place = 0;
  points.forEach((one, index) => { if (one.round <= number) place = index; });
  return place;
}

function readOut(point) {
  const mean = point.last > point.round ? ` to ${point.last}, means` : "";
  find("readout").textContent = `round ${point.round}${mean}: ${fixed(point.nodes, mean ? 1 : 0)} nodes, ` +
    `${fixed(point.tokens, 2)} tokens of ${fixed(point.expected, 2)} expected, ${fixed(point.ms, 1)} ms`;
}

// -- stepping ---------------------------------------------------------------------------------------------------------

function show() {
  const now = round();
  find("round-title").textContent = `Round ${now.round}`;
  showFacts(now);
  showCosts(now);
  const parts = now.parts.filter((part) => state.request < 0 || part.request === state.request);
  let left = MOST_NODES;
  find("parts").replaceChildren(...parts.map((part, place) => {
    left -= part.parents.length;
    return partOf(part, now, place === 0 || left >= 0);
  }));
  showCourse();
  find("slider").max = state.chosen.length - 1;
  find("slider").value = state.at;
  find("slider").setAttribute("aria-valuetext", `round ${now.round}`);
  find("number").value = now.round;
  find("of").textContent = `${state.at + 1} of ${state.chosen.length}`;
  find("first").disabled = find("back").disabled = state.at === 0;
  find("last").disabled = find("next").disabled = state.at === state.chosen.length - 1;
  history.replaceState(null, "", "#" + now.round);
}

function goTo(at) {
  state.at = Math.min(state.chosen.length - 1, Math.max(0, at));
  show();
}

function goToRound(number) {
  goTo(nearest(state.chosen.map((place) => data.rounds[place]), number));
}

function choose(request) {
  const number = round().round;
  state.request = request;
  const has = (one) => request < 0 || one.parts.some((part) => part.request === request);
  state.chosen = data.rounds.map((_, place) => place).filter((place) => has(data.rounds[place]));
  find("request").value = String(request);
  goToRound(number);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  // Where a person types or chooses, keys are the field's own; of the slider, those that move it.
  const { tagName, type } = event.target;
  if (tagName === "SELECT" || type === "number") return;
  if (type === "range" && event.key.length > 1) return;
  const far = event.shiftKey ? 10 : 1;
  const actions = {
    ArrowLeft: () => goTo(state.at - far),
    ArrowRight: () => goTo(state.at + far),
    Home: () => goTo(0),
    End: () => goTo(state.chosen.length - 1),
    r: () => choose(state.request + 1 < data.requests.length ? state.request + 1 : -1),
    c: () => { state.near = !state.near; showCourse(); },
    n: () => { state.tables = !state.tables; show(); },
  };
  // Inside a tree that is wider than the page the arrows scroll it.
  if (event.target.classList.contains("tree") && event.key.startsWith("Arrow") && event.target.scrollWidth > event.target.clientWidth) return;
  if (!actions[event.key]) return;
  event.preventDefault();
  actions[event.key]();
}

function showLegend() {
  const mark = (kind) => svg("svg", { width: 20, height: 14 }, svg("rect", { class: "box " + kind, x: 1, y: 1, width: 18, height: 12, rx: 4 }));
  const words = Object.entries(FATES).map(([kind, text]) => el("span", {}, mark(kind), text));
  words.push(el("span", {}, "%: the drafter's probability of the path from the root to the node"));
  find("legend").replaceChildren(...words);
}

function start() {
  find("server").textContent = data.server;
  find("notes").replaceChildren(...data.notes.map((note) => el("li", {}, note)));
  const all = el("option", { value: -1 }, `all ${data.requests.length}`);
  const options = data.requests.map((one, place) => el("option", { value: place }, `${one.id} (${one.rounds} rounds)`));
  find("request").replaceChildren(all, ...options);
  find("first").addEventListener("click", () => goTo(0));
  find("back").addEventListener("click", () => goTo(state.at - 1));
  find("next").addEventListener("click", () => goTo(state.at + 1));
  find("last").addEventListener("click", () => goTo(state.chosen.length - 1));
  find("slider").addEventListener("input", (event) => goTo(Number(event.target.value)));
  find("number").addEventListener("change", (event) => goToRound(Number(event.target.value)));
  find("request").addEventListener("change", (event) => choose(Number(event.target.value)));
  find("near").addEventListener("change", (event) => { state.near = event.target.checked; showCourse(); });
  document.addEventListener("keydown", onKey);
  window.addEventListener("resize", showCourse);
  showLegend();
  document.querySelector("main").hidden = false;
  const asked = /^#\d+$/.test(location.hash) ? Number(location.hash.slice(1)) : null;
  if (asked === null) goTo(0);
  else goToRound(asked);
}

start();
