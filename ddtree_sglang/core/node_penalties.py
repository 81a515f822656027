"""Penalties and minimum lengths at every node of a tree, as plain decoding has them after that node's path.

Plain decoding keeps, per request, float32 sums that grow by one penalty per emitted token (sampling/penaltylib), adds
the additive ones to the logits and then scales by the repetition penalty (sampling/sampling_batch_info.py,
`update_penalties`). Here the tokens of a path are counted on top of what was emitted before it: the same additions in
the same order, so that the result is equal to the last bit.

A request with a penalty holds one of C rows. Between rounds its row counts every emitted token but the last: the last
one is the next round's root, and so on the path of each of its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import torch

from ddtree_sglang.core.draft_tree import DraftTree

EMITTED = 1
"""Bit of `marks`: the token was emitted, so that presence and repetition count."""
END = 2
"""Bit of `marks`: the token may not be chosen before the minimum length is reached."""


@dataclass(frozen=True)
class PenaltyState:
    """What requests with penalties emitted, C rows on one device; R slots of requests, V tokens."""

    slot_rows: torch.Tensor  # [R] int64, the row of the request in each slot, -1 for one without penalties
    sums: torch.Tensor  # [C, V] float32, the frequency penalty added once per emitted token
    marks: torch.Tensor  # [C, V] uint8, bits EMITTED and END
    lens: torch.Tensor  # [C] int64, tokens counted
    frequency: torch.Tensor  # [C] float32, the request's parameters, and so are the next three
    presence: torch.Tensor  # [C] float32
    repetition: torch.Tensor  # [C] float32
    min_lens: torch.Tensor  # [C] int64, `min_new_tokens`

    @classmethod
    def empty(cls, num_slots: int, num_rows: int, vocab_size: int, device: torch.device | str) -> PenaltyState:
        """No request has a row; what rows hold is undefined."""

        def row(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
            return torch.empty((num_rows, *shape), dtype=dtype, device=device)

        return cls(
            slot_rows=torch.full((num_slots,), -1, dtype=torch.int64, device=device),
            sums=row(vocab_size),
            marks=row(vocab_size, dtype=torch.uint8),
            lens=row(dtype=torch.int64),
            frequency=row(),
            presence=row(),
            repetition=row(),
            min_lens=row(dtype=torch.int64),
        )

    @property
    def num_rows(self) -> int:
        """C."""
        return self.lens.shape[0]

    def grown(self, num_rows: int) -> PenaltyState:
        """The same requests, with room for more."""
        larger = PenaltyState.empty(len(self.slot_rows), num_rows, self.sums.shape[1], self.sums.device)
        for field in fields(self):
            if field.name != "slot_rows":
                getattr(larger, field.name)[: self.num_rows] = getattr(self, field.name)
        return replace(larger, slot_rows=self.slot_rows)


def penalize_nodes(
    logits: torch.Tensor,  # [B * N, V], changed in place
    state: PenaltyState,
    slots: torch.Tensor,  # [B] int64, slot of each request
    tree: DraftTree,
) -> None:
    """Give each node's row of logits the penalties of what was emitted and of the node's own path, root included.

    Rows of requests without penalties stay as they are.

    Raises:
        ValueError: the logits are not one row per node, or not of the state's vocabulary.
    """
    check_node_logits(logits, state, slots, tree)
    for request, row in enumerate(state.slot_rows[slots].tolist()):
        if row >= 0:
            nodes = slice(request * tree.num_nodes, (request + 1) * tree.num_nodes)
            _penalize_request(logits[nodes], state, row, path_tokens(tree.token_ids[request], tree.parents[request]))


def _penalize_request(logits: torch.Tensor, state: PenaltyState, row: int, tokens: torch.Tensor) -> None:
    """`logits [N, V]` of one request; `tokens [N, L]` are those of its paths, -1 behind their ends."""
    on_path = tokens >= 0
    ids = torch.where(on_path, tokens, tokens[:, :1])
    drafted = logits.gather(1, ids)
    short = state.lens[row] + on_path.sum(1, keepdim=True) < state.min_lens[row]
    emitted, ends = state.marks[row] & EMITTED > 0, state.marks[row] & END > 0
    logits.copy_(_penalized(logits, state, row, state.sums[row], emitted, ends & short))
    # A token of the path: every place where it stands gets the same value, that of all its places.
    counts = ((ids.unsqueeze(2) == tokens.unsqueeze(1)).sum(2)).clamp(min=1)
    sums = repeated_sum(state.sums[row][ids], state.frequency[row], counts)
    logits.scatter_(1, ids, _penalized(drafted, state, row, sums, torch.ones_like(on_path), ends[ids] & short))


def _penalized(
    logits: torch.Tensor, state: PenaltyState, row: int, sums: torch.Tensor, emitted: torch.Tensor, barred: torch.Tensor
) -> torch.Tensor:
    """Plain decoding's arithmetic: one sum of what is added, then the scaling by the sign of the result."""
    additive, scaling = _additive_and_scaling(state, row, sums, emitted, barred)
    adjusted = (logits + additive).to(logits.dtype)
    return torch.where(adjusted < 0, adjusted * scaling, adjusted / scaling).to(logits.dtype)


