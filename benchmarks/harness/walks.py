"""The walks of a trace as arrays: what the drafter said of each node, and which nodes the target accepted.

Read from the file of `--speculative-ddtree-trace`, by the viewer's own reader. The last round of each request is left
out: there the request's end may have cut the walk, not the target. So are rounds without a drafted node. All trees must
be of one width: a policy that chooses it sees the drafter's word first, so that rounds of any width are a selection.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from ddtree_sglang.viewer.rounds import Part, Round
from ddtree_sglang.viewer.trace_file import Trace

Floats: TypeAlias = npt.NDArray[np.float64]
Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Walks:
    """R rounds of single requests, and the M drafted nodes of their trees; roots are not among them."""

    requests: Ints  # [R] of each round its request, numbered from 0
    num_requests: int
    rounds: Ints  # [M] of each node its round
    places: Ints  # [M] in descending probability, from 1: the first n nodes are the best tree of n
    depths: Ints  # [M] from 1
    probs: Floats  # [M] the drafter's probability of the path to the node
    conditionals: Floats  # [M] the drafter's probability of the node, given its parent
    on_spine: Bools  # [M] each node of the path is its parent's most probable child: the single trajectory
    under_spine: Bools  # [M] its parent is on the spine; the root is
    tried: Bools  # [M] its parent was accepted, so that the target was asked
    accepted: Bools  # [M]

    @property
    def num_rounds(self) -> int:
        """R."""
        return len(self.requests)

    def count(self, chosen: Bools) -> Floats:
        """`[R]`: the chosen nodes of each round."""
        return np.bincount(self.rounds[chosen], minlength=self.num_rounds).astype(np.float64)

    def expected(self, chosen: Bools) -> Floats:
        """`[R]`: of the chosen nodes the number that the drafter expects to be accepted (paper, Proposition 1)."""
        return self.total(chosen, self.probs)

    def total(self, chosen: Bools, values: Floats) -> Floats:
        """`[R]`: the sum of `[M]` values over the chosen nodes of each round."""
        sums = np.bincount(self.rounds[chosen], weights=values[chosen], minlength=self.num_rounds)
        return np.asarray(sums, dtype=np.float64)

    def realised(self, chosen: Bools) -> Floats:
        """`[R]`: how many of the chosen nodes were accepted."""
        return self.count(chosen & self.accepted)


def read_walks(paths: Sequence[Path]) -> Walks:
    """The walks of all trace files together.

    Raises:
        TraceError: a file holds no round.
        ValueError: no round of them has a drafted node and is not its request's last, or trees were not of one width.
    """
    numbers: dict[tuple[int, str], int] = {}
    kept: list[tuple[int, Part]] = []
    widths: set[int] = set()
    for index, path in enumerate(paths):
        rounds = _rounds(path)
        widths |= _widths(rounds)
        for part in _without_last(_parts(rounds)):
            kept.append((numbers.setdefault((index, part.request_id), len(numbers)), part))
    if not kept:
        names = ", ".join(path.name for path in paths)
        raise ValueError(f"a trace must hold trees with drafted nodes, got none in {names}; ask its server for more.")
    if len(widths) > 1:
        raise ValueError(
            f"a trace must hold trees of one width, got {min(widths)} to {max(widths)} nodes, as a policy or a "
            "request's budget cut them; trace a server with --speculative-ddtree-policy fixed, whose requests name no "
            "budget."
        )
    return walks_of(kept)


def _rounds(path: Path) -> list[Round]:
    trace = Trace(path)
    return [trace.load(one) for run in trace.runs for one in run.rounds]


def _widths(rounds: Iterable[Round]) -> set[int]:
    """Nodes that requests which want trees were given, the root included; lines of an older build do not say."""
    return {
        min(one.num_nodes, part.node_limit or one.num_nodes)
        for one in rounds
        if one.num_nodes is not None
        for part in one.parts
        if part.node_limit != 1
    }


def _parts(rounds: Iterable[Round]) -> list[Part]:
    """Requests' parts in rounds that drafted something, oldest first."""
    return [part for one in rounds for part in one.parts if part.walkable > 1 and part.path]


def _without_last(parts: Sequence[Part]) -> Iterable[Part]:
    last = {part.request_id: place for place, part in enumerate(parts)}
    return (part for place, part in enumerate(parts) if last[part.request_id] != place)


def walks_of(parts: Sequence[tuple[int, Part]]) -> Walks:
    """Arrays of parts, each with the number of its request; numbers are from 0 on without a gap."""
    nodes = [_nodes(part) for _, part in parts]
    sizes = [len(one) for one in nodes]
    table = np.concatenate(nodes)
    return Walks(
        requests=np.array([number for number, _ in parts], dtype=np.int64),
        num_requests=1 + max(number for number, _ in parts),
        rounds=np.repeat(np.arange(len(parts)), sizes),
        places=table[:, 0].astype(np.int64),
        depths=table[:, 1].astype(np.int64),
        probs=table[:, 2],
        conditionals=table[:, 3],
        on_spine=table[:, 4] > 0,
        under_spine=table[:, 5] > 0,
        tried=table[:, 6] > 0,
        accepted=table[:, 7] > 0,
    )


def _nodes(part: Part) -> Floats:
    """`[nodes, 8]`: place, depth, probability, conditional, on the spine, under it, tried, accepted."""
    path = set(part.path)
    depths, spine, has_child = [0], [True], [False] * part.walkable
    rows = []
    for node in range(1, part.walkable):
        parent, prob = part.parents[node], part.path_probs[node]
        depths.append(depths[parent] + 1)
        # Nodes stand in descending probability, so the first child is the most probable one.
        spine.append(spine[parent] and not has_child[parent])
        has_child[parent] = True
        conditional = min(1.0, prob / part.path_probs[parent]) if part.path_probs[parent] > 0 else 0.0
        rows.append((node, depths[node], prob, conditional, spine[node], spine[parent], parent in path, node in path))
    return np.array(rows, dtype=np.float64)
