"""SGLang's Triton kernels of recurrent layers on our trees: each node has the state of its own path.

They are SGLang's own, unchanged, under the interpreter or on a GPU. They are told a tree by its links and go through
its nodes in their order, so a parent has to come before its children, which it does (core.draft_tree).
"""

from __future__ import annotations

import ast
import inspect
import textwrap
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from ddtree_sglang.core import BuiltTree, build_draft_tree, complete_tree
from tests.core.tree_cases import random_candidates

pytestmark = pytest.mark.sglang

BATCH, NUM_NODES, DEPTH = 3, 11, 4
SLOTS = torch.tensor([4, 1, 3], dtype=torch.int32)
NUM_SLOTS = 6
KEY_HEADS, VALUE_HEADS, KEY_DIM, VALUE_DIM = 1, 2, 8, 16
CHANNELS, WIDTH = 2 * KEY_HEADS * KEY_DIM + VALUE_HEADS * VALUE_DIM, 4


def random_trees(seed: int) -> BuiltTree:
    """Trees of random shapes; the last request's is a chain with padding behind it."""
    candidates = random_candidates(seed, BATCH, DEPTH, vocab=12, num_candidates=NUM_NODES - 1)
    candidates.logprobs[-1, :, 1:] = -torch.inf
    tree = build_draft_tree(candidates.ids, candidates.logprobs, candidates.root_ids, NUM_NODES)
    return complete_tree(tree, torch.zeros(BATCH, dtype=torch.int64))


def path_to(built: BuiltTree, request: int, node: int) -> list[int]:
    """The node's ancestors from the root on, itself included."""
    path = [node]
    while path[0] != 0:
        path.insert(0, int(built.tree.parents[request, path[0]]))
    return path


def real_nodes(built: BuiltTree, request: int) -> list[int]:
    return [node for node in range(NUM_NODES) if node == 0 or built.tree.parents[request, node] >= 0]


@dataclass(frozen=True)
class Verified:
    """What a verify gives: outputs by request and node, and the states that it kept per node."""

    outputs: torch.Tensor
    states: torch.Tensor


