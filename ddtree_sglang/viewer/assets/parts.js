// One request's part in a round: text, tree, what each node added, table of nodes.
function partOf(part, now, isDrawn) {
  const article = el("article", {});
  const facts = [];
  if (part.prefix !== null) facts.push(`${part.prefix} tokens before`);
  if (part.parents.length) facts.push(`${part.parents.length} node${part.parents.length === 1 ? "" : "s"}`);
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
