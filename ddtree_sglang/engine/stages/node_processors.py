"""Custom logit processors on a tree: called once for each emitted token, in order, as in plain decoding.

A processor is a client's code: it may read the request's tokens, keep state on itself, write into its parameters. So it
is not asked about nodes that may never be emitted. The tree is walked from the root instead: the processor changes the
rows of the nodes where the requests stand, the sampler chooses there, and each request goes on to the child that
carries its choice. While it walks, a request's `output_ids` has the tokens of its path, so its processor sees what it
sees in plain decoding, and it is called as often. A batch without processors has none of this.

The host reads each choice before the next depth. That costs nothing on a CPU. On a device it is one wait per depth, and
`finish_the_round_before` takes overlap away from such batches: SGLang's plain decoding with overlap shows a processor
the tokens one late (layers/sampler.py reads `req.output_ids` before the last result is processed), plain decoding
without overlap shows them all, and so does this.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddtree_sglang.core.built_tree import BuiltTree
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.engine.debug.sync_check import permit_sync
from ddtree_sglang.engine.processor_failures import called_for
from ddtree_sglang.engine.run_ends import abort_at_next_token, judge
from ddtree_sglang.engine.spec import serves_ddtree
from ddtree_sglang.engine.stages.sampling_supports import NodeSupports
from ddtree_sglang.engine.stages.target_choice import PathChoice

if TYPE_CHECKING:
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch
    from sglang.srt.managers.scheduler import Scheduler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

Agreement = Callable[[torch.Tensor], torch.Tensor]
"""Makes the chosen tokens of all tensor-parallel ranks those of the first, in place."""


def finish_the_round_before(original: Callable[..., bool], scheduler: Scheduler, batch: Any, last_batch: Any) -> bool:
    """AROUND hook on `Scheduler.is_disable_overlap_for_batch`: with processors, results are processed before a launch.

    Else `output_ids` would lack the last round's tokens.
    """
    if original(scheduler, batch, last_batch):
        return True
    if not batch or not scheduler.result_queue or not serves_ddtree():
        return False
    return has_processors(batch)


def has_processors(batch: ScheduleBatch) -> bool:
    """Whether a request of the batch brings a custom logit processor."""
    return batch.sampling_info is not None and bool(batch.sampling_info.has_custom_logit_processor)


def choice_by_processors(
    batch: ScheduleBatch,
    built: BuiltTree,
    ends: RoundEnds,
    sampler: Sampler,
    agree: Agreement,
    supports: NodeSupports | None = None,
) -> PathChoice | None:
    """What chooses for a batch that has processors; None for one that has none.

    `supports` are given what the sampler drew from, where a request asks for it.
    """
    if not has_processors(batch):
        return None
    return ProcessedPaths(batch.reqs, batch.sampling_info, built, ends, sampler, agree, supports)


class HostTree:
    """Trees on the host, as far as a walk from the root reads them."""

    def __init__(self, built: BuiltTree, ends: RoundEnds) -> None:
        """Read links, tokens and limits of B trees of N nodes; the host waits for them."""
        links = built.layout.retrieve_next_token, built.layout.retrieve_next_sibling, built.tree.token_ids
        self._first_child, self._sibling, self._token_ids = torch.stack(links).tolist()
        self._node_limits = ends.node_limits.tolist()

    def child(self, request: int, node: int, token: int) -> int | None:
        """The child of a node that carries a token, the first in node order; None if none may be entered."""
        child = self._first_child[request][node]
        while child >= 0:
            if self._token_ids[request][child] == token:
                return int(child) if child < self._node_limits[request] else None
            child = self._sibling[request][child]
        return None


@dataclass(frozen=True)
class ProcessedPaths:
    """Chooses along the paths of one round, B requests with trees of N nodes; called once."""

    reqs: Sequence[Req]
    sampling_info: SamplingBatchInfo
    built: BuiltTree
    ends: RoundEnds
    sampler: Sampler
    agree: Agreement
    supports: NodeSupports | None = None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """`[B, N]` int64 from `logits [B * N, V]`, which get the processed rows in place; 0 at nodes off the path.

        A request that is over, or ends at a token of its path, is not walked any further.
        """
        target_ids = torch.zeros_like(self.built.tree.token_ids)
        num_nodes = target_ids.shape[1]
        processed = [req for req in self.reqs if req.custom_logit_processor is not None]
        with permit_sync(), restored_outputs(processed):
            tree = HostTree(self.built, self.ends)
            at = {request: 0 for request, req in enumerate(self.reqs) if not req.finished()}
            while at:
                rows = torch.tensor([request * num_nodes + node for request, node in at.items()]).to(logits.device)
                tokens = self._choose(logits, rows, list(at))
                target_ids.view(-1).index_copy_(0, rows, tokens)
                moved = [
                    (request, self._next_node(tree, request, node, token))
                    for (request, node), token in zip(at.items(), tokens.tolist(), strict=True)
                ]
                at = {request: node for request, node in moved if node is not None}
        return target_ids

    def _choose(self, logits: torch.Tensor, rows: torch.Tensor, requests: list[int]) -> torch.Tensor:
        """`[R]` int64: the tokens at `rows [R]`, one of each request, as plain decoding's sampler chooses them."""
        from sglang.srt.layers.logits_processor import LogitsProcessorOutput

        info = rows_of(self.sampling_info, requests)
        with called_for([self.reqs[request] for request in requests], abort_at_next_token):
            processed = self.sampler._preprocess_logits(logits.index_select(0, rows), info)
        logits.index_copy_(0, rows, processed)
        sampler = self.sampler if self.supports is None else self.supports.at(requests, rows)
        tokens = sampler(
            LogitsProcessorOutput(next_token_logits=processed),
            dataclasses.replace(info, has_custom_logit_processor=False),
            return_logprob=False,
            top_logprobs_nums=[],
            token_ids_logprobs=[],
            positions=self.built.layout.positions.reshape(-1).index_select(0, rows),
        )
        return self.agree(tokens.to(torch.int64))

    def _next_node(self, tree: HostTree, request: int, node: int, token: int) -> int | None:
        """Where a request goes on after choosing `token` at `node`; None at its path's end and at its own."""
        child = tree.child(request, node, token)
        req = self.reqs[request]
        if child is None or req.custom_logit_processor is None:
            return child
        if judge(req, [token]).finished_reason is not None:
            return None
        req.output_ids.append(token)
        return child


class _NoPenalties:
    """Stands where a copy of sampling parameters has the batch's penalties, which are applied by now."""

    def filter(self, keep_indices: torch.Tensor) -> None:
        """Keep nothing, as there is nothing."""


def rows_of(sampling_info: SamplingBatchInfo, requests: list[int]) -> SamplingBatchInfo:
    """A copy of the batch's parameters for some of its requests, in their order; logits are penalised and masked."""
    copy = dataclasses.replace(
        sampling_info,
        penalizer_orchestrator=_NoPenalties(),
        grammars=None,
        grammar_mask=None,
        logit_bias=None,
        return_sampling_masks=None,
        sampling_mask_batch_indices=None,
    )
    if len(requests) < len(sampling_info):
        copy.filter_batch(requests, torch.tensor(requests).to(sampling_info.temperatures.device))
    return copy


@contextmanager
def restored_outputs(reqs: Sequence[Req]) -> Iterator[None]:
    """Requests whose `output_ids` may grow within; afterwards they are as long as before."""
    lengths = [len(req.output_ids) for req in reqs]
    try:
        yield
    finally:
        for req, length in zip(reqs, lengths, strict=True):
            del req.output_ids[length:]
