"""What policy "adaptive" computes of a round's trees and requests, compiled: each stage of a round is one call.

Loops that call each other stand in one file: numba keeps machine code by the file of the loop that is called first, and
would not notice that one of another file has changed.

A request's record is a row of numbers, `[3 + W]`: drafted tokens that its trees promised, those that were kept, how
many of the W widths were ever seen, and from CURVE on the drafted tokens that are expected by width. No width was seen
of a request that no tree was drafted for; it is taken for the usual one, which has a record of its own. Letters as in
`core.draft_tree`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ddtree_sglang.core.compiled import compiled

Floats = npt.NDArray[np.float64]
Logprobs = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

EDGES: Floats = np.array([0, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
"""Bins of the probability of a node given its parent, as the drafter says."""
BINS = len(EDGES) - 1
MAX_DEPTH = 16
"""Deeper nodes share a class."""

PROMISED, KEPT, SEEN, CURVE = 0, 1, 2, 3
"""Places in a request's record."""
PACE = 0.15
"""How fast a request's curve follows its newest tree."""
FALLS = 0.5
"""What a further node is hoped to bring, of the last one, where one width alone was seen."""
DOUBT, DOUBT_OF_LUCK = 12.0, 30.0
"""Drafted tokens that a request's trees must have promised before its own record counts half: one that keeps less than
usual, and one that keeps more. The latter is mostly luck. Believed as soon, it made what was expected of a round worse
than no record does, and trees too wide (benchmarks/LOG.md, 2026-11-29).
"""
MEMORY, LONG_MEMORY = 0.97, 0.995
"""What of a request's record is left after each of its rounds, and of the whole server's."""


# -- trees -----------------------------------------------------------------------------------------------------------


@compiled(
    "void(float32[:, :], int64[:, :], int64[:, :], float64[:, :], int64[:, :], int64[:, :])",
    "void(float64[:, :], int64[:, :], int64[:, :], float64[:, :], int64[:, :], int64[:, :])",
)
def classify_nodes(
    logprobs: Logprobs, tree_parents: Ints, depths: Ints, conditional: Floats, cells: Ints, parents: Ints
) -> None:
    """Fill `conditional`, `cells` and `parents`, `[B, N]` each; see `honest_probs.NodeClasses`."""
    batch_size, num_nodes = tree_parents.shape
    has_child = np.empty(num_nodes, dtype=np.bool_)
    on_spine = np.empty(num_nodes, dtype=np.bool_)
    for row in range(batch_size):
        has_child[:] = False
        for node in range(num_nodes):
            parent = tree_parents[row, node]
            # Nodes stand in descending probability, so a parent's first child is its most probable one.
            is_first, said = True, 1.0 if node == 0 else 0.0
            if parent >= node:
                raise IndexError("a node must stand behind its parent")
            if node > 0 and parent >= 0:
                is_first, has_child[parent] = not has_child[parent], True
                said = np.exp(min(np.float64(logprobs[row, node]) - np.float64(logprobs[row, parent]), 0.0))
            else:
                parent = node
            on_spine[node] = is_first and (parent == node or on_spine[parent])
            depth = min(max(depths[row, node], 1), MAX_DEPTH) - 1
            kind = (depth * 2 + (0 if on_spine[parent] else 1)) * 2 + (0 if is_first else 1)
            place = 0
            while place < BINS - 1 and said >= EDGES[place + 1]:
                place += 1
            conditional[row, node], parents[row, node] = said, parent
            cells[row, node] = kind * BINS + place


@compiled("void(float64[:], float64[:], int64[:, :], float64[:, :], int64[:, :], float64[:, :])")
def follow_paths(base: Floats, slope: Floats, cells: Ints, conditional: Floats, parents: Ints, held: Floats) -> None:
    """Fill `held [B, N]` with the corrected probability of each node's path."""
    for row in range(len(held)):
        held[row, 0] = 1.0
        for node in range(1, held.shape[1]):
            parent = parents[row, node]
            if parent == node:  # padding
                held[row, node] = 0.0
            else:
                cell = cells[row, node]
                held[row, node] = held[row, parent] * (base[cell] + slope[cell] * conditional[row, node])


