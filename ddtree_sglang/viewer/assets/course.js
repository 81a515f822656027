// The course of nodes, tokens, time and requests over the rounds.
function pointsOfCourse() {
  if (state.request < 0 && !state.near) return data.course.points;
  const each = (value, batch) => (value === null || !batch ? null : value / batch);
  return state.chosen.map((place) => {
    const one = data.rounds[place];
    const point = { round: one.round, last: one.round, batch: one.batch, ms: one.total, expected_ms: one.expected_ms, took_ms: one.took_ms };
    if (state.request < 0) return { ...point, nodes: one.nodes, tokens: each(one.tokens, one.batch), expected: each(one.expected, one.batch) };
    const part = one.parts.find((mine) => mine.request === state.request);
    const nodes = part.parents.length ? walkable(part) : one.nodes;
    return { ...point, nodes, tokens: part.commit, expected: part.expected };
  });
}

const PANELS = [
  { title: "nodes a request could walk", whole: "nodes (N)", series: [["nodes", ""]], area: true },
  { title: "tokens: emitted, expected", whole: "tokens a request: emitted, expected", series: [["expected", "expected"], ["tokens", "came"]] },
  { title: "ms: stages; to the next round measured, expected", whole: "ms: a round's stages; to the next round measured, expected", series: [["expected_ms", "expected"], ["took_ms", "came"], ["ms", ""]] },
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
    `${fixed(point.tokens, 2)} tokens of ${fixed(point.expected, 2)} expected, ${fixed(point.ms, 1)} ms` +
    (point.took_ms === null ? "" : ` in stages, ${fixed(point.took_ms, 1)} to the next round`);
}
