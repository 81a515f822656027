"""A trace as text: what the file holds, and one round with its trees, its path and its costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.viewer.layout import children_of, plain_line, visible
from ddtree_sglang.viewer.rounds import Part, Round
from ddtree_sglang.viewer.statistics import (
    FORWARDS,
    decisions,
    expected_per_round,
    measured_share,
    requests,
    shapes,
    time_share,
    tokens_per_round,
)
from ddtree_sglang.viewer.trace_file import Run, Summary, Trace
from ddtree_sglang.viewer.vocabulary import Vocabulary

MOST_REQUESTS = 20
MOST_DECISIONS = 8
BAR = 40
_CODES = {"good": "32;1", "root": "34;1", "dim": "2", "bold": "1"}


@dataclass(frozen=True)
class Ink:
    """Colours a text where the terminal has colours."""

    has_colour: bool

    def __call__(self, kind: str, text: str) -> str:
        """The text as it is printed."""
        return f"\x1b[{_CODES[kind]}m{text}\x1b[0m" if self.has_colour else text


def overview(trace: Trace, run: Run, rounds: Sequence[Summary], ink: Ink) -> str:
    """What these rounds of the run hold: how much, how well, at which cost, for whom."""
    span = f"{len(rounds)} rounds, {rounds[0].number} to {rounds[-1].number}"
    lines = [f"{ink('bold', str(trace.path))}: {span}"]
    if run.server:
        lines.append(f"  {describe_server(run.server)}")
    lines += [f"  {one}" for one in remarks(trace, run)]
    lines += ["", *_accept_lines(rounds), "", *aligned(_shape_rows(rounds)), "", *_request_lines(rounds)]
    return "\n".join(lines)


def describe_server(server: Mapping[str, Any]) -> str:
    """One line of the server's own facts."""
    parts = [str(server.get("model", "")).rstrip("/").rsplit("/", 1)[-1]]
    parts += [str(server[name]) for name in ("dtype", "attention_backend") if server.get(name)]
    parts += [f"{label} {server[name]}" for name, label in (("num_nodes", "N"), ("policy", "policy")) if name in server]
    parts += [f"since {server['started']}"] if server.get("started") else []
    return plain_line(", ".join(part for part in parts if part))


def remarks(trace: Trace, run: Run) -> list[str]:
    """What a reader has to know of what is not shown."""
    found = []
    if len(trace.runs) > 1:
        shown = 1 + next(index for index, one in enumerate(trace.runs) if one is run)
        found.append(f"run {shown} of {len(trace.runs)}: the file has other starts of a server, which --run shows")
    every = run.server.get("trace_every", 1)
    if isinstance(every, int) and every > 1:
        found.append(f"one of {every} rounds was traced")
    found += [f"left out: {count} x {reason}" for reason, count in trace.skipped.items()]
    return found


def _accept_lines(rounds: Sequence[Summary]) -> Iterator[str]:
    tokens, expected = tokens_per_round(rounds), expected_per_round(rounds)
    if tokens is not None:
        told = "" if expected is None else f"; expected {expected:.2f}, {_percent(tokens, expected)} of it came"
        yield f"accept length {tokens:.2f} tokens a request and round{told}"
    if (share := measured_share(rounds)) is not None:
        yield f"from one round to the next it took {share:.0%} of the time that was expected"
    if (share := time_share(rounds)) is not None:
        yield f"stages of rounds took {share:.0%} of the time that was expected from one round to the next"
    if found := decisions(rounds):
        yield "decided: " + ", ".join(
            f"{plain_line(name)} {count}" for name, count in found.most_common(MOST_DECISIONS)
        )


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.0f} %" if whole else "none"


def _shape_rows(rounds: Sequence[Summary]) -> Iterator[list[str]]:
    times = [f"{name} ms" for name in (*FORWARDS, "rest")]
    yield ["requests", "nodes", "rounds", "ms/round", *times, "tokens", "expected", "ms/token"]
    for shape in shapes(rounds):
        forwards = [shape.stages_ms.get(name, 0.0) for name in FORWARDS]
        rest = sum(shape.stages_ms.values()) - sum(forwards)
        spent = (shape.round_ms, *forwards, rest)
        yield [
            str(shape.batch_size),
            _or_dash(shape.num_nodes, "d"),
            str(shape.num_rounds),
            *(f"{value:.1f}" for value in spent),
            *(_or_dash(value, ".2f") for value in (shape.tokens, shape.expected_tokens)),
            _or_dash(shape.token_ms, ".1f"),
        ]


def _request_lines(rounds: Sequence[Summary]) -> Iterator[str]:
    found = requests(rounds)
    rows = [["request", "rounds", "tokens", "tokens/round", "nodes"]]
    for one in found[-MOST_REQUESTS:]:
        length = None if one.tokens is None else one.tokens / one.num_rounds
        nodes = (one.least_nodes, one.most_nodes)
        span = "-" if None in nodes else f"{nodes[0]}" if nodes[0] == nodes[1] else f"{nodes[0]} to {nodes[1]}"
        row = [plain_line(one.request_id), str(one.num_rounds), _or_dash(one.tokens, "d"), _or_dash(length, ".2f")]
        rows.append([*row, span])
    if len(found) > MOST_REQUESTS:
        yield f"the last {MOST_REQUESTS} of {len(found)} requests:"
    yield from aligned(rows)


