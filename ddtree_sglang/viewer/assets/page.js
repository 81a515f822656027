// The round's facts and costs, and the steps from round to round.
function showFacts(now) {
  const facts = [
    ["requests", String(now.batch)],
    ["nodes each (N)", now.nodes === null ? "–" : String(now.nodes)],
    ["emitted", fixed(now.tokens, 0), now.expected === null ? "" : ` of ${fixed(now.expected, 2)} expected`],
    ["stages", fixed(now.total, 2) + " ms"],
    ["per emitted token", now.tokens ? fixed(now.total / now.tokens, 2) + " ms" : "–"],
    ["per verified node", now.nodes ? fixed(now.total / (now.nodes * now.batch), 3) + " ms" : "–"],
  ];
  const known = [[now.took_ms, "measured"], [now.expected_ms, "expected"]].filter(([ms]) => ms !== null);
  if (known.length) {
    const [[ms, word], ...others] = known;
    facts.push(["to the next round", fixed(ms, 2) + " ms", ` ${word}` + others.map(([other, told]) => `, ${fixed(other, 2)} ${told}`).join("")]);
  }
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