@compiled("void(float64[:, :], int64[:], float64[:, :])")
def sum_to_widths(probs: Floats, widths: Ints, drafted: Floats) -> None:
    """Fill `drafted [B, W]`; see `width_choice.drafted_tokens`."""
    for row in range(len(probs)):
        node, total = 1, 0.0
        for place in range(len(widths)):
            while node < min(widths[place], probs.shape[1]):
                total += probs[row, node]
                node += 1
            drafted[row, place] = total


@compiled(
    "void(int64[:, :], boolean[:, :], int64[:, :], float64[:, :], int64[:, :], float64[:], float64[:], float64[:])"
)
def count_trials(
    accept_index: Ints,
    counted: Bools,
    cells: Ints,
    conditional: Floats,
    parents: Ints,
    said: Floats,
    hits: Floats,
    trials: Floats,
) -> None:
    """Add the trials of a round to the tables; arguments as of `HonestProbs.learn`."""
    batch_size, num_nodes = cells.shape
    is_accepted = np.empty(num_nodes, dtype=np.bool_)
    for row in range(batch_size):
        is_accepted[:] = False
        for place in range(accept_index.shape[1]):
            node = accept_index[row, place]
            if node >= num_nodes:
                raise IndexError("a path must hold nodes of its tree")
            if node >= 0:
                is_accepted[node] = True
        for node in range(1, num_nodes):
            parent = parents[row, node]
            if counted[row, node] and parent != node and is_accepted[parent]:
                cell = cells[row, node]
                trials[cell] += 1.0
                said[cell] += conditional[row, node]
                hits[cell] += 1.0 if is_accepted[node] else 0.0


# -- requests --------------------------------------------------------------------------------------------------------


@compiled("float64(float64[:], float64)")
def honesty(record: Floats, usual: float) -> float:
    """Factor on what its trees promise, `usual` before it has a record: sampled requests keep less than greedy."""
    doubt = DOUBT if record[KEPT] < usual * record[PROMISED] else DOUBT_OF_LUCK
    factor: float = (doubt * usual + record[KEPT]) / (doubt + record[PROMISED])
    return factor


@compiled("void(float64[:], float64, float64, float64)")
def keep(record: Floats, promised: float, kept: float, memory: float) -> None:
    """One more round of drafted tokens."""
    record[PROMISED] = memory * record[PROMISED] + promised
    record[KEPT] = memory * record[KEPT] + kept


@compiled("void(float64[:], float64[:], int64, int64[:])")
def follow_tree(record: Floats, drafted: Floats, num_seen: int, widths: Ints) -> None:
    """A newer tree, of which the first `num_seen` of `widths` were seen; the others keep their distance.

    The first of them that never was seen is hoped for, or a server that began narrow would stay so: nodes come in
    descending probability, so what each of its further nodes brings goes on falling as it fell.
    """
    own = record[CURVE:]
    old = own[num_seen - 1]
    for place in range(num_seen):
        own[place] += PACE * (drafted[place] - own[place])
    own[num_seen:] += own[num_seen - 1] - old
    record[SEEN] = max(record[SEEN], num_seen)
    if num_seen == record[SEEN] and 1 < num_seen < len(widths):
        last = (own[num_seen - 1] - own[num_seen - 2]) / (widths[num_seen - 1] - widths[num_seen - 2])
        falls = FALLS
        if num_seen > 2 and own[num_seen - 2] > own[num_seen - 3]:
            before = (own[num_seen - 2] - own[num_seen - 3]) / (widths[num_seen - 2] - widths[num_seen - 3])
            falls = min(1.0, last / before)
        hoped = own[num_seen - 1] + (widths[num_seen] - widths[num_seen - 1]) * last * falls
        own[num_seen:] += max(0.0, hoped - own[num_seen])


@compiled("void(float64[:, :], float64[:], float64[:, :], int64, int64[:])")
def follow_round(table: Floats, usual: Floats, curves: Floats, num_seen: int, widths: Ints) -> None:
    """A round's trees are followed by its requests' records, the rows of `table`, and their mean by the usual one."""
    mean = np.zeros(curves.shape[1])
    for row in range(len(table)):
        if table[row, SEEN] == 0:
            table[row, SEEN:] = usual[SEEN:]
        follow_tree(table[row], curves[row], num_seen, widths)
        mean += curves[row]
    follow_tree(usual, mean / len(table), num_seen, widths)


