"""What SGLang's attention backends ask of a model runner, a layer and a batch, for tests without a model.

The backends, the index translator and the verify input are SGLang's own. The pool is a plain one whose unowned slots
are NaN.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from tests.device_lane.dense import HEAD_SIZE, HEADS, KV_HEADS, dense

CONTEXT_LEN = 40
ROW_LEN = 64  # of req_to_token, which has headroom behind the context
MAX_REQUESTS = 8
NUM_SLOTS = 400


class Pool:
    """One layer's keys and values by slot, as SGLang's MHA pool gives and takes them."""

    def __init__(self) -> None:
        self.keys = torch.full((NUM_SLOTS, KV_HEADS, HEAD_SIZE), math.nan)
        self.values = torch.full_like(self.keys, math.nan)
        # The padding slot is written by padded rows only.
        self.keys[0] = self.values[0] = 0.0

    def get_kv_buffer(self, layer_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """[slots, KV heads, head size], twice."""
        return self.keys, self.values

    def set_kv_buffer(self, layer: Any, target: Any, k: torch.Tensor, v: torch.Tensor, *scales: Any) -> None:
        """Write the rows of a forward."""
        self.keys[target.loc] = k.view(-1, KV_HEADS, HEAD_SIZE)
        self.values[target.loc] = v.view(-1, KV_HEADS, HEAD_SIZE)

    def get_kv_cache_quant_method(self) -> SimpleNamespace:
        """None, in SGLang's words."""
        access = SimpleNamespace(kind=None, scale_recipe=None)
        return SimpleNamespace(
            resolve_attention_access=lambda phase, backend: access, needs_global_scale=lambda: False, name="none"
        )


