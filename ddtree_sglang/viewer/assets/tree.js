// A draft tree as SVG.
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