def _additive_and_scaling(
    state: PenaltyState, row: int, sums: torch.Tensor, emitted: torch.Tensor, barred: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    additive = 0.0 - sums - torch.where(emitted, state.presence[row], 0.0)
    return additive.masked_fill(barred, -torch.inf), torch.where(emitted, state.repetition[row], 1.0)


def path_tokens(token_ids: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
    """`[N, L]` int64: the tokens from each node of one tree up to its root, then -1; L is the longest such path."""
    node = torch.arange(len(parents), device=parents.device)
    columns = []
    while bool((node >= 0).any()):
        stopped, safe = node < 0, node.clamp(min=0)
        columns.append(token_ids[safe].masked_fill(stopped, -1))
        node = parents[safe].masked_fill(stopped, -1)
    return torch.stack(columns, dim=1)


def repeated_sum(start: torch.Tensor, addend: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """`start`, and `addend` added to it `counts` times, one addition after the other: a product rounds differently."""
    total = start.clone()
    for times in range(int(counts.max()) if counts.numel() else 0):
        total = torch.where(counts > times, total + addend, total)
    return total


def count_tokens(
    state: PenaltyState,
    slots: torch.Tensor,  # [B] int64, slot of each request
    root_ids: torch.Tensor,  # [B] int64, this round's roots
    emitted_ids: torch.Tensor,  # [B, P] int64, tokens that the round emits
    commit_lens: torch.Tensor,  # [B], how many of them, at least 1
) -> None:
    """Count the root and what a round emits but for the last token, which is the next round's root.

    Raises:
        ValueError: the shapes do not belong together.
    """
    check_counted(slots, root_ids, emitted_ids, commit_lens)
    for request, row in enumerate(state.slot_rows[slots].tolist()):
        if row < 0:
            continue
        counted = [int(root_ids[request]), *emitted_ids[request, : int(commit_lens[request]) - 1].tolist()]
        for token in counted:
            state.sums[row, token] += state.frequency[row]
            state.marks[row, token] |= EMITTED
        state.lens[row] += len(counted)


def counted_penalties(state: PenaltyState, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """What plain decoding adds and what it scales by, `[M, V]` float32 each, for all tokens that these rows count.

    Also on a device, from values of the host alone.
    """
    parts = [
        _additive_and_scaling(
            state,
            row,
            state.sums[row],
            state.marks[row] & EMITTED > 0,
            (state.marks[row] & END > 0) & (state.lens[row] < state.min_lens[row]),
        )
        for row in rows
    ]
    return torch.stack([additive for additive, _ in parts]), torch.stack([scaling for _, scaling in parts])


def check_node_logits(logits: torch.Tensor, state: PenaltyState, slots: torch.Tensor, tree: DraftTree) -> None:
    """Check shapes; never values."""
    rows = tree.batch_size * tree.num_nodes
    if logits.shape != (rows, state.sums.shape[1]):
        raise ValueError(
            f"logits must be [B * N, V] = {(rows, state.sums.shape[1])}, got {tuple(logits.shape)}; one row per node"
        )
    if slots.shape != (tree.batch_size,):
        raise ValueError(f"slots must be [B] = {(tree.batch_size,)}, got {tuple(slots.shape)}; one per request")


def check_counted(
    slots: torch.Tensor, root_ids: torch.Tensor, emitted_ids: torch.Tensor, commit_lens: torch.Tensor
) -> None:
    """Check shapes; never values."""
    batch_size = emitted_ids.shape[0]
    for name, part in (("slots", slots), ("root_ids", root_ids), ("commit_lens", commit_lens)):
        if part.shape != (batch_size,):
            raise ValueError(
                f"{name} must be [B] = {(batch_size,)} like emitted_ids, got {tuple(part.shape)}; one per request"
            )
