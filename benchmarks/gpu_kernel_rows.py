"""A row for every kernel of `ddtree_sglang.kernels`: inputs of a serving size, its oracle, what it must move.

A plain list of functions, without pytest and hypothesis; Triton's interpreter does for it. Whoever adds a kernel adds
its row; tests/benchmarks says which module has none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch

from ddtree_sglang.core import (
    AcceptedPath,
    BuiltTree,
    DraftTree,
    RoundEnds,
    ancestor_mask,
    build_draft_tree,
    build_draft_tree_heap,
    commit_plan,
    commit_round,
    flat_tree_mask,
    layout_draft_tree,
)
from ddtree_sglang.core.ancestor_pages import AncestorPages, ancestor_pages
from ddtree_sglang.core.candidates import LogitTransform, rank_logits
from ddtree_sglang.core.node_penalties import END, PenaltyState, count_tokens, penalize_nodes
from ddtree_sglang.core.round_inputs import round_inputs
from ddtree_sglang.core.window_mask import WindowMask, window_tree_mask

PREFIX_LEN = 2048
PAIR_CANDIDATES = 16  # of a law of pairs: what published selectors are trained for
WINDOW = 1023  # positions before a node's own in a layer with a sliding window
LAYERS, KV_HEADS, HEAD_DIM = 36, 8, 128  # of the KV rows that are moved: the shape of Qwen3-8B

LOGPROB_TOLERANCE = 5e-5
"""The kernel's exponentials are approximate, and a log-partition sums some hundred thousand of them."""


@dataclass(frozen=True)
class Size:
    """What a row is measured at: B requests, N nodes, D drafted positions, a vocabulary of V."""

    batch_size: int
    num_nodes: int
    depth: int = 15
    vocabulary: int = 32768


@dataclass(frozen=True)
class Row:
    """One kernel at one size. `run` launches it; `check` raises DifferentError unless its result is the oracle's.

    `replaced` is what does the same in tensor operations, None where nothing does it without a copy to the host.
    """

    kernel: str
    size: Size
    run: Callable[[], object]
    check: Callable[[], str]
    moved_bytes: int
    replaced: Callable[[], object] | None = None


class DifferentError(Exception):
    """A kernel's result is not its oracle's; the message says where."""


