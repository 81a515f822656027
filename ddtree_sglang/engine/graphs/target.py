"""CUDA graphs of the target's verify, captured as a tree.

For an algorithm of the DFLASH family SGLang would capture a causal verify with no mask at all
(model_executor/runner/decode_cuda_graph_runner.py, get_spec_info), and replaying that on a tree gives wrong
tokens without an error. The runner class is looked up on the model runner instance
(model_executor/model_runner.py, _decode_cuda_graph_runner_cls), so that is where ours goes in.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode
from sglang.srt.runtime_context import get_spec

from ddtree_sglang.engine.graphs.fa3_metadata import TreeMetadata
from ddtree_sglang.engine.spec import ALGORITHM, verify_topk
from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput
from ddtree_sglang.engine.stages.window_masks import fill_window_mask


def shape_only_verify_input(custom_mask: torch.Tensor | None) -> DDTreeVerifyInput:
    """A verify input with the tree's sizes and the backend's mask buffer, for capture and warm-up.

    At one node per request it is a chain without a mask, so that the causal graph is captured.
    """
    spec = get_spec()
    num_nodes = int(spec.speculative_num_draft_tokens)
    return DDTreeVerifyInput(
        draft_token=None,
        custom_mask=custom_mask if num_nodes > 1 else None,
        positions=None,
        retrieve_index=None,
        retrieve_next_token=None,
        retrieve_next_sibling=None,
        retrieve_cum_len=None,
        spec_steps=int(spec.speculative_num_steps),
        topk=verify_topk(num_nodes),
        draft_token_num=num_nodes,
        capture_hidden_mode=CaptureHiddenMode.FULL,
        seq_lens_sum=None,
        seq_lens_cpu=None,
    )


def tree_graph_runner_class() -> type:
    """`DecodeCudaGraphRunner` that captures the target's verify with the tree's mask."""
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

    class DDTreeTargetGraphRunner(DecodeCudaGraphRunner):
        """Captures the target's verify as a tree, and FA3's metadata of it as well."""

        def get_spec_info(self, num_tokens: int) -> DDTreeVerifyInput:
            """The verify input that the graph is captured with."""
            return shape_only_verify_input(self.buffers.custom_mask)

        def _run_in_graph_metadata_prep(self, attn_backend: Any, forward_batch: Any) -> None:
            """Called at the start of what is captured."""
            metadata = TreeMetadata.of(attn_backend)
            if metadata is not None:
                metadata.make(forward_batch)
            fill_window_mask(attn_backend, forward_batch)
            # Last, for it ends with the mark after which the scheduler may write to the table of slots again.
            super()._run_in_graph_metadata_prep(attn_backend, forward_batch)

        def _init_replay_attn_metadata(self, forward_batch: Any, **sizes: Any) -> None:
            """Called before each replay."""
            metadata, spec_info = TreeMetadata.of(self._replay_attn_backend()), forward_batch.spec_info
            if metadata is not None:
                metadata.take_mask(spec_info.custom_mask)
                return
            if spec_info.custom_mask is not None and spec_info.custom_mask.numel() == 1:
                # A mask that was made in place, handed on by its address: the graph has that, and the backend would
                # copy the cell onto itself (triton_backend.py, _update_target_verify_buffers).
                spec_info.custom_mask = spec_info.custom_mask[:0]
            super()._init_replay_attn_metadata(forward_batch, **sizes)

    return DDTreeTargetGraphRunner


def install_tree_graph_runner(target_runner: Any) -> None:
    """Make the target's model runner capture trees; the worker is built before any graph is."""
    target_runner._decode_cuda_graph_runner_cls = tree_graph_runner_class


def dummy_verify_input(
    original: Callable[..., Any], spec_algorithm: Any, custom_mask: Any, num_tokens_per_req: int, is_draft_worker: bool
) -> Any:
    """AROUND hook on `create_dummy_verify_input`: warm-up forwards of the target are trees too.

    With the tree flag set and no mask, FA3 would index `None`.
    """
    if is_draft_worker or getattr(spec_algorithm, "name", None) != ALGORITHM:
        return original(spec_algorithm, custom_mask, num_tokens_per_req, is_draft_worker)
    return shape_only_verify_input(custom_mask)
