"""Servers that prefill or decode alone: what is refused, and what is not."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from sglang.srt.disaggregation.base.conn import KVPoll
from sglang.srt.disaggregation.common import conn

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine.admission import split_servers
from ddtree_sglang.engine.admission.drafter_families import LATTICE_FIELDS
from ddtree_sglang.engine.admission.server_args import COSTS_WARMUP
from ddtree_sglang.engine.admission.split_servers import (
    check_split_loaded,
    check_split_target,
    refuse_other_sizes,
)
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.engine.admission.test_attention_groups import GROUPS, QWEN3
from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize(
    "given",
    [
        {},
        {"disaggregation_decode_allocation_policy": "prefill_complete", "optimistic_prefill_attempts": 2},
        {"disaggregation_decode_allocation_policy": "prefill_complete"},
        {"enable_strict_thinking": True, "reasoning_parser": "qwen3"},
    ],
    ids=["alone", "optimistic prefills", "late slots", "strict thinking"],
)
def test_both_kinds_are_admitted(mode: str, given: dict[str, Any], pair: tuple[str, str]) -> None:
    cfg = resolved("Engine", pair, HOPPER, disaggregation_mode=mode, attention_backend="fa3", **given)
    assert cfg.disaggregation_mode == mode
    assert cfg.speculative_dflash_block_size == 8


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_groups_are_admitted_on_both(mode: str, tmp_path: Path) -> None:
    pair = write_checkpoint(tmp_path / "target", QWEN3), write_checkpoint(tmp_path / "drafter", DRAFTER)
    cfg = resolved("Engine", pair, HOPPER, disaggregation_mode=mode, **GROUPS)
    assert cfg.attn_dp_size == 2


def test_a_prefilling_server_may_keep_prompts_on_the_host(pair: tuple[str, str]) -> None:
    """SGLang's decoding server has no prefix cache, and refuses it there."""
    given = {"attention_backend": "fa3", "enable_hierarchical_cache": True}
    assert resolved("Engine", pair, HOPPER, disaggregation_mode="prefill", **given).enable_hierarchical_cache
    with pytest.raises((SystemExit, ValueError), match="mutually exclusive"):
        resolved("Engine", pair, HOPPER, disaggregation_mode="decode", **given)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"optimistic_prefill_attempts": 1}, "remove --optimistic-prefill-attempts"),
        ({"grammar_backend": "llguidance"}, "change --grammar-backend"),
        ({"enable_custom_logit_processor": True}, "remove --enable-custom-logit-processor"),
        ({"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": ["q_proj"]}, "remove --enable-lora"),
        ({"enable_return_hidden_states": True}, "remove --enable-return-hidden-states"),
        ({"enable_return_routed_experts": True}, "remove --enable-return-routed-experts"),
        ({"enable_streaming_session": True}, "remove --enable-streaming-session"),
    ],
)
def test_what_was_not_shown_there_is_refused(
    mode: str, given: dict[str, Any], message: str, pair: tuple[str, str]
) -> None:
    with pytest.raises(DDTreeConfigError, match=f"--disaggregation-mode {mode} .*{message}"):
        resolved("Engine", pair, HOPPER, disaggregation_mode=mode, attention_backend="fa3", **given)


def test_a_head_that_reads_the_prompts_last_token_is_refused_there(tmp_path: Path) -> None:
    head = {
        f"lilicorr_{name}": value for name, value in zip(LATTICE_FIELDS, (4, 32, 1, 2, 2.0, 8, 1e-6, 1.0), strict=True)
    }
    fields = {**DRAFTER["dflash_config"], **head}
    config = {**DRAFTER, "architectures": ["LiLiCorrDraftModel"], "dflash_config": fields}
    pair = write_checkpoint(tmp_path / "target", TARGET), write_checkpoint(tmp_path / "drafter", config)
    with pytest.raises(DDTreeConfigError, match="takes drafters of DFlash, DFlash2, DSpark, got one of LiLiCorr"):
        resolved("Engine", pair, HOPPER, disaggregation_mode="decode", attention_backend="fa3")


