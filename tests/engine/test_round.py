"""A decode round on fakes: the order of its parts, and that it reads nothing back from the device.

All of the round's tensors are on the meta device, which has no values: whatever needs one fails. Only the lengths that
the scheduler keeps on the host are real. The drafter, with the trees at the end of its graph, the target and the walk's
kernel are fakes; the rest is the round's own.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.core import BuiltTree, commit_round
from ddtree_sglang.core.node_penalties import PenaltyState
from ddtree_sglang.core.round_inputs import round_inputs
from tests.engine.requests import request_of

pytestmark = pytest.mark.sglang

REQUESTS, NODES, BLOCK, HIDDEN, VOCABULARY, ROWS = 3, 17, 8, 16, 50, 40
META = torch.device("meta")


class Events(list[str]):
    """What happened, in order."""

    def returning(self, name: str, value: Any = None) -> Any:
        """A function that notes its name and returns `value`."""

        def call(*_: Any, **__: Any) -> Any:
            self.append(name)
            return value

        return call


def empty(*shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


class Launches(TorchDispatchMode):
    """Operators that launch something, in order; views and allocations do not. What kernels do inside is not theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self._in_kernel = False

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        is_free = func.is_view or name.startswith(("empty", "new_empty", "_unsafe_view"))
        on_device = isinstance(out, torch.Tensor) and out.device == META
        if on_device and not is_free and not self._in_kernel:
            self.names.append(name)
        return out

    def kernel(self, name: str, oracle: Callable[..., Any]) -> Callable[..., Any]:
        """One launch of that name, whose result is the oracle's."""

        def launch(*args: Any, **kwargs: Any) -> Any:
            self.names.append(name)
            self._in_kernel = True
            made = oracle(*args, **kwargs)
            self._in_kernel = False
            return made

        return launch


TRANSLATOR = SimpleNamespace(plan=lambda **_: SimpleNamespace(bind=lambda *_: None))


def fake_target(events: Events, num_nodes: int = NODES) -> tuple[Any, Any]:
    """The target's model runner, and the worker that verifies `num_nodes` per request with it."""
    runner = SimpleNamespace(
        req_to_token_pool=SimpleNamespace(req_to_token=empty(ROWS, 512, dtype=torch.int32)),
        kv_index_translator=TRANSLATOR,
        token_to_kv_pool=SimpleNamespace(move_kv_cache=events.returning("move KV")),
        sampler=None,
    )
    logits = SimpleNamespace(
        next_token_logits=empty(REQUESTS * num_nodes, VOCABULARY, dtype=torch.float32),
        hidden_states=empty(REQUESTS * num_nodes, 5 * HIDDEN, dtype=torch.float32),
        last_hidden_states=None,
    )
    out = SimpleNamespace(logits_output=logits, can_run_cuda_graph=True, routed_experts_output=None)
    verify = events.returning("verify graph", out)
    return runner, SimpleNamespace(model_runner=runner, forward_batch_generation=verify)


def fake_drafter(events: Events) -> Any:
    """The drafter's model runner, whose forward is a replay of a graph."""
    return SimpleNamespace(
        kv_index_translator=TRANSLATOR, forward=events.returning("draft graph", SimpleNamespace(can_run_graph=True))
    )


