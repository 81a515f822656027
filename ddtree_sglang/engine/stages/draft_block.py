"""The drafter's forward of a round: the block `[root, MASK, MASK, ...]` of each request, in one batch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm

from ddtree_sglang.engine.stages.draft_window import DraftWindow
from ddtree_sglang.engine.stages.kv_window import RoundWindow

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch


@dataclass(frozen=True, slots=True)
class DraftBlock:
    """What all blocks of a server have in common."""

    runner: Any  # SGLang's model runner of the drafter
    embedding: Any  # the module that SGLang resolved for the drafter
    full_embedding: torch.Tensor | None  # [V, H], the whole table where data-parallel attention has split the module's
    embedding_scale: float  # multiplies the embeddings, 1.0 for none
    mask_token_id: int  # the token of a block's rows behind the root
    spec_info: Any  # the shape of the block, as SGLang's drafter takes it
    seen: DraftWindow | None = None  # what the drafter reads of a context, None for all of it

    def within(self, window: int | None, page_size: int, target: Any) -> DraftBlock:
        """The same for a drafter that reads `window` tokens, once the pools are there; `target` is its runner."""
        return replace(self, seen=DraftWindow.of(window, page_size, target, self.runner))

    def forward_batch(self, batch: ScheduleBatch, window: RoundWindow) -> ForwardBatch:
        """The blocks of a round, ready for the drafter's forward; they write the first R slots of each window."""
        inputs = window.inputs
        batch_size, block_size = inputs.block_ids.shape
        embeds = self._embed(inputs.block_ids)
        host_lens = self._host_lens(batch, window)
        slots = inputs.block_slots.view(-1)
        prefix_lens = window.prefix_lens
        if self.seen is not None:
            prefix_lens = self.seen.open(batch.req_pool_indices, prefix_lens, window.max_prefix_len, block_size)
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=batch_size,
            input_ids=inputs.block_ids.view(-1),
            req_pool_indices=batch.req_pool_indices,
            seq_lens=prefix_lens,
            out_cache_loc=slots,
            seq_lens_sum=int(host_lens.sum()),
            seq_lens_cpu=host_lens,
            positions=inputs.block_positions.view(-1),
            input_embeds=embeds.view(-1, embeds.shape[-1]),
            spec_algorithm=SpeculativeAlgorithm.DFLASH,
            spec_info=self.spec_info,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            global_num_token_non_padded_cpu=batch_size * block_size,
            can_run_decode_cuda_graph=batch.can_run_decode_cuda_graph,
        )
        translator = self.runner.kv_index_translator
        plan = translator.plan(
            req_pool_indices=batch.req_pool_indices,
            seq_lens=prefix_lens,
            seq_lens_cpu=window.host_lens if self.seen is None else host_lens,
            write_virtual=slots,
            read_extent=block_size,
        )
        plan.bind(forward_batch, translator)
        return forward_batch

    def _host_lens(self, batch: ScheduleBatch, window: RoundWindow) -> torch.Tensor:
        """`[B]` int32 on the host: the lengths that the drafter's attention reads, prefix and block.

        They are exact wherever the host knows the prefix. FlashInfer lays out its split-KV partials by them
        (layers/attention/flashinfer_backend.py, fast_prefill_plan) and its kernel by the device's lengths; where the
        two differ, partials are merged wrongly and a round's drafts are noise, without an error. A backend that
        declares no need of host lengths gets a bound: what the scheduler reserved, which is past prefix and block.
        """
        block_size, seen = window.inputs.block_slots.shape[1], self.seen
        if batch.seq_lens_cpu is None and window.host_lens is not None:
            bound = window.host_lens if seen is None else window.host_lens.clamp(max=seen.longest + block_size)
            return bound.to(torch.int32)
        prefix_lens = window.prefix_lens.cpu() if batch.seq_lens_cpu is None else batch.seq_lens_cpu
        prefix_lens = prefix_lens if seen is None else seen.exact_lens(prefix_lens)
        return (prefix_lens + block_size).to(torch.int32)

    def _embed(self, block_ids: torch.Tensor) -> torch.Tensor:
        """`[B, R]` int64 to `[B, R, H]`."""
        if self.full_embedding is not None:
            embeds = torch.nn.functional.embedding(block_ids, self.full_embedding)
        else:
            embeds = self.embedding(block_ids)
        return embeds if self.embedding_scale == 1.0 else embeds * self.embedding_scale
