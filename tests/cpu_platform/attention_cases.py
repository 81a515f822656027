"""Fakes of what SGLang hands an attention backend, and a dense oracle that knows nothing of pools or plans."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from sglang.srt.layers.radix_attention import AttentionType
from sglang.srt.model_executor.forward_batch_info import ForwardMode

from ddtree_sglang.cpu_platform.attention.backend import DDTreeCpuAttnBackend
from ddtree_sglang.cpu_platform.kv_pool import CpuMHATokenToKVPool

NUM_HEADS, KV_HEADS, HEAD_DIM = 6, 2, 16
CONTEXT = 64
NUM_SLOTS = 400


@dataclass
class Bench:
    """One backend over one pool, with the keys and values that each request really has."""

    backend: DDTreeCpuAttnBackend
    pool: CpuMHATokenToKVPool
    req_to_token: torch.Tensor
    keys: list[torch.Tensor]  # per request [prefix + new, KV_HEADS, HEAD_DIM]
    values: list[torch.Tensor]
    queries: list[torch.Tensor]  # per request [new, NUM_HEADS, HEAD_DIM]
    prefix_lens: list[int]
    rows: torch.Tensor

    @property
    def new_lens(self) -> list[int]:
        return [query.shape[0] for query in self.queries]

    def packed(self, parts: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat(parts).flatten(1)

    def new_parts(self, whole: list[torch.Tensor]) -> torch.Tensor:
        tails = [part[length:] for part, length in zip(whole, self.prefix_lens, strict=True)]
        return torch.cat(tails)

    def new_slots(self) -> torch.Tensor:
        spans = zip(self.rows.tolist(), self.prefix_lens, self.new_lens, strict=True)
        return torch.cat([self.req_to_token[row, p : p + n] for row, p, n in spans]).long()


def make_layer(**changes: Any) -> SimpleNamespace:
    """The fields of a `RadixAttention` that a backend reads."""
    fields = {
        "layer_id": 0,
        "tp_q_head_num": NUM_HEADS,
        "tp_k_head_num": KV_HEADS,
        "tp_v_head_num": KV_HEADS,
        "qk_head_dim": HEAD_DIM,
        "v_head_dim": HEAD_DIM,
        "scaling": HEAD_DIM**-0.5,
        "sliding_window_size": -1,
        "logit_cap": 0.0,
        "is_cross_attention": False,
        "k_scale": None,
        "v_scale": None,
        "xai_temperature_len": -1,
        "attn_type": AttentionType.DECODER,
    }
    return SimpleNamespace(**(fields | changes))


def make_pool(dtype: torch.dtype = torch.float32) -> CpuMHATokenToKVPool:
    """A real pool of one layer; its rows start as rubbish, which no result may depend on."""
    pool = CpuMHATokenToKVPool(
        size=NUM_SLOTS,
        page_size=1,
        dtype=dtype,
        head_num=KV_HEADS,
        head_dim=HEAD_DIM,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )
    for buffer in (*pool.k_buffer, *pool.v_buffer):
        buffer.copy_(torch.randn(buffer.shape) * 50)
    return pool


def make_bench(
    prefix_lens: list[int],
    new_lens: list[int],
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    consecutive: bool = False,
) -> Bench:
    """Requests with cached prefixes in scattered (or consecutive) slots, and random new tokens."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    pool = make_pool(dtype)
    order = torch.arange(1, NUM_SLOTS + 1)
    if not consecutive:
        order = order[torch.randperm(NUM_SLOTS, generator=generator)]
    req_to_token = torch.randint(1, NUM_SLOTS, (len(prefix_lens) + 3, CONTEXT), dtype=torch.int32)
    rows = torch.randperm(len(prefix_lens) + 3, generator=generator)[: len(prefix_lens)]
    bench = Bench(_backend(pool, req_to_token, dtype), pool, req_to_token, [], [], [], prefix_lens, rows)
    used = 0
    for row, prefix, new in zip(rows.tolist(), prefix_lens, new_lens, strict=True):
        slots = order[used : used + prefix + new]
        used += prefix + new
        req_to_token[row, : prefix + new] = slots.int()
        key = torch.randn(prefix + new, KV_HEADS, HEAD_DIM, generator=generator).to(dtype)
        value = torch.randn(prefix + new, KV_HEADS, HEAD_DIM, generator=generator).to(dtype)
        pool.k_buffer[0][slots[:prefix]] = key[:prefix]
        pool.v_buffer[0][slots[:prefix]] = value[:prefix]
        bench.keys.append(key)
        bench.values.append(value)
        bench.queries.append(torch.randn(new, NUM_HEADS, HEAD_DIM, generator=generator).to(dtype))
    return bench