class Requests:
    """Requests with some tokens cached, in shuffled pages; row 0 of `req_to_token` is the engine's padding row."""

    def __init__(self, prefix_lens: Sequence[int], page_size: int = 1) -> None:
        generator = torch.Generator().manual_seed(0)
        self.prefix_lens = list(prefix_lens)
        self.page_size = page_size
        self.pool = Pool()
        self.req_to_token = torch.zeros(MAX_REQUESTS + 1, ROW_LEN, dtype=torch.int32)
        # Page 0 has the padding slot.
        pages = torch.randperm(NUM_SLOTS // page_size - 1, generator=generator) + 1
        slots = (pages[:, None] * page_size + torch.arange(page_size)).flatten().int()
        for request in range(len(prefix_lens)):
            self.req_to_token[request + 1] = slots[request * ROW_LEN : (request + 1) * ROW_LEN]
            cached = self.slots(request, 0, prefix_lens[request])
            shape = (len(cached), KV_HEADS, HEAD_SIZE)
            self.pool.keys[cached] = torch.randn(shape, generator=generator)
            self.pool.values[cached] = torch.randn(shape, generator=generator)

    def slots(self, request: int, start: int, end: int) -> torch.Tensor:
        """[end - start] int64, where a request's tokens lie."""
        return self.req_to_token[request + 1, start:end].long()

    def owned(self, request: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values [length, KV heads, head size] of a request's first tokens."""
        slots = self.slots(request, 0, length)
        return self.pool.keys[slots], self.pool.values[slots]


def runner(requests: Requests, is_draft: bool = False) -> SimpleNamespace:
    """A model runner of two KV heads and four query heads."""
    from sglang.srt.configs.model_config import AttentionArch
    from sglang.srt.mem_cache.kv_index_translator import KVIndexTranslator

    hf_config = SimpleNamespace(architectures=["LlamaForCausalLM"])
    config = SimpleNamespace(
        is_encoder_decoder=False,
        context_len=CONTEXT_LEN,
        attention_arch=AttentionArch.MHA,
        is_local_attention_model=False,
        is_multimodal=False,
        head_dim=HEAD_SIZE,
        v_head_dim=HEAD_SIZE,
        num_attention_heads=HEADS,
        hf_config=hf_config,
        hf_text_config=SimpleNamespace(num_attention_heads=HEADS),
        get_num_kv_heads=lambda *sizes: KV_HEADS,
        get_max_num_attention_heads=lambda: HEADS,
    )
    translator = KVIndexTranslator(
        req_to_token=requests.req_to_token,
        token_to_kv_pool_allocator=None,
        token_to_kv_pool=requests.pool,
        page_size=requests.page_size,
        device="cpu",
    )
    return SimpleNamespace(
        sliding_window_size=None,
        model_config=config,
        device="cpu",
        dtype=torch.float32,
        req_to_token_pool=SimpleNamespace(req_to_token=requests.req_to_token, size=MAX_REQUESTS),
        token_to_kv_pool=requests.pool,
        token_to_kv_pool_allocator=SimpleNamespace(get_kvcache=lambda: requests.pool),
        kv_index_translator=translator,
        kv_cache_dtype=torch.float32,
        kv_cache_dtype_str="auto",
        page_size=requests.page_size,
        is_draft_worker=is_draft,
        spec_algorithm=SimpleNamespace(is_frozen_kv_mtp=lambda: False),
        server_args=SimpleNamespace(),
        prefill_attention_backend_str="flashinfer",
        decode_attention_backend_str="flashinfer",
    )


def settle(monkeypatch: pytest.MonkeyPatch, module: ModuleType, num_nodes: int) -> None:
    """Answer what a backend's module asks of SGLang's context, as a DDTREE server of one rank would."""
    answers = {
        "get_spec": SimpleNamespace(
            speculative_eagle_topk=2, speculative_num_draft_tokens=num_nodes, speculative_algorithm="DFLASH"
        ),
        "get_exec": SimpleNamespace(
            deterministic=SimpleNamespace(enable_deterministic_inference=False),
            features=SimpleNamespace(enable_mis=False),
        ),
        "get_parallel": SimpleNamespace(
            attn_tp_size=1, attn_cp_size=1, attn_dcp_size=1, enable_prefill_cp=False, attn_dp_enabled=False
        ),
        "get_model": SimpleNamespace(is_embedding=False),
        "get_schedule": SimpleNamespace(chunked_prefill_size=8192),
        "get_memory": SimpleNamespace(disable_radix_cache=False),
        "get_platform": SimpleNamespace(is_sm100=False),
    }
    for name, answer in answers.items():
        if hasattr(module, name):
            monkeypatch.setattr(module, name, lambda answer=answer: answer)
    if hasattr(module, "get_buffer"):
        monkeypatch.setattr(module, "get_buffer", lambda name, make: torch.empty(1024, dtype=torch.uint8))
    if hasattr(module, "get_cuda_graph_max_batch_size"):
        monkeypatch.setattr(module, "get_cuda_graph_max_batch_size", lambda size: size)
    if hasattr(module, "DllmConfig"):
        monkeypatch.setattr(module, "DllmConfig", SimpleNamespace(from_server_args=lambda arguments: None))


def layer(is_causal: bool = True) -> SimpleNamespace:
    """One attention layer; a drafter's is not causal."""
    from sglang.srt.layers.radix_attention import AttentionType

    return SimpleNamespace(
        layer_id=0,
        tp_q_head_num=HEADS,
        tp_k_head_num=KV_HEADS,
        tp_v_head_num=KV_HEADS,
        head_dim=HEAD_SIZE,
        v_head_dim=HEAD_SIZE,
        qk_head_dim=HEAD_SIZE,
        scaling=HEAD_SIZE**-0.5,
        logit_cap=0.0,
        sliding_window_size=-1,
        is_cross_attention=False,
        attn_type=AttentionType.DECODER if is_causal else AttentionType.ENCODER_ONLY,
        k_scale=None,
        v_scale=None,
        k_scale_float=None,
        v_scale_float=None,
    )


def tree_mask(tree: torch.Tensor, prefix_lens: Sequence[int]) -> torch.Tensor:
    """The flat mask of a batch of one tree: each row sees the prefix, and its ancestors among the nodes."""
    rows = [torch.cat([torch.ones(len(tree), length, dtype=torch.bool), tree], dim=1) for length in prefix_lens]
    return torch.cat([part.flatten() for part in rows])


def batch(
    requests: Requests,
    mode: Any,
    seq_lens: Sequence[int],  # of the requests of the batch, and of padded rows behind them
    width: int,  # rows of each request
    spec_info: Any = None,
    prefix_lens: Sequence[int] | None = None,  # of an extend
) -> SimpleNamespace:
    """A forward batch. Rows behind the real requests are padded ones, of request 0 and slot 0."""
    count = len(requests.prefix_lens)
    start = list(seq_lens) if prefix_lens is None else list(prefix_lens)
    ends = [length + width if prefix_lens is None else length for length in seq_lens]
    slots = [
        requests.slots(b, start[b], ends[b]) if b < count else torch.zeros(width, dtype=torch.int64)
        for b in range(len(seq_lens))
    ]
    extend_lens = [end - begin for begin, end in zip(start, ends, strict=True)]
    return SimpleNamespace(
        forward_mode=mode,
        batch_size=len(seq_lens),
        req_pool_indices=torch.tensor([b + 1 if b < count else 0 for b in range(len(seq_lens))]),
        seq_lens=torch.tensor(seq_lens),
        seq_lens_cpu=torch.tensor(seq_lens),
        seq_lens_sum=sum(seq_lens),
        extend_seq_lens=torch.tensor(extend_lens),
        extend_seq_lens_cpu=extend_lens,
        extend_prefix_lens=torch.tensor(start),
        extend_prefix_lens_cpu=start,
        positions=torch.cat([torch.arange(begin, end) for begin, end in zip(start, ends, strict=True)]),
        out_cache_loc=torch.cat(slots),
        out_cache_loc_is_physical=True,
        spec_info=spec_info,
        spec_algorithm=SimpleNamespace(is_uno=lambda: False),
        encoder_lens=None,
        kv_loc_plan=None,
        cross_attention_custom_mask=None,
        multi_item_delimiter_indices=None,
        attn_attend_prefix_cache=None,
        mha_one_shot=False,
    )


def projections(num_rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Queries, keys and values of a forward's rows, flat as a model makes them."""
    generator = torch.Generator().manual_seed(9)
    widths = (HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE, KV_HEADS * HEAD_SIZE)
    q, k, v = (torch.randn(num_rows, width, generator=generator) for width in widths)
    return q, k, v


def expected(
    requests: Requests,
    q: torch.Tensor,
    lens: Sequence[int],
    masks: Sequence[torch.Tensor],
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """[rows, HEADS * HEAD_SIZE] of dense attention over each request's first `lens` tokens in the pool."""
    rows = q.view(-1, HEADS, HEAD_SIZE).split([len(mask) for mask in masks])
    parts = [dense(rows[b], *requests.owned(b, lens[b]), mask, sinks=sinks)[0] for b, mask in enumerate(masks)]
    return torch.cat(parts).flatten(1)
