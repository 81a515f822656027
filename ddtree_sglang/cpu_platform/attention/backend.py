"""The attention backend `ddtree_cpu`: prefill, decoding, chain and tree verification, and the drafter's block.

Per forward pass, `init_forward_metadata` builds one plan; per layer, the new keys are written to the pool,
the request's keys are read as one padded batch and attended. It knows which key a query may attend only
through the plan. Verification expects SGLang's convention: `seq_lens` is the prefix, the window's slots lie
behind it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.attention.base_attn_backend import AttentionBackend
from sglang.srt.layers.radix_attention import AttentionType

from ddtree_sglang.cpu_platform import forward_epoch
from ddtree_sglang.cpu_platform.attention.masks import window_from_flat_mask
from ddtree_sglang.cpu_platform.attention.math import attend_span, attend_uniform
from ddtree_sglang.cpu_platform.attention.plan import (
    RaggedPlan,
    UniformPlan,
    WindowKind,
    plan_ragged,
    plan_uniform,
)
from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND

if TYPE_CHECKING:
    from sglang.srt.layers.radix_attention import RadixAttention
    from sglang.srt.model_executor.forward_batch_info import ForwardBatch
    from sglang.srt.model_executor.model_runner import ModelRunner


class DDTreeCpuAttnBackend(AttentionBackend):
    """Scaled dot-product attention over SGLang's paged KV pool, on CPU tensors."""

    forward_metadata: UniformPlan | RaggedPlan | None

    def __init__(self, model_runner: ModelRunner) -> None:
        super().__init__()
        if model_runner.use_mla_backend:
            raise ValueError(
                f"attention backend {ATTENTION_BACKEND!r} serves multi-head attention, and this model uses "
                "latent attention (MLA); serve it on a machine with a GPU."
            )
        _refuse_unknown_pool(model_runner.token_to_kv_pool)
        self.device = torch.device(model_runner.device)
        self.dtype = model_runner.dtype
        self.req_to_token = model_runner.req_to_token_pool.req_to_token
        self.pool = model_runner.token_to_kv_pool
        # By this name SGLang's models ask for it (model_executor/forward_context.py, get_token_to_kv_pool).
        self.token_to_kv_pool = self.pool
        self.forward_metadata = None
        self._window_kinds: dict[int, WindowKind] = {}

    def init_forward_metadata(self, forward_batch: ForwardBatch) -> None:
        """Build the plan of one forward pass from `forward_batch`."""
        forward_epoch.advance()
        mode = forward_batch.forward_mode
        if mode.is_idle():
            self.forward_metadata = None
        elif mode.is_decode():
            self.forward_metadata = self._plan_decode(forward_batch)
        elif mode.is_target_verify():
            self.forward_metadata = self._plan_verify(forward_batch)
        else:
            self.forward_metadata = self._plan_prefill(forward_batch)

    def _plan_decode(self, batch: ForwardBatch) -> UniformPlan:
        return plan_uniform(self.req_to_token, batch.req_pool_indices, batch.seq_lens - 1, 1, self.dtype)

    def _plan_verify(self, batch: ForwardBatch) -> UniformPlan:
        num_queries = batch.input_ids.shape[0] // batch.batch_size
        return plan_uniform(
            self.req_to_token,
            batch.req_pool_indices,
            batch.seq_lens,
            num_queries,
            self.dtype,
            positions=batch.positions,
            tree_window=_tree_window(batch, num_queries),
        )

    def _plan_prefill(self, batch: ForwardBatch) -> RaggedPlan:
        return plan_ragged(
            self.req_to_token,
            batch.req_pool_indices,
            batch.extend_prefix_lens.tolist(),
            batch.extend_seq_lens.tolist(),
            self.dtype,
        )

    def forward_decode(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """One new token per request, Q = 1; arguments and result are those of `forward_extend`."""
        return self.forward_extend(*args, **kwargs)

    def forward_extend(
        self,
        q: torch.Tensor,
        k: torch.Tensor | None,
        v: torch.Tensor | None,
        layer: RadixAttention,
        forward_batch: ForwardBatch,
        save_kv_cache: bool = True,
        **extras: Any,
    ) -> torch.Tensor:
        """Prefill, verification or drafting: `q [M, heads * d]` -> `[M, heads * d]` for M new tokens.

        Raises:
            NotImplementedError: an argument or a feature of the layer that this backend would get wrong.
        """
        if extras:
            _refuse_extras(extras)
        kind = self._window_kinds.get(id(layer))
        if kind is None:
            kind = self._window_kinds[id(layer)] = _checked_window_kind(layer)
        if save_kv_cache and k is not None:
            self.pool.write_rows(layer.layer_id, forward_batch.out_cache_loc, k, v)
        keys, values = self.pool.get_kv_buffer(layer.layer_id)
        plan = self.forward_metadata
        if isinstance(plan, UniformPlan):
            return _run_uniform(plan, q, keys, values, layer, kind)
        assert isinstance(plan, RaggedPlan), "init_forward_metadata did not run before this forward"
        return _run_ragged(plan, q, keys, values, layer, kind)

    def support_triton(self) -> bool:
        """False: SGLang then takes its torch paths around attention."""
        return False

    def get_cuda_graph_seq_len_fill_value(self) -> int:
        """Length of a padding request; unused without graphs."""
        return 1


def _run_uniform(
    plan: UniformPlan,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: RadixAttention,
    kind: WindowKind,
) -> torch.Tensor:
    slots = plan.slots
    bias = plan.bias(kind, layer.sliding_window_size, layer.tp_q_head_num // layer.tp_k_head_num)
    query = q.reshape(slots.batch_size, plan.num_queries, layer.tp_q_head_num, layer.qk_head_dim)
    return attend_uniform(query, slots.gather(keys), slots.gather(values), bias, layer.scaling)


def _run_ragged(
    plan: RaggedPlan,
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    layer: RadixAttention,
    kind: WindowKind,
) -> torch.Tensor:
    query = q.reshape(-1, layer.tp_q_head_num, layer.qk_head_dim)
    out = query.new_zeros(query.shape[0], layer.tp_q_head_num, layer.v_head_dim)
    window = layer.sliding_window_size
    for span in plan.spans:
        plain = span.is_plain_causal and kind is WindowKind.CAUSAL and window < 0
        bias = None if plain else span.bias(kind, window)
        part = slice(span.query_start, span.query_end)
        gathered = span.slots.gather(keys), span.slots.gather(values)
        out[part] = attend_span(query[part], *gathered, bias, layer.scaling)
    return out.view(query.shape[0], -1)


def _tree_window(batch: ForwardBatch, num_queries: int) -> torch.Tensor | None:
    """Ancestor mask `[B, N, N]` bool of a tree verification, `None` for a chain."""
    spec_info = batch.spec_info
    ancestors = getattr(spec_info, "ancestor_mask", None)
    if ancestors is not None:
        return ancestors
    flat = getattr(spec_info, "custom_mask", None)
    if flat is None:
        return None
    return window_from_flat_mask(flat, batch.seq_lens.tolist(), num_queries)


def _checked_window_kind(layer: RadixAttention) -> WindowKind:
    """The layer's window rule; NotImplementedError for features that this backend would get wrong."""
    unsupported = {
        "logit soft-capping": bool(layer.logit_cap),
        "cross attention": layer.is_cross_attention,
        "value heads of another size than key heads": layer.v_head_dim != layer.qk_head_dim,
        "scaled KV cache": layer.k_scale is not None or layer.v_scale is not None,
        "attention temperature": layer.xai_temperature_len > 0,
    }
    found = [name for name, present in unsupported.items() if present]
    if found:
        raise NotImplementedError(
            f"attention backend {ATTENTION_BACKEND!r} does not implement {', '.join(found)} "
            f"(layer {layer.layer_id}); serve this model on a machine with a GPU."
        )
    return WindowKind.CAUSAL if layer.attn_type == AttentionType.DECODER else WindowKind.FULL


def _refuse_extras(extras: dict[str, Any]) -> None:
    given = sorted(name for name, value in extras.items() if value is not None and value is not False)
    if given:
        raise NotImplementedError(
            f"attention backend {ATTENTION_BACKEND!r} does not implement the attention arguments {given}; "
            "serve this model on a machine with a GPU."
        )


def _refuse_unknown_pool(pool: Any) -> None:
    from ddtree_sglang.cpu_platform.kv_pool import CpuMHATokenToKVPool

    if not isinstance(pool, CpuMHATokenToKVPool):
        raise ValueError(
            f"attention backend {ATTENTION_BACKEND!r} needs one KV pool for all layers, got "
            f"{type(pool).__name__} (hybrid sliding-window or recurrent models); serve this model on a "
            "machine with a GPU, or try --disable-hybrid-swa-memory."
        )