@pytest.fixture(autouse=True)
def _no_dependent_launches(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter is asked for no GPU's generation."""
    if device.type == "cpu":
        from sglang.kernels.ops.attention.linear import fused_sigmoid_gating_recurrent
        from sglang.kernels.ops.mamba import causal_conv1d_triton
        from sglang.kernels.ops.mamba.triton_ops import mamba_ssm

        for module in (fused_sigmoid_gating_recurrent, causal_conv1d_triton, mamba_ssm):
            monkeypatch.setattr(module, "is_arch_support_pdl", lambda: False)
        monkeypatch.setattr(torch.cpu, "device", lambda _: nullcontext(), raising=False)


def convolve(
    built: BuiltTree,
    device: torch.device,
    inputs: torch.Tensor,
    before: torch.Tensor,
    weight: torch.Tensor,
    links: bool = True,
    turned: bool = False,
) -> tuple[Verified, torch.Tensor]:
    """SGLang's convolution of a verify, and the parents that it derives; without `links`, of a chain.

    `turned`: channels lie side by side in memory, as KDA keeps them (linear/kda_backend.py).
    """
    from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_update

    shape = (BATCH + 1, NUM_NODES, WIDTH - 1, CHANNELS) if turned else (BATCH + 1, NUM_NODES, CHANNELS, WIDTH - 1)
    windows = torch.full(shape, torch.nan, device=device)
    windows = windows.transpose(-1, -2) if turned else windows
    own = before.transpose(-1, -2).clone().transpose(-1, -2) if turned else before.clone()
    parents = torch.full((BATCH, NUM_NODES), -7, device=device)
    tree = (built.layout.retrieve_next_token, built.layout.retrieve_next_sibling, parents) if links else (None,) * 3
    outputs = causal_conv1d_update(
        inputs.transpose(1, 2).to(device),
        own.to(device),
        weight.to(device),
        None,
        "silu",
        conv_state_indices=SLOTS.to(device),
        intermediate_conv_window=windows,
        intermediate_state_indices=torch.arange(BATCH, dtype=torch.int32, device=device),
        retrieve_next_token=None if tree[0] is None else tree[0].to(device),
        retrieve_next_sibling=None if tree[1] is None else tree[1].to(device),
        retrieve_parent_token=tree[2],
    )
    return Verified(outputs.transpose(1, 2).cpu(), windows.cpu()), parents.cpu()


@pytest.mark.parametrize("turned", [False, True], ids=["gdn", "kda"])
@pytest.mark.parametrize("seed", range(4))
def test_convolution_reads_a_nodes_ancestors_and_keeps_its_window(
    seed: int, turned: bool, device: torch.device
) -> None:
    generator = torch.Generator().manual_seed(seed)
    built = random_trees(seed)
    inputs = torch.randn(BATCH, NUM_NODES, CHANNELS, generator=generator)
    before = torch.randn(NUM_SLOTS, CHANNELS, WIDTH - 1, generator=generator)
    weight = torch.randn(CHANNELS, WIDTH, generator=generator)
    made, parents = convolve(built, device, inputs, before, weight, turned=turned)
    chain, _ = convolve(built, device, inputs, before, weight, links=False, turned=turned)
    differing = 0
    for request in range(BATCH):
        for node in real_nodes(built, request):
            tokens = inputs[request, path_to(built, request, node)].T
            seen = torch.cat([before[SLOTS[request]], tokens], dim=1)[:, -WIDTH:]
            expected = torch.nn.functional.silu((seen * weight).sum(1))
            torch.testing.assert_close(made.outputs[request, node], expected)
            torch.testing.assert_close(made.states[request, node], seen[:, 1:])
            differing += not torch.allclose(chain.outputs[request, node], expected)
            if node:
                assert parents[request, node] == built.tree.parents[request, node]
    assert differing > 0, "trees that a chain's kernel would get right show nothing"


@pytest.mark.parametrize("kept", [torch.float32, torch.bfloat16])
def test_a_node_reads_its_parents_input_as_it_is(kept: torch.dtype, device: torch.device) -> None:
    """Why inputs have to be kept in the model's dtype: plain decoding, token by token, reads them as they are kept."""
    from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_update

    generator = torch.Generator().manual_seed(0)
    built = random_trees(0)
    inputs = torch.randn(BATCH, NUM_NODES, CHANNELS, generator=generator)
    before = torch.randn(NUM_SLOTS, CHANNELS, WIDTH - 1, generator=generator).to(kept)
    weight = torch.randn(CHANNELS, WIDTH, generator=generator)
    made, _ = convolve(built, device, inputs, before, weight)
    largest = 0.0
    for request in range(BATCH):
        node = real_nodes(built, request)[-1]
        states = before.clone().to(device)
        for token in path_to(built, request, node):
            row, slot = inputs[request, token][None].to(device), SLOTS[request : request + 1].to(device)
            plain = causal_conv1d_update(row, states, weight.to(device), None, "silu", conv_state_indices=slot)
        largest = max(largest, float((made.outputs[request, node] - plain[0].cpu()).abs().max()))
    assert (largest < 1e-5) == (kept == torch.float32)


def delta_step(
    state: torch.Tensor,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    a: torch.Tensor,
    b: torch.Tensor,
    decay: torch.Tensor,
    bias: torch.Tensor,
    bound: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token of one request: its output `[HV, V]`, and the state `[HV, V, K]` behind it.

    `a` and `bias` are `[HV]` of a gated delta net, `[HV, K]` of KDA, which forgets by channel. Kimi-K3's has a `bound`:
    the least logarithm of what a token leaves.
    """
    per_key = VALUE_HEADS // KEY_HEADS
    q, k = ((one / (one.square().sum(-1, keepdim=True) + 1e-6).sqrt()).repeat_interleave(per_key, 0) for one in (q, k))
    rate = decay.view(-1, *[1] * (a.dim() - 1)).exp()
    free = -rate * torch.nn.functional.softplus(a + bias)
    decays = (free if bound is None else bound * torch.sigmoid(rate * (a + bias))).exp()
    state = state * (decays[:, None, None] if a.dim() == 1 else decays[:, None, :])
    change = b.sigmoid()[:, None] * (v - torch.einsum("hvk,hk->hv", state, k))
    state = state + change[:, :, None] * k[:, None, :]
    return torch.einsum("hvk,hk->hv", state, q * KEY_DIM**-0.5), state


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("room", [NUM_NODES, NUM_NODES + 5], ids=["all-nodes", "fewer-nodes"])
@pytest.mark.parametrize(
    ("is_kda", "bound"), [(False, None), (True, None), (True, -5.0)], ids=["gdn", "kda", "bounded-kda"]
)
def test_gated_delta_rule_follows_a_nodes_path_and_keeps_its_state(
    seed: int, room: int, is_kda: bool, bound: float | None, device: torch.device
) -> None:
    """`room`: of nodes in the buffer, which a round of fewer nodes leaves unused at each request's end."""
    from sglang.kernels.ops.attention.linear.fused_sigmoid_gating_recurrent import (
        fused_sigmoid_gating_delta_rule_update,
    )

    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    built = random_trees(seed)
    tokens = BATCH * NUM_NODES
    q, k = drawn(1, tokens, KEY_HEADS, KEY_DIM), drawn(1, tokens, KEY_HEADS, KEY_DIM)
    gates = (VALUE_HEADS, KEY_DIM) if is_kda else (VALUE_HEADS,)
    v, a, b = drawn(1, tokens, VALUE_HEADS, VALUE_DIM), drawn(tokens, *gates), drawn(tokens, VALUE_HEADS)
    decay, bias = drawn(VALUE_HEADS), drawn(*gates)
    before = drawn(NUM_SLOTS, VALUE_HEADS, VALUE_DIM, KEY_DIM)
    states = torch.full((BATCH + 1, room, VALUE_HEADS, VALUE_DIM, KEY_DIM), torch.nan, device=device)
    own = before.clone().to(device)
    outputs = fused_sigmoid_gating_delta_rule_update(
        A_log=decay.to(device), a=a.flatten(1).to(device), dt_bias=bias.to(device), is_kda=is_kda,
        lower_bound=bound, softplus_beta=1.0, softplus_threshold=20.0,
        q=q.to(device), k=k.to(device), v=v.to(device), b=b.to(device),
        initial_state_source=own, initial_state_indices=SLOTS.to(device), use_qk_l2norm_in_kernel=True,
        cu_seqlens=(torch.arange(BATCH + 1, dtype=torch.int32) * NUM_NODES).to(device),
        disable_state_update=True, intermediate_states_buffer=states,
        intermediate_state_indices=torch.arange(BATCH, dtype=torch.int32, device=device), cache_steps=NUM_NODES,
        retrieve_parent_token=built.tree.parents.clamp(min=0).to(device),
    ).cpu()  # fmt: skip
    assert torch.equal(own.cpu(), before), "a verify leaves the requests' own states alone"
    for request in range(BATCH):
        for node in real_nodes(built, request):
            state, output = before[SLOTS[request]], torch.zeros(())
            for row in (request * NUM_NODES + one for one in path_to(built, request, node)):
                output, state = delta_step(state, q[0, row], k[0, row], v[0, row], a[row], b[row], decay, bias, bound)
            torch.testing.assert_close(outputs[0, request * NUM_NODES + node], output, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(states[request, node].cpu(), state, atol=1e-4, rtol=1e-4)


HEADS, HEAD_DIM, GROUPS, STATE_SIZE = 4, 8, 2, 16


@pytest.mark.parametrize("seed", range(3))
def test_mamba_follows_a_nodes_path_and_keeps_its_state(seed: int, device: torch.device) -> None:
    """`cache_steps` is where a request's states begin, so it is the number of nodes that there is room for."""
    from sglang.kernels.ops.mamba.triton_ops.mamba_ssm import selective_state_update

    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    built = random_trees(seed)
    nodes = (BATCH, NUM_NODES)
    x, dt = drawn(*nodes, HEADS, HEAD_DIM), drawn(*nodes, HEADS)
    b, c = drawn(*nodes, GROUPS, STATE_SIZE), drawn(*nodes, GROUPS, STATE_SIZE)
    decay, bias, skip = -drawn(HEADS).exp(), drawn(HEADS), drawn(HEADS)
    before = drawn(NUM_SLOTS, HEADS, HEAD_DIM, STATE_SIZE)
    states = torch.full((BATCH + 1, NUM_NODES, HEADS, HEAD_DIM, STATE_SIZE), torch.nan, device=device)
    own, outputs = before.clone().to(device), torch.zeros_like(x, device=device)
    selective_state_update(
        own,
        x.to(device),
        dt.to(device)[..., None].expand(*nodes, HEADS, HEAD_DIM),
        decay.to(device)[:, None, None].expand(HEADS, HEAD_DIM, STATE_SIZE),
        b.to(device),
        c.to(device),
        skip.to(device)[:, None].expand(HEADS, HEAD_DIM),
        z=None,
        dt_bias=bias.to(device)[:, None].expand(HEADS, HEAD_DIM),
        dt_softplus=True,
        state_batch_indices=SLOTS.to(device),
        out=outputs,
        disable_state_update=True,
        intermediate_states_buffer=states,
        cache_steps=NUM_NODES,
        retrieve_parent_token=built.tree.parents.clamp(min=0).to(device),
        intermediate_state_indices=torch.arange(BATCH, dtype=torch.int32, device=device),
    )
    assert torch.equal(own.cpu(), before), "a verify leaves the requests' own states alone"
    for request in range(BATCH):
        for node in real_nodes(built, request):
            state, output = before[SLOTS[request]], torch.zeros(())
            for one in path_to(built, request, node):
                step = torch.nn.functional.softplus(dt[request, one] + bias)
                of_group = (rows[request, one].repeat_interleave(HEADS // GROUPS, dim=0) for rows in (b, c))
                written, read = of_group
                state = state * (decay * step).exp()[:, None, None]
                state = state + (step[:, None] * x[request, one])[:, :, None] * written[:, None, :]
                output = (state * read[:, None, :]).sum(-1) + skip[:, None] * x[request, one]
            torch.testing.assert_close(outputs[request, node].cpu(), output, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(states[request, node].cpu(), state, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("room", [NUM_NODES, NUM_NODES + 2])
def test_mamba_keeps_states_where_a_larger_rounds_are_not_looked_for(room: int, device: torch.device) -> None:
    """Why budgets that vary are refused: SGLang's commit finds a request's states behind the room of those before it.

    The layer counts that room by the nodes of the round, as here.
    """
    from sglang.kernels.ops.mamba.triton_ops.mamba_ssm import selective_state_update
    from sglang.srt.layers.attention.mamba.mamba import MambaMixer2

    calls = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(MambaMixer2.forward))))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "selective_state_update"
    ]
    assert [call["cache_steps"] for call in calls if "cache_steps" in call] == ["draft_token_num"]
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(device)

    of_nodes, of_heads = (BATCH, NUM_NODES), (HEADS, HEAD_DIM)
    states = torch.full((BATCH, room, *of_heads, STATE_SIZE), torch.nan, device=device)
    x = drawn(*of_nodes, *of_heads)
    selective_state_update(
        drawn(NUM_SLOTS, *of_heads, STATE_SIZE),
        x,
        torch.ones_like(x),
        -torch.ones(*of_heads, STATE_SIZE, device=device),
        drawn(*of_nodes, GROUPS, STATE_SIZE),
        drawn(*of_nodes, GROUPS, STATE_SIZE),
        torch.ones(*of_heads, device=device),
        z=None,
        dt_bias=torch.zeros(*of_heads, device=device),
        dt_softplus=True,
        state_batch_indices=SLOTS.to(device),
        out=torch.zeros_like(x),
        disable_state_update=True,
        intermediate_states_buffer=states,
        cache_steps=NUM_NODES,
        retrieve_parent_token=random_trees(0).tree.parents.clamp(min=0).to(device),
        intermediate_state_indices=torch.arange(BATCH, dtype=torch.int32, device=device),
    )
    written = states.flatten(0, 1).isfinite().flatten(1).all(1).nonzero().flatten().tolist()
    assert written == [*range(BATCH * NUM_NODES)]
    looked_for = [request * room + node for request in range(BATCH) for node in range(NUM_NODES)]
    assert (written == looked_for) == (room == NUM_NODES)


def test_short_convolutions_are_told_the_trees_links(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine.stages import short_convolutions

    generator = torch.Generator().manual_seed(0)
    built = random_trees(1)
    inputs = torch.randn(BATCH, NUM_NODES, CHANNELS, generator=generator)
    before = torch.randn(NUM_SLOTS, CHANNELS, 2, generator=generator)
    weight = torch.randn(CHANNELS, 3, generator=generator)
    links = SimpleNamespace(
        retrieve_next_token=built.layout.retrieve_next_token.to(device),
        retrieve_next_sibling=built.layout.retrieve_next_sibling.to(device),
        retrieve_parent_token=torch.zeros(BATCH, NUM_NODES, dtype=torch.int64, device=device),
    )
    backend = SimpleNamespace(short_conv_backend=SimpleNamespace(forward_metadata=links))
    monkeypatch.setattr(short_convolutions, "get_attn_backend", lambda: backend)
    windows = torch.zeros(BATCH + 1, NUM_NODES, CHANNELS, 2, device=device)
    cache = SimpleNamespace(conv=[before.clone().to(device)], intermediate_conv_window=[windows])
    meta = SimpleNamespace(cache_indices=SLOTS.long().to(device), layer_cache=cache)
    conv = SimpleNamespace(conv_weight=weight.to(device), conv_bias=None)
    convolve = short_convolutions.along_paths(lambda *_: torch.zeros(()))
    made = convolve(conv, inputs.flatten(0, 1).to(device), meta, NUM_NODES, "LFM2").cpu().view(BATCH, NUM_NODES, -1)
    for request in range(BATCH):
        for node in real_nodes(built, request):
            tokens = inputs[request, path_to(built, request, node)].T
            seen = torch.cat([before[SLOTS[request]], tokens], dim=1)[:, -3:]
            torch.testing.assert_close(made[request, node], (seen * weight).sum(1))
            torch.testing.assert_close(windows[request, node].cpu(), seen[:, 1:])
    links.retrieve_next_token = None
    assert convolve(conv, inputs, meta, 1, "LFM2").shape == (), "one node is a chain's"