@pytest.fixture
def round_of_fakes(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, Events]:
    """A worker without models, a batch of three requests, and the record of what they do."""
    from ddtree_sglang.engine import worker
    from ddtree_sglang.engine.debug.trace import RoundTrace
    from ddtree_sglang.engine.graphs.drafter_tail import GraphTrees
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates
    from ddtree_sglang.engine.stages import attention_ranks
    from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
    from ddtree_sglang.engine.stages.candidates import CandidateRanking
    from ddtree_sglang.engine.stages.draft_block import DraftBlock
    from ddtree_sglang.engine.stages.draft_context import DraftContext
    from ddtree_sglang.engine.stages.kv_moves import PoolMover
    from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput
    from ddtree_sglang.engine.stages.node_penalties import PenaltyTable
    from ddtree_sglang.engine.stages.request_texts import NoTexts
    from ddtree_sglang.engine.stages.round_budget import RoundBudget
    from ddtree_sglang.engine.stages.round_ends import EndsOfBatches
    from ddtree_sglang.kernels import round_commit_triton, round_inputs_triton

    events = Events()

    def embed(ids: torch.Tensor) -> torch.Tensor:
        return empty(*ids.shape, HIDDEN, dtype=torch.float32)

    class Worker(worker.DDTreeWorker):
        """The round on fakes: what construction makes of models is given here."""

        device, num_nodes, max_path_len = "meta", NODES, BLOCK
        draft_parallel_layout = None
        states = None
        _tp_sync = SimpleNamespace(sync=lambda *_: None)

        def __init__(self) -> None:
            self.config, self.budget = DDTreeConfig(), RoundBudget(BudgetPolicy.fixed(NODES))
            self.trace = RoundTrace(None, "meta")
            self.model_runner, self._target_worker = fake_target(events)
            self.draft_model_runner = fake_drafter(events)
            self.draft_block = DraftBlock(self.draft_model_runner, embed, None, 1.0, 4, spec_info=None)
            self.ranking = CandidateRanking(None, NODES - 1, BLOCK)
            tail = SimpleNamespace(num_nodes=NODES, trees=lambda count: BuiltTree.empty(count, NODES, META))
            self.mover = PoolMover(self.model_runner.token_to_kv_pool)
            self.trees = GraphTrees(self.ranking, {}, tail)
            self.node_counts = NodeCountStates(self.model_runner, {})
            self.ends = EndsOfBatches(NODES, META)
            self.penalties = PenaltyTable(ROWS, VOCABULARY, META)
            self.context = DraftContext(self.append, waits=True)
            self.texts = NoTexts()

        def append(self, **arguments: Any) -> None:
            events.append("draft context")
            assert arguments["target_hidden"].shape == (REQUESTS * self.max_path_len, 5 * HIDDEN)
            assert arguments["cache_loc_2d"].shape == (REQUESTS, self.max_path_len)

    monkeypatch.setattr(worker, "draft_tp_context", lambda _: nullcontext())
    monkeypatch.setattr(attention_ranks, "eagle_prepare_for_verify", lambda *_: (SimpleNamespace(), True))
    monkeypatch.setattr(round_inputs_triton, "round_inputs_triton", round_inputs)
    monkeypatch.setattr(round_commit_triton, "commit_round_triton", commit_round)
    batch = SimpleNamespace(
        spec_info=DDTreeDraftInput.carry(empty(REQUESTS), empty(REQUESTS)),
        seq_lens=empty(REQUESTS),
        seq_lens_cpu=torch.tensor([5, 9, 2]),
        seq_lens_sum=16,
        req_pool_indices=empty(REQUESTS),
        reqs=[request_of() for _ in range(REQUESTS)],
        has_grammar=False,
        sampling_info=None,
        return_logprob=False,
        return_hidden_states=False,
        can_run_decode_cuda_graph=True,
    )
    return Worker(), batch, events


def test_parts_run_in_order_and_the_length_is_published_before_the_commit(
    round_of_fakes: tuple[Any, Any, Events],
) -> None:
    worker, batch, events = round_of_fakes
    result = worker._decode_round(batch, events.returning("publish"))
    assert events == ["draft graph", "verify graph", "publish", "move KV", "draft context"]
    assert result.next_token_ids.shape == (REQUESTS * BLOCK,)
    assert (result.speculative_num_draft_tokens, result.speculative_output_stride) == (NODES, BLOCK)
    # What other streams still read outlives the round.
    assert len(result.extra_keep_alive_refs) == 4


def test_a_drafter_whose_root_proposes_too_has_paths_of_a_token_more_than_its_block(
    round_of_fakes: tuple[Any, Any, Events],
) -> None:
    worker, batch, events = round_of_fakes
    worker.ranking = dataclasses.replace(worker.ranking, first_state=0)
    worker.max_path_len = worker.ranking.max_path_len
    worker.trees = dataclasses.replace(worker.trees, ranking=worker.ranking)
    blocks: list[torch.Size] = []
    forward = worker.draft_model_runner.forward

    def draft(forward_batch: Any) -> Any:
        blocks.append(forward_batch.input_ids.shape)
        return forward(forward_batch)

    worker.draft_model_runner.forward = draft
    result = worker._decode_round(batch, events.returning("publish"))
    assert blocks == [(REQUESTS * BLOCK,)]
    assert result.next_token_ids.shape == (REQUESTS * (BLOCK + 1),)
    assert result.speculative_output_stride == BLOCK + 1


def test_recurrent_states_are_committed_with_the_rows_on_the_backend_that_verified(
    round_of_fakes: tuple[Any, Any, Events],
) -> None:
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates, VerifyState

    worker, batch, events = round_of_fakes
    worker.model_runner.attn_backend, worker.model_runner.decode_cuda_graph_runner = "of the largest", None
    fewer = {NODES: VerifyState("of this round", None)}
    worker.node_counts = NodeCountStates(worker.model_runner, fewer)
    given: list[Any] = []

    def commit(*arguments: Any) -> None:
        events.append(f"states {worker.model_runner.attn_backend}")
        given.extend(arguments)

    worker.states = SimpleNamespace(commit=commit)
    scope = "ddtree_sglang.engine.graphs.node_counts.node_count_scope"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scope, lambda _: nullcontext())
        worker._decode_round(batch, events.returning("publish"))
    expected = ["draft graph", "verify graph", "publish", "move KV", "states of this round", "draft context"]
    assert events == expected
    assert given[0] is batch
    assert given[2] is batch.seq_lens
    assert given[3] == NODES