@compiled("float64(float64[:, :], float64[:], float64[:, :], int64[:], int64, float64[:, :])")
def keep_round(
    table: Floats,
    usual: Floats,
    curves: Floats,  # [B, W] that trees promised
    last: Ints,  # [B] places of the widest width that each request has nodes for
    verified: int,  # the place of the width that was verified
    came: Floats,  # [B, 3]: drafted tokens kept, 1 if a request goes on, and, filled, what was expected of it
) -> float:
    """What a round's targets kept, for the records of requests that go on; what was expected of those, in all."""
    factor, expected = honesty(usual, 1.0), 0.0
    for row in range(len(table)):
        promised, kept = curves[row, min(verified, last[row])], came[row, 0]
        came[row, 2] = honesty(table[row], factor) * promised
        if came[row, 1] > 0:
            expected += came[row, 2]
            keep(table[row], promised, kept, MEMORY)
            keep(usual, promised, kept, LONG_MEMORY)
    return expected


# -- a round ---------------------------------------------------------------------------------------------------------


@compiled("void(float64[:], float64[:], float64, int64)")
def add_request(
    tokens: Floats,  # [W] of a round by its width, changed
    drafted: Floats,  # [W] what the request is expected to have accepted
    factor: float,
    last: int,  # the widest width that the request has nodes for, as a place
) -> None:
    """One more request of a round: what it brings at each width."""
    for place in range(len(tokens)):
        tokens[place] += factor * drafted[min(place, last)]


@compiled("void(float64[:, :], float64[:], float64[:, :], int64[:], float64[:])")
def expect_tokens(table: Floats, usual: Floats, curves: Floats, last: Ints, tokens: Floats) -> None:
    """Fill `tokens [W]`: what a round emits by its width, the targets' own tokens included."""
    factor = honesty(usual, 1.0)
    tokens[:] = len(table)
    for row in range(len(table)):
        if table[row, SEEN] == 0:
            add_request(tokens, usual[CURVE:], factor, last[row])
        else:
            add_request(tokens, curves[row], honesty(table[row], factor), last[row])


@compiled("int64(float64[:], float64[:])")
def most_per_second(tokens: Floats, seconds: Floats) -> int:
    """See `width_choice.best_width`."""
    best, most = 0, 0.0
    for place in range(len(tokens)):
        rate = tokens[place] / seconds[place] if seconds[place] > 0 else 0.0
        if rate > most:
            best, most = place, rate
    return best


@compiled("int64(float64[:, :], float64[:], int64[:], float64[:], float64[:])")
def expect_round(table: Floats, usual: Floats, last: Ints, seconds: Floats, tokens: Floats) -> int:
    """Before the draft: fill `tokens [W]`; the place of the best width that drafts, 1 if there is none.

    Args:
        seconds: of the widths that are allowed, the first ones.
    """
    expect_tokens(table, usual, table[:, CURVE:], last, tokens)
    return 1 + most_per_second(tokens[1 : len(seconds)], seconds[1:])


LOOK = (
    "int64[:, :], int64[:, :], float64[:], float64[:], float64[:, :], int64[:, :], int64[:, :], int64[:], "
    "float64[:, :], float64[:, :], float64[:], int64[:], float64[:], float64[:])"
)


@compiled(f"int64(float32[:, :], {LOOK}", f"int64(float64[:, :], {LOOK}")
def look_at_trees(
    logprobs: Logprobs,
    tree_parents: Ints,
    depths: Ints,
    base: Floats,
    slope: Floats,
    conditional: Floats,
    cells: Ints,
    parents: Ints,
    widths: Ints,
    curves: Floats,
    table: Floats,
    usual: Floats,
    last: Ints,
    seconds: Floats,
    tokens: Floats,
) -> int:
    """After the draft: fill the classes of nodes, `curves [B, W]` and `tokens [W]`, and follow the trees.

    Returns:
        The place of the best width that drafts, of those that the trees have.
    """
    classify_nodes(logprobs, tree_parents, depths, conditional, cells, parents)
    held = np.empty(tree_parents.shape)
    follow_paths(base, slope, cells, conditional, parents, held)
    sum_to_widths(held, widths, curves)
    num_seen = 0
    while num_seen < len(widths) and widths[num_seen] <= tree_parents.shape[1]:
        num_seen += 1
    follow_round(table, usual, curves, num_seen, widths)
    expect_tokens(table, usual, curves, last, tokens)
    return 1 + most_per_second(tokens[1 : min(num_seen, len(seconds))], seconds[1:num_seen])