@pytest.mark.parametrize("mode", ["null", "prefill", "decode"])
@pytest.mark.parametrize("is_recurrent", [True, False])
@pytest.mark.parametrize("overlaps", [True, False])
def test_states_are_decoded_without_a_round_in_flight(mode: str, is_recurrent: bool, overlaps: bool) -> None:
    cfg = SimpleNamespace(disaggregation_mode=mode, disable_overlap_schedule=not overlaps)
    is_refused = mode == "decode" and is_recurrent and overlaps
    expected = pytest.raises(DDTreeConfigError, match=r"decode .* recurrent layers; add --disable-overlap-schedule")
    with expected if is_refused else nullcontext():
        check_split_target(cfg, is_recurrent)


@pytest.mark.parametrize(
    ("mode", "has_pool", "page_size", "refused"),
    [
        ("decode", True, 1, None),
        ("decode", False, 1, "remove --disable-hybrid-swa-memory"),
        ("prefill", True, 4, "in pages of several tokens, got 4; remove --page-size"),
        ("null", False, 4, None),
    ],
)
def test_windows_of_a_loaded_model(mode: str, has_pool: bool, page_size: int, refused: str | None) -> None:
    runner = SimpleNamespace(
        sliding_window_size=128, page_size=page_size, model_config=SimpleNamespace(is_hybrid_swa=has_pool)
    )
    disagg = SimpleNamespace(disaggregation_mode=mode)
    with pytest.raises(DDTreeConfigError, match=refused) if refused else nullcontext():
        check_split_loaded(disagg, runner)


