"""The target's recurrent states: what SGLang is told to commit, and what a start says of their memory."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import AcceptedPath
from ddtree_sglang.core.state_commit import state_steps
from ddtree_sglang.engine.stages import recurrent_states
from ddtree_sglang.engine.stages.recurrent_states import RecurrentStates

pytestmark = pytest.mark.sglang

PREFIX_LENS = torch.tensor([62, 10])


def commit_of(index: torch.Tensor) -> Any:
    lens = (index >= 0).sum(1)
    path = AcceptedPath(index, lens - 1, lens, index, lens)
    return SimpleNamespace(path=path, accept_lens=lens.to(torch.int32))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What SGLang's own commit was given."""
    calls: list[dict[str, Any]] = []

    def commit(*arguments: Any, **named: Any) -> None:
        names = ("worker", "batch", "accept_lens", "accept_index", "num_nodes")
        calls.append(dict(zip(names, arguments, strict=True)) | named)

    monkeypatch.setattr(recurrent_states, "commit_mamba_states_after_verify", commit)
    monkeypatch.setattr(recurrent_states, "mamba_track_grid", lambda page_size: 64 * page_size)
    return calls


def batch_of(track: torch.Tensor | None) -> Any:
    return SimpleNamespace(mamba_track_indices=track, tree_cache=SimpleNamespace(page_size=1))


def test_states_of_the_last_nodes_and_of_the_kept_length_are_committed(told: list[dict[str, Any]]) -> None:
    batch, commit = batch_of(torch.tensor([3, 4])), commit_of(torch.tensor([[0, 2, 5], [0, 4, -1]]))
    RecurrentStates("worker").commit(batch, commit, PREFIX_LENS, 6)
    (given,) = told
    last, tracked = given.pop("prepared_step_indices")
    # 62 and the nodes 0 and 2 are 64 tokens.
    assert (last.tolist(), tracked.tolist()) == ([5, 4], [2, -1])
    assert given["worker"] == "worker"
    assert given["batch"] is batch
    assert given["accept_lens"] is commit.accept_lens
    assert given["num_nodes"] == 6


def test_nothing_is_tracked_where_the_prefix_cache_takes_last_states(told: list[dict[str, Any]]) -> None:
    RecurrentStates("worker").commit(batch_of(None), commit_of(torch.tensor([[0, 2, 5], [0, 4, -1]])), PREFIX_LENS, 6)
    last, tracked = told[0]["prepared_step_indices"]
    assert last.tolist() == [5, 4]
    assert tracked is None


def test_a_target_whose_layers_all_attend_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = SimpleNamespace(model_runner=SimpleNamespace(model_config="of the target"))
    monkeypatch.setattr(recurrent_states, "mambaish_config", lambda config: None)
    assert RecurrentStates.of(worker) is None
    monkeypatch.setattr(recurrent_states, "mambaish_config", lambda config: {"of the target": "states"}[config])
    assert RecurrentStates.of(worker) == RecurrentStates(worker)


def test_memory_of_nodes_is_said_per_node_request_and_server(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recurrent_states, "get_disagg", lambda: SimpleNamespace(disaggregation_mode="decode"))
    # 2 layers, 3 requests and one for padding, 4 nodes: 128 KiB and 6 KiB a layer and node.
    cache = SimpleNamespace(
        intermediate_ssm=torch.zeros(2, 4, 4, 2, 128, 128),
        intermediate_conv_window=[torch.zeros(2, 4, 4, 1024, 3, dtype=torch.bfloat16)],
    )
    pool = SimpleNamespace(mamba_pool=SimpleNamespace(mamba_cache=cache))
    worker = SimpleNamespace(model_runner=SimpleNamespace(req_to_token_pool=pool))
    with caplog.at_level(logging.INFO):
        RecurrentStates(worker).log_memory(3)
    assert "0.262 MiB a node and request on each GPU, 1.0 MiB a request of 4 nodes, 3 MiB for 3 requests" in caplog.text


def test_a_server_that_prefills_for_others_keeps_no_states_of_nodes(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang makes none there (mem_cache/kv_cache_configurator.py, _pd_prefill_skips_mamba_spec_state)."""
    monkeypatch.setattr(recurrent_states, "get_disagg", lambda: SimpleNamespace(disaggregation_mode="prefill"))
    pool = SimpleNamespace(mamba_pool=SimpleNamespace(mamba_cache=SimpleNamespace()))
    with caplog.at_level(logging.INFO):
        RecurrentStates(SimpleNamespace(model_runner=SimpleNamespace(req_to_token_pool=pool))).log_memory(3)
    assert caplog.text == ""


@pytest.mark.parametrize("cut", [0, 1, 3], ids=["whole", "cut-by-one", "cut-by-three"])
def test_scheduler_names_the_length_whose_state_the_round_kept(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang counts on the host, with lengths that a stop string may have cut; what it then names must be there."""
    from sglang.srt.managers.scheduler_components import batch_result_processor as module

    interval, depth = 64, 6
    monkeypatch.setattr(module, "mamba_track_grid", lambda page_size: interval)
    processor = SimpleNamespace(tree_cache=SimpleNamespace(page_size=1))
    check = module.SchedulerBatchResultProcessor._mamba_check_track_boundary
    named = 0
    for prefix_len in range(interval - depth - 3, interval + 3):
        for commit_len in range(1, depth + 1):
            index = torch.tensor([[*range(0, 2 * commit_len, 2), *[-1] * (depth - commit_len)]])
            steps = state_steps(commit_of(index).path, torch.tensor([prefix_len]), interval)
            assert steps.tracked is not None
            told = max(1, commit_len - cut)  # tokens that the request is left with
            # The newest token of a request is not committed yet.
            req = SimpleNamespace(seqlen=prefix_len + told + 1)
            result = SimpleNamespace(
                num_correct_drafts_per_req_cpu=[told - 1], num_non_draft_tokens_per_req=1, grammar_retained_tokens=None
            )
            batch = SimpleNamespace(spec_algorithm=SimpleNamespace(is_none=lambda: False))
            at_boundary, length = check(processor, req, batch, result, 0)
            node = int(steps.tracked)
            kept_len = prefix_len + node // 2 + 1 if node >= 0 else None
            assert not at_boundary or length == kept_len
            assert cut > 0 or at_boundary == (kept_len is not None)
            named += at_boundary
    assert named > 0