def test_a_backend_without_host_lengths_needs_none(round_of_fakes: tuple[Any, Any, Events]) -> None:
    worker, batch, events = round_of_fakes
    batch.seq_lens_cpu, batch.spec_info.nxt_kv_lens_cpu = None, torch.tensor([40, 40, 40])
    worker._decode_round(batch, events.returning("publish"))
    assert events[-1] == "draft context"


@pytest.mark.parametrize("num_nodes", [NODES, 1])
def test_hidden_states_that_are_asked_for_are_a_row_per_token_and_cost_no_read(
    round_of_fakes: tuple[Any, Any, Events], num_nodes: int
) -> None:
    from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
    from ddtree_sglang.engine.stages.draft_context import DraftContext
    from ddtree_sglang.engine.stages.round_budget import RoundBudget

    worker, batch, events = round_of_fakes
    worker.budget = RoundBudget(BudgetPolicy.fixed(num_nodes))
    _, worker._target_worker = fake_target(events, num_nodes)
    worker.context = DraftContext(lambda **_: None, waits=True)
    output = worker._target_worker.forward_batch_generation().logits_output
    output.last_hidden_states = empty(REQUESTS * num_nodes, HIDDEN, dtype=torch.float32)
    batch.return_hidden_states = True
    result = worker._decode_round(batch, events.returning("publish"))
    assert result.logits_output.hidden_states.shape == (REQUESTS * BLOCK, HIDDEN)


def test_a_read_of_a_value_would_have_been_noticed(round_of_fakes: tuple[Any, Any, Events]) -> None:
    worker, batch, _ = round_of_fakes

    def publish(lengths: torch.Tensor) -> None:
        lengths.tolist()

    with pytest.raises((NotImplementedError, RuntimeError)):
        worker._decode_round(batch, publish)