def aligned(rows: Iterator[list[str]] | Sequence[list[str]]) -> Iterator[str]:
    """Columns set right, the first one left."""
    cells = list(rows)
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    for row in cells:
        first, *others = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join([first.strip().ljust(widths[0]), *others]).rstrip()


def _counted(count: int | None, thing: str) -> str:
    return f"{_or_dash(count, 'd')} {thing}{'' if count == 1 else 's'}"


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def listing(rounds: Sequence[Summary]) -> str:
    """A line for each round."""
    rows = [["round", "requests", "nodes", "ms", "tokens", "expected", "decision"]]
    for one in rounds:
        counts = [str(one.number), str(one.batch_size), _or_dash(one.num_nodes, "d"), f"{one.total_ms:.1f}"]
        tokens = [_or_dash(one.tokens, "d"), _or_dash(one.expected_tokens, ".2f")]
        rows.append([*counts, *tokens, plain_line(one.decision or "")])
    return "\n".join(aligned(rows if any(one.decision for one in rounds) else [row[:-1] for row in rows]))


# -- one round --------------------------------------------------------------------------------------------------------


def picture(number: int, found: Round, vocabulary: Vocabulary, ink: Ink, took_ms: float | None = None) -> str:
    """One round: its costs, then each request's tree, the accepted path marked. `took_ms`: to the next round."""
    requests_of = _counted(found.batch_size, "request")
    lines = [f"{ink('bold', f'round {number}')}: {requests_of} of {_counted(found.num_nodes, 'node')}"]
    if found.decision is not None:
        lines.append(f"  decision: {plain_line(found.decision)}")
    lines += [f"  {line}" for line in _cost_lines(found, took_ms)]
    for part in found.parts:
        lines += ["", *_part_lines(part, vocabulary, ink)]
    return "\n".join(lines)


def _cost_lines(found: Round, took_ms: float | None) -> Iterator[str]:
    words = ((found.expected_ms, "expected"), (took_ms, "measured"))
    parts = [f"{spent:.2f} {word}" for spent, word in words if spent is not None]
    told = f" in stages, {' and '.join(parts)} to the next round" if parts else ""
    nodes = (found.num_nodes or 0) * found.batch_size
    per_node = f", {found.total_ms / nodes:.3f} a node" if nodes else ""
    per_token = f", {found.total_ms / found.tokens:.2f} an emitted token" if found.tokens else ""
    yield f"{found.total_ms:.2f} ms{told}{per_node}{per_token}"
    stages = {plain_line(name): spent for name, spent in found.stages_ms.items()}
    width = max(map(len, stages), default=0)
    for name, spent in stages.items():
        share = min(1.0, spent / found.total_ms) if found.total_ms else 0.0
        each = f"{spent / nodes:8.3f} a node" if nodes else ""
        yield f"{name:<{width}} {spent:8.2f} ms {each}  {'█' * round(BAR * share)}".rstrip()


def _part_lines(part: Part, vocabulary: Vocabulary, ink: Ink) -> Iterator[str]:
    facts = [] if part.prefix_len is None else [f"{part.prefix_len} tokens before"]
    if part.parents and part.walkable < len(part.parents):
        facts.append(f"allows itself {part.walkable} nodes")
    facts += [] if part.expected_tokens is None else [f"expected {part.expected_tokens:.2f}"]
    facts += [] if part.commit_len is None else [f"emitted {part.commit_len}"]
    yield f"{ink('bold', plain_line(part.request_id))}  {', '.join(facts)}"
    if not part.parents:
        yield "  the line has no tree"
    else:
        yield from _tree_lines(part, vocabulary, ink)
    if part.emitted_ids:
        words = " ".join(visible(vocabulary.text(token)) for token in part.emitted_ids)
        yield f"  emitted: {ink('good', words)}"


def _tree_lines(part: Part, vocabulary: Vocabulary, ink: Ink) -> Iterator[str]:
    children = children_of(part.parents)
    stack: list[tuple[int, str, str]] = [(0, "  ", "  ")]
    rows = []
    while stack:
        node, lead, below = stack.pop()
        rows.append((node, lead))
        last = children[node][-1:]
        for child in reversed(children[node]):
            is_last = [child] == last
            stack.append((child, below + ("└─" if is_last else "├─"), below + ("  " if is_last else "│ ")))
    labels = {node: visible(vocabulary.text(part.token_ids[node])) for node, _ in rows}
    width = max(len(lead) + len(labels[node]) for node, lead in rows) + 2
    for node, lead in rows:
        yield _node_line(part, node, lead, labels[node], width, ink)


def _node_line(part: Part, node: int, lead: str, label: str, width: int, ink: Ink) -> str:
    prob = part.path_probs[node]
    # Padded before it is coloured: colour codes have no width.
    name = label.ljust(width - len(lead))
    if node == 0:
        return f"{lead}{ink('root', name)} root"
    if node in part.path:
        return f"{lead}{ink('good', name)} {prob:6.1%} {ink('good', '✓ accepted')}"
    if node >= part.walkable:
        return f"{lead}{ink('dim', name)} {prob:6.1%} {ink('dim', 'beyond its budget')}"
    return f"{lead}{name} {prob:6.1%}"
