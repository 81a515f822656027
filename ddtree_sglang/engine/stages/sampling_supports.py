"""The tokens that each draw was made from (`return_sampling_mask`), of the tokens that a round emits.

SGLang's sampler describes the support of each row that it draws, and every node is such a row: the supports of the
accepted path are plain decoding's by construction. All nodes of a request that asks for them are described, since the
path is known only after the draws.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from ddtree_sglang.core.acceptance import AcceptedPath

if TYPE_CHECKING:
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput, SamplingMaskOutput
    from sglang.srt.layers.sampler import Sampler
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo


_PARTS = ("token_ids", "lengths", "selected_logprobs", "statuses")


@dataclass
class NodeSupports:
    """A sampler that notes the supports of M requests' nodes, N each, for the accepted path to choose from."""

    sampler: Sampler
    sampling_info: SamplingBatchInfo  # the batch's
    num_nodes: int
    described: SamplingMaskOutput | None = None  # of M * N rows; None if the sampler was not asked

    @classmethod
    def of(cls, sampling_info: SamplingBatchInfo | None, sampler: Sampler, num_nodes: int) -> NodeSupports | None:
        """None for a batch no request of which asks for supports."""
        if sampling_info is None or sampling_info.sampling_mask_batch_indices is None:
            return None
        return cls(sampler, sampling_info, num_nodes)

    @property
    def requests(self) -> torch.Tensor:
        """`[M]` int64: places in the batch of the requests that ask for supports."""
        places: torch.Tensor = self.sampling_info.sampling_mask_batch_indices
        return places

    @property
    def with_logprobs(self) -> torch.Tensor | None:
        """`[S]` int64: places among those M of the requests that want their whole support's log-probabilities."""
        places: torch.Tensor | None = self.sampling_info.sampling_support_logprobs_capture_indices
        return places

    def __call__(self, output: LogitsProcessorOutput, sampling_info: SamplingBatchInfo, **options: Any) -> torch.Tensor:
        """`sampler(output, sampling_info, **options)` for one row per node."""
        chosen, self.described = self._describe(
            output,
            sampling_info,
            self._rows(self.requests),
            None if self.with_logprobs is None else self._rows(self.with_logprobs),
            options,
        )
        return chosen

    def at(self, requests: Sequence[int], rows: torch.Tensor) -> Callable[..., torch.Tensor]:
        """A sampler of some nodes, one of each of these requests, that notes their supports.

        Args:
            requests: places in the batch.
            rows: `[R]` int64, their nodes' rows among all `B * N`.
        """
        asks: list[bool] = self.sampling_info.return_sampling_masks
        wants_logprobs: list[bool] = self.sampling_info.return_sampling_support_logprobs
        asking = [(place, one) for place, one in enumerate(requests) if asks[one]]
        if not asking:
            return self.sampler
        kept = torch.tensor([sum(asks[:one]) for _, one in asking], device=rows.device)
        in_full = [place for place, (_, one) in enumerate(asking) if wants_logprobs[one]]
        full = torch.tensor([sum(wants_logprobs[: asking[place][1]]) for place in in_full], device=rows.device)
        places = torch.tensor([place for place, _ in asking], device=rows.device)

        def sample(output: LogitsProcessorOutput, info: SamplingBatchInfo, **options: Any) -> torch.Tensor:
            logprobs_of = torch.tensor(in_full, device=rows.device) if in_full else None
            chosen, found = self._describe(output, info, places, logprobs_of, options)
            nodes = rows[places] % self.num_nodes
            self._keep(found, kept * self.num_nodes + nodes, full * self.num_nodes + nodes[in_full])
            return chosen

        return sample

    def _describe(
        self,
        output: LogitsProcessorOutput,
        sampling_info: SamplingBatchInfo,
        rows: torch.Tensor,
        logprobs_of: torch.Tensor | None,
        options: dict[str, Any],
    ) -> tuple[torch.Tensor, SamplingMaskOutput]:
        """Draw, and describe the supports of some rows, and of those of them at `logprobs_of` in full."""
        asking = dataclasses.replace(
            sampling_info,
            sampling_mask_batch_indices=rows,
            sampling_support_logprobs_capture_indices=logprobs_of,
        )
        chosen: torch.Tensor = self.sampler(output, asking, **options)
        return chosen, output.sampling_mask_output

    def _keep(self, found: SamplingMaskOutput, rows: torch.Tensor, full_rows: torch.Tensor) -> None:
        """Put what was described in its rows of M * N."""
        if self.described is None:
            num_rows = len(self.requests) * self.num_nodes
            parts = {name: getattr(found, name) for name in _PARTS}
            empty = {name: part.new_zeros(num_rows, *part.shape[1:]) for name, part in parts.items()}
            full = None
            if self.with_logprobs is not None:
                shape = len(self.with_logprobs) * self.num_nodes, found.token_ids.shape[1]
                full = found.selected_logprobs.new_zeros(shape)
            self.described = dataclasses.replace(found, **empty, support_logprobs=full)
        for name in _PARTS:
            getattr(self.described, name).index_copy_(0, rows, getattr(found, name))
        if found.support_logprobs is not None and self.described.support_logprobs is not None:
            self.described.support_logprobs.index_copy_(0, full_rows, found.support_logprobs)

    def _rows(self, places: torch.Tensor) -> torch.Tensor:
        nodes = torch.arange(self.num_nodes, device=places.device)
        return (places.unsqueeze(1) * self.num_nodes + nodes).flatten()

    def of_path(self, path: AcceptedPath) -> SamplingMaskOutput:
        """The supports of what each of the M requests emits, `[M, P, ...]`, as SGLang takes them of a chain."""
        emitted = path.token_ids.index_select(0, self.requests)
        lens = path.commit_lens.index_select(0, self.requests)
        if self.described is None:
            return self._single_tokens(emitted, lens)
        nodes = path.accept_index.index_select(0, self.requests).clamp(min=0)

        def on_path(rows: torch.Tensor, nodes: torch.Tensor) -> torch.Tensor:
            starts = torch.arange(len(nodes), device=nodes.device).unsqueeze(1) * self.num_nodes
            return rows[starts + nodes]

        found = self.described
        logprobs = found.support_logprobs
        if logprobs is not None and self.with_logprobs is not None:
            logprobs = on_path(logprobs, nodes.index_select(0, self.with_logprobs))
        return dataclasses.replace(
            found,
            token_ids=on_path(found.token_ids, nodes),
            lengths=on_path(found.lengths, nodes),
            selected_logprobs=on_path(found.selected_logprobs, nodes),
            support_logprobs=logprobs,
            statuses=on_path(found.statuses, nodes),
            num_accept_tokens=lens,
        )

    def _single_tokens(self, emitted: torch.Tensor, lens: torch.Tensor) -> SamplingMaskOutput:
        """Greedy decoding's: each token is its own support, as layers/sampler.py has it."""
        from sglang.srt.layers.logits_processor import SamplingMaskOutput, SamplingMaskStatus

        certain = torch.zeros(emitted.shape, dtype=torch.float32, device=emitted.device)
        return SamplingMaskOutput(
            token_ids=emitted.to(torch.int32).unsqueeze(2),
            lengths=torch.ones_like(emitted, dtype=torch.int32),
            selected_logprobs=certain,
            support_logprobs=(
                None if self.with_logprobs is None else certain.index_select(0, self.with_logprobs).unsqueeze(2)
            ),
            statuses=torch.full_like(emitted, int(SamplingMaskStatus.OK), dtype=torch.int32),
            num_accept_tokens=lens,
        )