def test_a_round_launches_six_kernels_outside_its_graphs(
    round_of_fakes: tuple[Any, Any, Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many as stock DFLASH's chain: prepare, embedding, two copies into its block, argmax, accept.

    Both have these in common, which are not counted: what a replay copies into its graph, the metadata of an attention
    backend, the projection of the hidden states, the scheduler.
    """
    worker, batch, events = round_of_fakes
    launches = launches_of(worker, batch, monkeypatch)
    with launches:
        worker._decode_round(batch, events.returning("publish"))
    assert launches.names == ["inputs", "embedding", "argmax", "walk", "move rows", "index_select"]


def test_a_drafters_window_launches_eight_more_and_reads_nothing(
    round_of_fakes: tuple[Any, Any, Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddtree_sglang.engine.stages.draft_window import DraftWindow

    worker, batch, events = round_of_fakes
    launches = launches_of(worker, batch, monkeypatch)
    table = worker.model_runner.req_to_token_pool.req_to_token
    seen = DraftWindow(8, 1, table, torch.empty_like(table))
    worker.draft_block = dataclasses.replace(worker.draft_block, seen=seen)
    with launches:
        worker._decode_round(batch, events.returning("publish"))
    of_window = ["sub", "clamp", "arange", "add", "clamp", "index", "index_put_", "sub"]
    assert launches.names == ["inputs", "embedding", *of_window, "argmax", "walk", "move rows", "index_select"]


def test_a_round_of_requests_with_penalties_launches_two_more(
    round_of_fakes: tuple[Any, Any, Events], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddtree_sglang.engine.stages import node_penalties
    from ddtree_sglang.kernels import node_penalties_triton

    worker, batch, events = round_of_fakes
    launches = launches_of(worker, batch, monkeypatch)
    monkeypatch.setattr(node_penalties, "is_device_path", lambda: True)
    for name in ("penalize_nodes_triton", "count_tokens_triton"):
        monkeypatch.setattr(node_penalties_triton, name, launches.kernel(name, lambda *_, **__: None))
    worker.penalties._state = PenaltyState.empty(ROWS, 4, VOCABULARY, META)
    batch.sampling_info = SimpleNamespace(
        acc_additive_penalties=empty(REQUESTS, VOCABULARY),
        is_all_greedy=True,
        logit_bias=None,
        sampling_mask_batch_indices=None,
        has_custom_logit_processor=False,
    )
    with launches:
        worker._decode_round(batch, events.returning("publish"))
    penalized = ["penalize_nodes_triton", "argmax", "walk", "count_tokens_triton"]
    assert launches.names == ["inputs", "embedding", *penalized, "move rows", "index_select"]


def launches_of(worker: Any, batch: Any, monkeypatch: pytest.MonkeyPatch) -> Launches:
    """The record of what a round of this worker launches."""
    from ddtree_sglang.engine.graphs.drafter_tail import GraphTrees
    from ddtree_sglang.engine.stages.trees import MaskBuffer
    from ddtree_sglang.kernels import round_commit_triton, round_inputs_triton

    launches = Launches()
    monkeypatch.setattr(round_inputs_triton, "round_inputs_triton", launches.kernel("inputs", round_inputs))
    monkeypatch.setattr(round_commit_triton, "commit_round_triton", launches.kernel("walk", commit_round))
    worker.mover = SimpleNamespace(move=launches.kernel("move rows", lambda *_: None))
    table = empty(VOCABULARY, HIDDEN, dtype=torch.float32)
    worker.draft_block = dataclasses.replace(worker.draft_block, full_embedding=table)
    cells = empty(10_000, dtype=torch.bool)
    tail = SimpleNamespace(num_nodes=NODES, trees=lambda count: BuiltTree.empty(count, NODES, META, cells))
    worker.trees = GraphTrees(worker.ranking, {NODES: MaskBuffer(cells, 9, in_place=True, by_address=True)}, tail)
    worker.ends.of(batch.reqs)  # what a round of new requests copies to the device, the next one has
    return launches


def test_a_round_of_one_node_drafts_nothing(round_of_fakes: tuple[Any, Any, Events]) -> None:
    from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
    from ddtree_sglang.engine.stages.draft_context import DraftContext
    from ddtree_sglang.engine.stages.round_budget import RoundBudget

    worker, batch, events = round_of_fakes
    worker.budget = RoundBudget(BudgetPolicy.fixed(1))
    _, worker._target_worker = fake_target(events, num_nodes=1)
    worker.context = DraftContext(events.returning("draft context"), waits=True)
    result = worker._decode_round(batch, events.returning("publish"))
    assert events == ["verify graph", "publish"]  # its row stays, and the drafter's context waits
    worker.context.flush()
    assert events[-1] == "draft context"
    # The scheduler's stride stays, whatever the round.
    assert result.next_token_ids.shape == (REQUESTS * BLOCK,)


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("verify_tokens", [None, 40])
def test_the_drafters_graph_is_given_the_masks_buffer(
    round_of_fakes: tuple[Any, Any, Events],
    monkeypatch: pytest.MonkeyPatch,
    verify_tokens: int | None,
    deterministic: bool,
) -> None:
    from sglang.srt.speculative.eagle_utils import TreeMaskMode

    from ddtree_sglang.engine import worker as module
    from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
    from ddtree_sglang.engine.stages.round_budget import RoundBudget

    worker, _, events = round_of_fakes
    worker.device, worker.draft_model_runner.capture_tail_hooks = "cuda", []
    if verify_tokens is not None:
        worker.budget = RoundBudget(BudgetPolicy.by_load(NODES, verify_tokens))
    decode = SimpleNamespace(bs=[1, 2, 256])
    graph = SimpleNamespace(cuda_graph_config=SimpleNamespace(decode=decode))
    # The mask's buffer has room for what the target's runner captured, fewer than configured: so must the trees.
    cells = torch.zeros(2 * NODES * (100 + NODES), dtype=torch.uint8)
    held = SimpleNamespace(buffer=cells, mode=TreeMaskMode.FULL_MASK, max_bs=2, is_read=True)
    states = SimpleNamespace(
        backend=lambda _: SimpleNamespace(verify_mask=held), max_batch=lambda sizes: min(2, max(sizes))
    )
    mode = SimpleNamespace(enable_deterministic_inference=deterministic)
    monkeypatch.setattr(module, "get_exec", lambda: SimpleNamespace(graph=graph, deterministic=mode))
    monkeypatch.setattr(module.NodeCountStates, "capture", lambda *_: states)
    monkeypatch.setattr(module, "DraftGraphTail", lambda *_, **given: given)
    monkeypatch.setattr(module, "is_device_path", lambda: True)
    monkeypatch.setattr(module, "rehearse_rounds", events.returning("rehearsal"))
    monkeypatch.setattr(module, "rehearse_penalties", events.returning("rehearsal of penalties"))
    worker.model_runner.sliding_window_size = None
    monkeypatch.setattr(module.DDTreeWorker, "_draft_scope", lambda _: nullcontext())
    monkeypatch.setattr(module.DFlashWorkerV2, "init_cuda_graphs", events.returning("draft graph captured"))
    worker.init_cuda_graphs()
    (hook,) = worker.draft_model_runner.capture_tail_hooks
    assert hook["max_batch"] == 2
    assert worker.trees.tail is hook
    # Deterministic inference reads a mask's prefix columns, which the builder would not write.
    assert (hook["flat_mask"] is None) == deterministic
    assert events == ["rehearsal of penalties", "rehearsal", "draft graph captured"]
