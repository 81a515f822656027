"""Picture of one round: `python -m benchmarks plot_round FILE.json` writes an SVG from what `record_round` recorded.

The tree grows to the right, a column per draft depth; a node's most probable child continues its row. Text is SVG text
on a card of its own colour, so that the picture reads on a light and on a dark page. The same record gives the same
bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from ddtree_sglang.viewer.layout import node_depths, node_rows, visible
from ddtree_sglang.whole_file import replace_text

CHAR_WIDTH = 8.0  # of the 13 px monospace font, pixels
NODE_HEIGHT, ROW_HEIGHT, COLUMN_GAP, MARGIN, TOP = 40, 54, 46, 28, 96
MIN_NODE_WIDTH, BOTTOM, MIN_WIDTH = 52, 106, 820
CONTEXT_CHARS = 64

LIGHT = {
    ".card": "fill:#ffffff;stroke:#d0d7de",
    ".t": "fill:#1f2328",
    ".s": "fill:#59636e",
    ".edge": "fill:none;stroke:#afb8c1",
    ".hot": "stroke:#1a7f37;stroke-width:3",
    ".rejected": "fill:#f6f8fa;stroke:#afb8c1",
    ".root": "fill:#ddf4ff;stroke:#0969da",
    ".accepted": "fill:#dafbe1;stroke:#1a7f37",
    ".ok": "fill:#1a7f37",
    ".bonus": "fill:#ffffff;stroke:#1a7f37;stroke-dasharray:5 3",
}
DARK = {
    ".card": "fill:#0d1117;stroke:#30363d",
    ".t": "fill:#e6edf3",
    ".s": "fill:#9198a1",
    ".edge": "fill:none;stroke:#565f69",
    ".hot": "stroke:#3fb950;stroke-width:3",
    ".rejected": "fill:#161b22;stroke:#565f69",
    ".root": "fill:#0c2d6b;stroke:#58a6ff",
    ".accepted": "fill:#12341d;stroke:#3fb950",
    ".ok": "fill:#3fb950",
    ".bonus": "fill:#0d1117;stroke:#3fb950;stroke-dasharray:5 3",
}


@dataclass(frozen=True)
class Box:
    """One node as drawn; `parent` indexes the boxes, -1 at the root; `row` counts from 0 downwards."""

    label: str
    note: str
    kind: str  # root, accepted, rejected or bonus: its CSS class
    parent: int
    depth: int
    row: int


def boxes(record: dict[str, Any]) -> list[Box]:
    """The record's nodes and the bonus token, which hangs below the last accepted node."""
    nodes, path = record["nodes"], record["path"]
    bonus = {"token": record["bonus_token"], "parent": path[-1]}
    drawn = [*nodes, bonus]
    parents = [node["parent"] for node in drawn]
    depths, rows = node_depths(parents), node_rows(parents)
    kinds = ["root", *("accepted" if n in path else "rejected" for n in range(1, len(nodes))), "bonus"]
    notes = ["root", *(f"{100 * node['path_prob']:.0f} %" for node in nodes[1:]), "bonus"]
    return [
        Box(visible(node["token"]), note, kind, node["parent"], depth, rows[n])
        for n, (node, note, kind, depth) in enumerate(zip(drawn, notes, kinds, depths, strict=True))
    ]


def svg(record: dict[str, Any]) -> str:
    """The whole picture."""
    drawn = boxes(record)
    widths = [
        max(MIN_NODE_WIDTH, *(CHAR_WIDTH * len(box.label) + 20 for box in drawn if box.depth == depth))
        for depth in range(max(box.depth for box in drawn) + 1)
    ]
    lefts = [MARGIN + sum(widths[:depth]) + COLUMN_GAP * depth for depth in range(len(widths))]
    remarks = _remarks(drawn, lefts, widths)
    width = max(MIN_WIDTH, lefts[-1] + widths[-1] + MARGIN, *(x + CHAR_WIDTH * len(text) for x, _, text, _ in remarks))
    height = TOP + ROW_HEIGHT * (1 + max(box.row for box in drawn)) + BOTTOM
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
            f'height="{height:.0f}" role="img" aria-label="{escape(_summary(record))}">',
            _style(),
            f'<rect class="card" x="0.5" y="0.5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="10"/>',
            *_heading(record),
            *(_edge(drawn[box.parent], box, lefts, widths) for box in drawn if box.parent >= 0),
            *(_node(box, lefts[box.depth], widths[box.depth]) for box in drawn),
            *(_text(*remark) for remark in remarks),
            *_legend(record, height),
            "</svg>\n",
        ]
    )