@pytest.mark.parametrize("mode", ["prefill", "decode"])
def test_rounds_of_a_split_server_are_not_measured_at_start(
    mode: str, pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its requests come in twos, which a warm-up of one server has not."""
    monkeypatch.setenv(CONFIG_ENV, json.dumps({"policy": "adaptive"}))
    one, split = (
        resolved("Engine", pair, HOPPER, attention_backend="fa3", **given)
        for given in ({}, {"disaggregation_mode": mode})
    )
    assert (one.warmups, split.warmups) == (COSTS_WARMUP, None)


def a_receiver(prefilled_by: int | None) -> Any:
    """SGLang's own, of a decoding server with two ranks, behind a manager that keeps what it is told."""
    room, failures = 7, {}
    manager = SimpleNamespace(attn_tp_size=2, prefill_info_table={}, failures=failures, statuses={})
    manager.record_failure = failures.__setitem__
    manager.update_status = manager.statuses.__setitem__
    if prefilled_by is not None:
        manager.prefill_info_table["host:1"] = SimpleNamespace(attn_tp_size=prefilled_by)
    receiver = object.__new__(conn.CommonKVReceiver)
    receiver.kv_mgr, receiver.bootstrap_addr, receiver.bootstrap_room = manager, "host:1", room
    receiver.conclude_state, receiver.abort_notified = None, False
    return receiver


@pytest.mark.parametrize(
    ("prefilled_by", "serves", "is_refused"),
    [(1, True, True), (4, True, True), (2, True, False), (None, True, False), (1, False, False)],
)
def test_a_request_that_ranks_of_another_number_prefilled_fails(
    prefilled_by: int | None, serves: bool, is_refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(split_servers, "serves_ddtree", lambda: serves)
    receiver, begun = a_receiver(prefilled_by), []
    refuse_other_sizes(lambda _receiver, rank: begun.append(rank), receiver, 3)
    assert begun == ([] if is_refused else [3])
    assert (receiver.conclude_state == KVPoll.Failed) is is_refused
    assert receiver.kv_mgr.statuses == ({7: KVPoll.Failed} if is_refused else {})
    told = receiver.kv_mgr.failures.get(7, "")
    assert (f"got 2 here and {prefilled_by} at host:1; start both with the same" in told) is is_refused


def test_a_request_that_has_failed_keeps_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(split_servers, "serves_ddtree", lambda: True)
    receiver, begun = a_receiver(1), []
    receiver.conclude_state = KVPoll.Failed
    refuse_other_sizes(lambda _receiver, rank: begun.append(rank), receiver, 0)
    assert (begun, receiver.kv_mgr.failures) == ([0], {})


def test_sglang_does_not_tell_the_other_server_of_an_adapter_after_a_pause() -> None:
    """What the refusal of adapters is for: the keys that it makes anew are the base model's."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    req = SimpleNamespace(origin_input_ids=[1, 2], output_ids=[3], sampling_params=SamplingParams(), lora_id="adapter")
    others = (
        *("rid", "bootstrap_host", "bootstrap_port", "bootstrap_room", "priority", "extra_key", "cache_salt"),
        *("routing_key", "disagg_prefill_dp_rank"),
    )
    vars(req).update(dict.fromkeys(others))
    payload = Req.build_rebootstrap_payload(req)
    assert payload["input_ids"] == [1, 2, 3]
    assert "adapter" not in str(payload)
    assert [name for name in payload if "lora" in name] == []


def test_sglangs_prefill_that_is_given_up_has_its_first_token_in_its_grammar_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the refusal of optimistic prefills is for: the next try takes a first token into that grammar again."""
    from sglang.srt.disaggregation import prefill
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    for name in ("checkpoint_kv_cache", "release_kv_cache"):
        monkeypatch.setattr(prefill, name, lambda *_given, **_named: None)
    arguments = SimpleNamespace(optimistic_prefill_attempts=2, disaggregation_decode_allocation_policy="early")
    monkeypatch.setattr(prefill, "get_disagg", lambda: arguments)
    taken: list[int] = []
    req = Req("one", "", [5, 6, 7], SamplingParams())
    req.grammar = SimpleNamespace(accept_token=taken.append)
    req.output_ids.append(9)
    req.grammar.accept_token(9)
    monkeypatch.setattr(req, "advance_cache_request_handle", lambda: None, raising=False)
    scheduler = SimpleNamespace(
        tree_cache=SimpleNamespace(finish=lambda *_given: None),
        clear_pending_chunk_send=lambda _req: None,
        metrics_reporter=SimpleNamespace(enable_metrics=False),
        processed_tokens_counter=0,
        waiting_queue=[],
    )
    prefill.SchedulerDisaggregationPrefillMixin.optimistic_release_and_requeue(scheduler, req)
    assert scheduler.waiting_queue == [req]
    assert (list(req.output_ids), taken) == ([], [9])


@pytest.mark.parametrize(("of_the_drafter", "answer"), [(64, 0), (32, -1)])
def test_sglang_cuts_no_keys_for_other_ranks_if_a_drafters_rows_are_shorter(of_the_drafter: int, answer: int) -> None:
    """What the refusal of another number of ranks is for: such a request fails there, too, without saying why."""
    from sglang.srt.disaggregation.mooncake.conn import MooncakeKVManager

    keys = SimpleNamespace(
        kv_item_lens=[64, of_the_drafter],
        page_size=1,
        total_kv_head_num=4,
        engine_rank=0,
        kv_data_ptrs=[0, 1],
        kv_layer_ids=[0, 1],
    )
    rank = SimpleNamespace(
        kv_args=keys, attn_tp_size=1, pp_size=1, _await_transfer_futures=lambda sent: max(one.result() for one in sent)
    )
    nothing = np.zeros(0, dtype=np.int32)
    with ThreadPoolExecutor(1) as executor:
        sent = MooncakeKVManager.send_kvcache_slice(
            rank, "", nothing, [0, 1], nothing, 0, 2, 32, executor, dst_layer_ids=[0, 1]
        )
    assert sent == answer