def _backend(pool: Any, req_to_token: torch.Tensor, dtype: torch.dtype) -> DDTreeCpuAttnBackend:
    runner = SimpleNamespace(
        use_mla_backend=False,
        device="cpu",
        dtype=dtype,
        req_to_token_pool=SimpleNamespace(req_to_token=req_to_token),
        token_to_kv_pool=pool,
    )
    return DDTreeCpuAttnBackend(runner)


def run(bench: Bench, mode: ForwardMode, spec_info: Any = None, **layer_changes: Any) -> list[torch.Tensor]:
    """One forward of one layer through the backend; the outputs per request `[new, NUM_HEADS, HEAD_DIM]`."""
    prefix = torch.tensor(bench.prefix_lens)
    new = torch.tensor(bench.new_lens)
    batch = SimpleNamespace(
        forward_mode=mode,
        batch_size=len(bench.queries),
        input_ids=torch.zeros(int(new.sum()), dtype=torch.int64),
        req_pool_indices=bench.rows,
        seq_lens=prefix if mode.is_target_verify() else prefix + new,
        extend_prefix_lens=prefix,
        extend_seq_lens=new,
        out_cache_loc=bench.new_slots(),
        positions=getattr(spec_info, "positions", None),
        spec_info=spec_info,
    )
    bench.backend.init_forward_metadata(batch)
    forward = bench.backend.forward_decode if mode.is_decode() else bench.backend.forward_extend
    keys, values = bench.new_parts(bench.keys), bench.new_parts(bench.values)
    out = forward(bench.packed(bench.queries), keys, values, make_layer(**layer_changes), batch)
    return [part.view(-1, NUM_HEADS, HEAD_DIM) for part in out.split(bench.new_lens)]


def dense(bench: Bench, request: int, allowed: torch.Tensor) -> torch.Tensor:
    """Attention of one request, one query and one head at a time; `allowed [new, keys] bool`."""
    query, key, value = (part[request].double() for part in (bench.queries, bench.keys, bench.values))
    out = torch.zeros(query.shape, dtype=torch.float64)
    for i in range(query.shape[0]):
        for head in range(NUM_HEADS):
            kv_head = head // (NUM_HEADS // KV_HEADS)
            scores = key[:, kv_head] @ query[i, head] * HEAD_DIM**-0.5
            scores[~allowed[i]] = float("-inf")
            out[i, head] = torch.softmax(scores, 0) @ value[:, kv_head]
    return out


def causal(prefix_len: int, new_len: int) -> torch.Tensor:
    """`[new, prefix + new] bool`, written as the definition says it."""
    return torch.tensor([[j <= prefix_len + i for j in range(prefix_len + new_len)] for i in range(new_len)])


def random_parents(num_nodes: int, generator: torch.Generator) -> list[int]:
    """A random tree, parent before child; -1 at the root."""
    return [-1] + [int(torch.randint(0, i, (1,), generator=generator)) for i in range(1, num_nodes)]


def ancestors(parents: list[int]) -> torch.Tensor:
    """`[N, N] bool`: row i is True at i and at each of its ancestors, by following the parents."""
    mask = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node in range(len(parents)):
        current = node
        while current >= 0:
            mask[node, current] = True
            current = parents[current]
    return mask


def with_prefix(window: torch.Tensor, prefix_len: int) -> torch.Tensor:
    """`[N, prefix + N] bool`: the whole prefix, then the window."""
    return torch.cat([torch.ones(window.shape[0], prefix_len, dtype=torch.bool), window], dim=1)