def _style() -> str:
    light, dark = ("".join(f"{name}{{{rule}}}" for name, rule in rules.items()) for rules in (LIGHT, DARK))
    return (
        "<style>text{font:13px -apple-system,'Segoe UI',Helvetica,Arial,'DejaVu Sans',sans-serif}"
        "text.m{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
        f"text.n{{font-size:11px}}text.h{{font-size:14px;font-weight:600}}.edge{{stroke-width:1.5}}{light}"
        f"@media (prefers-color-scheme:dark){{{dark}}}</style>"
    )


def _text(x: float, y: float, text: str, classes: str, anchor: str = "start") -> str:
    return f'<text class="{classes}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _heading(record: dict[str, Any]) -> list[str]:
    before = visible(record["answer_before"])
    shown = before if len(before) <= CONTEXT_CHARS else "\u2026" + before[-CONTEXT_CHARS:]
    return [
        _text(MARGIN, 34, _summary(record), "t h"),
        _text(MARGIN, 58, "answer so far:", "s"),
        _text(MARGIN + 104, 58, shown, "t m"),
    ]


def _summary(record: dict[str, Any]) -> str:
    return (
        f"One target forward over {len(record['nodes'])} tokens emits {record['commit_len']}; the drafter's "
        f"first choices alone would emit {record['chain_commit_len']}."
    )


def _node(box: Box, left: float, width: float) -> str:
    top = TOP + ROW_HEIGHT * box.row
    middle = left + width / 2
    return (
        f'<rect class="{box.kind}" x="{left:.1f}" y="{top}" width="{width:.1f}" height="{NODE_HEIGHT}" rx="7"/>'
        + _text(middle, top + 18, box.label, "t m", "middle")
        + _text(middle, top + 33, box.note, "s n", "middle")
    )


def _edge(parent: Box, child: Box, lefts: Sequence[float], widths: Sequence[float]) -> str:
    x1, x2 = lefts[parent.depth] + widths[parent.depth], lefts[child.depth]
    y1, y2 = (TOP + ROW_HEIGHT * box.row + NODE_HEIGHT / 2 for box in (parent, child))
    hot = " hot" if child.kind in ("accepted", "bonus") else ""
    bend = (x2 - x1) / 2
    return (
        f'<path class="edge{hot}" d="M{x1:.1f} {y1:.1f}C{x1 + bend:.1f} {y1:.1f} {x2 - bend:.1f} {y2:.1f} '
        f'{x2:.1f} {y2:.1f}"/>'
    )


def _remarks(
    drawn: Sequence[Box], lefts: Sequence[float], widths: Sequence[float]
) -> list[tuple[float, float, str, str]]:
    """Words at the end of two rows, what a chain drafts and what the round emits: x, y, text, CSS class."""
    emitted = "".join(box.label for box in drawn if box.kind in ("accepted", "bonus"))
    remarks = {0: ("\u2190 the drafter's first choices, a chain", "s")}
    remarks[drawn[-1].row] = (f"\u2190 emitted: {emitted}", "ok")
    ends = {row: max(lefts[box.depth] + widths[box.depth] for box in drawn if box.row == row) for row in remarks}
    return [(ends[row] + 12, TOP + ROW_HEIGHT * row + 25, *remark) for row, remark in remarks.items()]


def _legend(record: dict[str, Any], height: float) -> list[str]:
    y, x, parts = height - 74, float(MARGIN), []
    for kind, meaning in (
        ("root", "last committed token"),
        ("accepted", "drafted and accepted"),
        ("bonus", "target's own next token"),
        ("rejected", "drafted, rejected"),
    ):
        parts += [
            f'<rect class="{kind}" x="{x:.1f}" y="{y - 11:.1f}" width="18" height="14" rx="4"/>',
            _text(x + 24, y, meaning, "s"),
        ]
        x += 46 + 6.9 * len(meaning)
    tree, chain = record["answer_accept_length"], record["answer_chain_accept_length"]
    mean = f"mean of all rounds: {tree:.2f} tokens, first choices alone {chain:.2f}"
    notes = (
        "%: the drafter's probability of the path from the root to the node.",
        f"Round {record['round']} of {record['num_rounds']}, the one where the tree gained most; {mean}.",
    )
    return [*parts, *(_text(MARGIN, height - 42 + 18 * line, note, "s n") for line, note in enumerate(notes))]


def main(argv: Sequence[str]) -> int:
    """Write the SVG and print its path."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("file", type=Path, help="JSON written by record_round")
    parser.add_argument("--output", type=Path, help="default: beside it, with the ending .svg")
    args = parser.parse_args(argv)
    output = args.output or args.file.with_suffix(".svg")
    replace_text(output, svg(json.loads(args.file.read_text(encoding="utf-8"))))
    print(output)
    return 0