def candidates(size: Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """[B, D, K] ids and log-probabilities on the host, and roots; wide and narrow distributions mixed."""
    generator = torch.Generator().manual_seed(size.batch_size * 1000 + size.depth)
    logits = torch.randn(size.batch_size, size.depth, 1000, generator=generator)
    logits = logits * (0.5 + 4 * torch.rand(size.batch_size, size.depth, 1, generator=generator))
    logprobs, ids = torch.log_softmax(logits, -1).topk(max(1, size.num_nodes - 1), dim=-1)
    return ids, logprobs, torch.zeros(size.batch_size, dtype=torch.int64)


def pair_candidates(size: Size) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The first of `candidates`, and [B, D, K, K] conditionals that raise and lower them by the parent."""
    *laws, roots = candidates(size)
    ids, logprobs = (one[..., :PAIR_CANDIDATES] for one in laws)
    generator = torch.Generator().manual_seed(size.num_nodes)
    change = torch.randn(*ids.shape, ids.shape[2], generator=generator)
    covered = logprobs.logsumexp(-1)[..., None, None]
    return ids, logprobs, roots, (logprobs.unsqueeze(2) + change).log_softmax(-1) + covered


def builder(size: Size, device: torch.device) -> Row:
    """The tree of a batch, its links, positions and mask in one launch; oracle: the heap."""
    return _builder_row("tree_builder", size, device, candidates(size))


def pair_builder(size: Size, device: torch.device) -> Row:
    """The same of a law of pairs."""
    ids, logprobs, roots, pairs = pair_candidates(size)
    return _builder_row("tree_builder of pairs", size, device, (ids, logprobs, roots), pairs)


def _builder_row(
    kernel: str,
    size: Size,
    device: torch.device,
    on_host: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    pairs_on_host: torch.Tensor | None = None,
) -> Row:
    from ddtree_sglang.kernels.tree_builder_triton import build_into

    ids, logprobs, roots = (tensor.to(device) for tensor in on_host)
    pairs = None if pairs_on_host is None else pairs_on_host.to(device)
    prefix_lens = torch.full((size.batch_size,), PREFIX_LEN, device=device)
    cells = size.batch_size * size.num_nodes * (PREFIX_LEN + size.num_nodes)
    flat = torch.zeros(cells, dtype=torch.bool, device=device)
    built = BuiltTree.empty(size.batch_size, size.num_nodes, device, flat)

    def run() -> None:
        build_into(built, ids, logprobs, roots, prefix_lens, pairs)

    def check() -> str:
        run()
        oracle = build_draft_tree_heap(*on_host, size.num_nodes, pairs_on_host)
        for name in ("token_ids", "parents", "depths", "logprobs"):
            _assert_equal(f"tree.{name}", getattr(built.tree, name), getattr(oracle, name))
        return "tree equals the heap's"

    def replaced() -> object:
        tree = build_draft_tree(ids, logprobs, roots, size.num_nodes, pairs)
        return layout_draft_tree(tree, prefix_lens), ancestor_mask(tree.parents, size.depth)

    nodes = size.batch_size * size.num_nodes
    read = ids.numel() * 12 if pairs is None else ids.numel() * 8 + pairs.nbytes
    moved = read + nodes * (6 * 8 + 4) + nodes * size.num_nodes
    return Row(kernel, size, run, check, moved, replaced)


def round_commit(size: Size, device: torch.device) -> Row:
    """Walk, lengths, emitted tokens and rows of the context in one launch; oracle: core's `commit_round`."""
    from ddtree_sglang.kernels.round_commit_triton import commit_round_triton

    tree = build_draft_tree(*candidates(size), size.num_nodes)
    target_ids = _chosen(tree)
    prefix_lens = torch.full((size.batch_size,), PREFIX_LEN)
    moved = DraftTree(*(one.to(device) for one in (tree.token_ids, tree.parents, tree.depths, tree.logprobs)))
    ids, lens, path_len = target_ids.to(device), prefix_lens.to(device), size.depth + 1
    # Two end tokens a request, of which few paths have one.
    end_ids = target_ids[:, -2:]
    limits = RoundEnds.none(size.batch_size, prefix_lens.device)
    ends = RoundEnds(end_ids, limits.limit_lens, limits.node_limits)
    there = RoundEnds(*(one.to(device) for one in (ends.end_ids, ends.limit_lens, ends.node_limits)))

    def run() -> Any:
        return commit_round_triton(moved, ids, lens, path_len, there)

    def check() -> str:
        expected = commit_round(tree, target_ids, prefix_lens, path_len, ends)
        for (name, found), (_, wanted) in zip(_tensors(run()), _tensors(expected), strict=True):
            _assert_equal(name, found, wanted)
        return f"commit equals core's, the longest of {int(expected.path.commit_lens.max())} tokens"

    written = size.batch_size * (4 * path_len * 8 + 9 * 8)
    replaced = lambda: commit_round(moved, ids, lens, path_len, there)  # noqa: E731
    return Row("round_commit", size, run, check, target_ids.numel() * 24 + written, replaced)


def round_inputs_row(size: Size, device: torch.device) -> Row:
    """Slots of tree and block, the block's tokens and positions in one launch; oracle: core's `round_inputs`."""
    from ddtree_sglang.kernels.round_inputs_triton import round_inputs_triton

    generator = torch.Generator().manual_seed(size.batch_size)
    row_len, rows = PREFIX_LEN + 2 * max(size.num_nodes, size.depth + 1), size.batch_size + 3
    table = torch.randperm(rows * row_len, generator=generator).to(torch.int32).view(rows, row_len)
    requests = (
        torch.randperm(rows, generator=generator)[: size.batch_size],
        torch.randint(0, PREFIX_LEN, (size.batch_size,), generator=generator),
        torch.randint(0, size.vocabulary, (size.batch_size,), generator=generator),
    )
    sizes: dict[str, Any] = {"mask_token_id": size.vocabulary - 1, "num_nodes": size.num_nodes}
    sizes["block_size"] = size.depth + 1
    on_device = (table.to(device), *(one.to(device) for one in requests))

    def run() -> Any:
        return round_inputs_triton(*on_device, **sizes)

    def check() -> str:
        expected = round_inputs(table, *requests, **sizes)
        for (name, found), (_, wanted) in zip(_tensors(run()), _tensors(expected), strict=True):
            _assert_equal(name, found, wanted)
        return "slots, block and positions equal core's"

    moved = size.batch_size * (size.num_nodes * 12 + (size.depth + 1) * (12 + 3 * 8))
    return Row("round_inputs", size, run, check, moved, lambda: round_inputs(*on_device, **sizes))


def pages_of_ancestors(size: Size, device: torch.device) -> Row:
    """Page tables of a tree's nodes for FA3 in one launch; oracle: core's `ancestor_pages`."""
    from ddtree_sglang.kernels.ancestor_pages_triton import ancestor_pages_into

    generator = torch.Generator().manual_seed(size.batch_size)
    batch_size, num_nodes, rows = size.batch_size, size.num_nodes, size.batch_size + 3
    ancestors = ancestor_mask(build_draft_tree(*candidates(size), num_nodes).parents)
    row_len = PREFIX_LEN + 2 * num_nodes
    table = torch.randperm(rows * row_len, generator=generator).to(torch.int32).view(rows, row_len)
    indices = torch.randperm(rows, generator=generator)[:batch_size]
    prefix_lens = torch.randint(0, PREFIX_LEN, (batch_size,), generator=generator)
    flat = flat_tree_mask(ancestors, prefix_lens).to(device)
    on_device = (flat, table.to(device), indices.to(device), prefix_lens.to(device))
    nodes = batch_size * num_nodes
    made = AncestorPages(
        torch.empty(nodes, dtype=torch.int32, device=device),
        torch.empty((nodes, num_nodes), dtype=torch.int32, device=device),
    )

    def check() -> str:
        ancestor_pages_into(made, *on_device)
        slots = table[indices.unsqueeze(1), prefix_lens.unsqueeze(1) + torch.arange(num_nodes)]
        for (name, found), (_, wanted) in zip(_tensors(made), _tensors(ancestor_pages(ancestors, slots)), strict=True):
            _assert_equal(name, found, wanted)
        return "page tables equal core's"

    return Row("ancestor_pages", size, lambda: ancestor_pages_into(made, *on_device), check, nodes * num_nodes * 9)


def windows(size: Size, device: torch.device) -> Row:
    """The mask of layers with a sliding window in one launch; oracle: core's `window_tree_mask`."""
    from ddtree_sglang.kernels.window_mask_triton import window_mask_into

    ancestors = ancestor_mask(build_draft_tree(*candidates(size), size.num_nodes).parents)
    prefix_lens = torch.randint(0, PREFIX_LEN, (size.batch_size,), generator=torch.Generator().manual_seed(0))
    made = WindowMask.empty(size.batch_size, size.num_nodes, WINDOW, device)
    inputs = (flat_tree_mask(ancestors, prefix_lens).to(device), prefix_lens.to(device), size.num_nodes, WINDOW)

    def check() -> str:
        window_mask_into(made, *inputs)
        wanted = window_tree_mask(ancestors, prefix_lens, WINDOW)
        _assert_equal("cells", made.cells[: len(wanted.cells)], wanted.cells)
        return "mask equals core's"

    cells = size.batch_size * size.num_nodes * (2 * size.num_nodes + WINDOW)
    return Row("window_mask", size, lambda: window_mask_into(made, *inputs), check, cells)


def kv_move(size: Size, device: torch.device) -> Row:
    """Accepted rows of all layers in one launch; oracle: core's plan carried out by torch, byte for byte."""
    from ddtree_sglang.kernels.kv_move_triton import KVRows, move_accepted_rows

    path_len, pool = min(size.depth + 1, size.num_nodes), size.batch_size * size.num_nodes + 1
    generator = torch.Generator().manual_seed(size.num_nodes)
    layers, width = (LAYERS, KV_HEADS * HEAD_DIM) if device.type != "cpu" else (2, HEAD_DIM)
    buffers = [torch.randn(pool, width, generator=generator).to(torch.bfloat16).to(device) for _ in range(2 * layers)]
    order = torch.randperm(pool - 1, generator=generator) + 1
    slots = order.view(size.batch_size, size.num_nodes).to(device)
    index = torch.zeros(size.batch_size, path_len, dtype=torch.int64)
    for row in index:
        row[1:] = torch.randperm(size.num_nodes - 1, generator=generator)[: path_len - 1].sort().values + 1
    index = index.to(device)
    rows = KVRows.of(buffers)

    def check() -> str:
        lens = (index >= 0).sum(1)
        plan = commit_plan(AcceptedPath(index, lens - 1, lens, index, lens))
        source, target = (slots.gather(1, one).flatten() for one in (plan.source_slots, plan.target_slots))
        expected = [buffer.clone() for buffer in buffers]
        for buffer in expected:
            buffer[target] = buffer[source]
        move_accepted_rows(rows, slots, index)
        for number, (found, wanted) in enumerate(zip(buffers, expected, strict=True)):
            _assert_equal(f"buffer {number}", found.view(torch.int16), wanted.view(torch.int16))
        return f"{2 * layers} buffers equal core's plan"

    moved = 2 * 2 * layers * size.batch_size * (path_len - 1) * width * 2
    return Row("kv_move", size, lambda: move_accepted_rows(rows, slots, index), check, moved)


def ranking(size: Size, device: torch.device) -> Row:
    """Candidates and log-partition from the LM head's own logits; oracle: core's `rank_logits`, ids exactly."""
    from ddtree_sglang.kernels.candidates_triton import rank_logits_triton

    rows, top_k, transform = size.batch_size * size.depth, size.num_nodes - 1, LogitTransform()
    generator = torch.Generator(device=device).manual_seed(size.vocabulary)
    logits = (4 * torch.randn(rows, size.vocabulary, generator=generator, device=device)).to(torch.bfloat16)

    def run() -> Any:
        return rank_logits_triton(logits, top_k, transform)

    def check() -> str:
        found, expected = run(), rank_logits(logits, top_k, transform)
        _assert_equal("topk_ids", found.topk_ids, expected.topk_ids)
        error = float((found.topk_logprobs - expected.topk_logprobs).abs().max())
        if not error <= LOGPROB_TOLERANCE:
            raise DifferentError(f"topk_logprobs differ from the oracle's by {error:.2g}")
        return f"candidates equal core's, log-probabilities to {error:.1e}"

    moved = logits.nbytes + rows * top_k * 12
    return Row("candidates", size, run, check, moved, lambda: _tensor_ranking(logits, top_k))


def penalties(size: Size, device: torch.device) -> Row:
    """Penalties of all nodes in one launch, the count of what a round emits in another; oracle: core's.

    Every request has all penalties and has emitted 1,000 tokens.
    """
    from ddtree_sglang.kernels.node_penalties_triton import count_tokens_triton, penalize_nodes_triton

    tree = build_draft_tree(*candidates(size), size.num_nodes)
    tree = DraftTree(tree.token_ids % size.vocabulary, tree.parents, tree.depths, tree.logprobs)
    state, slots = _penalized_requests(size), torch.arange(size.batch_size)
    walked = commit_round(tree, _chosen(tree) % size.vocabulary, slots, size.depth + 1).path
    logits = torch.randn(size.batch_size * size.num_nodes, size.vocabulary)
    moved = DraftTree(*(one.to(device) for one in (tree.token_ids, tree.parents, tree.depths, tree.logprobs)))
    # Copies, as both sides are counted and penalized in place.
    on_device = PenaltyState(*(one.to(device, copy=True) for _, one in _tensors(state)))
    row, at = logits.to(device, copy=True), slots.to(device)

    def run() -> None:
        penalize_nodes_triton(row, on_device, at, moved)

    def check() -> str:
        rounds = (tree.token_ids[:, 0], walked.token_ids, walked.commit_lens)
        count_tokens(state, slots, *rounds)
        count_tokens_triton(on_device, at, *(one.to(device) for one in rounds))
        for (name, found), (_, wanted) in zip(_tensors(on_device), _tensors(state), strict=True):
            _assert_equal(name, found, wanted)
        row.copy_(logits)
        run()
        expected = logits.clone()
        penalize_nodes(expected, state, slots, tree)
        _assert_equal("logits", row, expected)
        return "logits and counts equal core's, bit for bit"

    nodes = size.batch_size * size.num_nodes
    changed = min(1000, size.vocabulary)
    marks = size.batch_size * size.vocabulary
    return Row("node_penalties", size, run, check, marks + nodes * changed * (4 + 2 * 4))


def _penalized_requests(size: Size) -> PenaltyState:
    generator = torch.Generator().manual_seed(size.batch_size)
    state = PenaltyState.empty(size.batch_size, size.batch_size, size.vocabulary, "cpu")
    state.slot_rows.copy_(torch.randperm(size.batch_size, generator=generator))
    state.frequency.fill_(0.1)
    state.presence.fill_(-0.3)
    state.repetition.fill_(1.05)
    state.lens.fill_(1000)
    state.min_lens.fill_(2000)
    emitted = torch.randint(0, size.vocabulary, (size.batch_size, 1000), generator=generator)
    state.sums.zero_().scatter_add_(1, emitted, torch.full(emitted.shape, 0.1))
    state.marks.zero_().scatter_(1, emitted, 1)
    state.marks[:, :2] |= END
    return state


def _tensor_ranking(logits: torch.Tensor, top_k: int) -> object:
    """What ranks in tensor operations: float32 logits, their log-partition, a top-k."""
    values = logits.float()
    return values.topk(top_k, dim=-1), torch.logsumexp(values, dim=-1)


def _chosen(tree: DraftTree) -> torch.Tensor:
    """`[B, N]` target choices: at nine of ten nodes the most probable child, so that paths have a length."""
    chosen = torch.full_like(tree.token_ids, -7)
    generator = torch.Generator().manual_seed(tree.num_nodes)
    for request, parents in enumerate(tree.parents.tolist()):
        for node, parent in reversed(list(enumerate(parents))):
            if parent >= 0 and torch.rand((), generator=generator) < 0.9:
                chosen[request, parent] = tree.token_ids[request, node]
    return chosen


def _tensors(value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    for field in fields(value):
        held = getattr(value, field.name)
        if is_dataclass(held):
            yield from _tensors(held)
        else:
            yield field.name, held


def _assert_equal(name: str, found: torch.Tensor, expected: torch.Tensor) -> None:
    if found.dtype != expected.dtype or not torch.equal(found.cpu(), expected.cpu()):
        wrong = (found.cpu() != expected.cpu()).sum() if found.shape == expected.shape else "all"
        raise DifferentError(f"{name} differs from the oracle's in {wrong} of {expected.numel()} places")


ROWS: dict[str, Callable[[Size, torch.device], Row]] = {
    "tree_builder_triton": builder,
    "tree_builder_triton, pairs": pair_builder,
    "round_commit_triton": round_commit,
    "round_inputs_triton": round_inputs_row,
    "candidates_triton": ranking,
    "ancestor_pages_triton": pages_of_ancestors,
    "window_mask_triton": windows,
    "node_penalties_triton": penalties,
    "kv_move_triton": kv_move,
}
"""Module of `ddtree_sglang.kernels`, and what it is given if there are several -> its row."""
DEPENDS_ON_VOCABULARY = frozenset({"candidates_triton", "node_penalties_triton"})
"""Modules whose kernels read logits: measured at every vocabulary, the others at one."""
