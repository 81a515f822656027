"""The backend that SGLang resolves to under DDTREE: its real pipeline, told that it is on one GPU or another."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from ddtree_sglang.engine.admission import attention_default
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import AMPERE, BLACKWELL, HOPPER, OLD_CUDA_HOPPER, platform, resolved

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]

WAYS = ("command line", "Engine")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("facts", "given", "backend"),
    [
        (HOPPER, {}, "fa3"),
        (HOPPER, {"dtype": "float16"}, "fa3"),
        (HOPPER, {"dtype": "float32"}, "triton"),
        (HOPPER, {"device": None}, "fa3"),
        (HOPPER, {"enable_deterministic_inference": True}, "fa3"),
        (HOPPER, {"kv_cache_dtype": "fp8_e5m2"}, "flashinfer"),
        (HOPPER, {"kv_cache_dtype": "fp8_e4m3"}, "flashinfer"),
        (HOPPER, {"kv_cache_dtype": "bf16"}, "triton"),
        (OLD_CUDA_HOPPER, {}, "triton"),
        (AMPERE, {}, "triton"),
        (AMPERE, {"enable_deterministic_inference": True}, "triton"),
        (AMPERE, {"kv_cache_dtype": "fp8_e5m2"}, "flashinfer"),
        (BLACKWELL, {}, "triton"),
        (BLACKWELL, {"enable_deterministic_inference": True}, "triton"),
    ],
)
def test_the_backend_that_nobody_named(
    pair: tuple[str, str], way: str, facts: dict[str, Any], given: dict[str, Any], backend: str
) -> None:
    cfg = resolved(way, pair, facts, **given)
    assert cfg.attention_backend == backend
    assert (cfg.prefill_attention_backend, cfg.decode_attention_backend) == (None, None)
    assert (cfg.page_size, cfg.speculative_num_draft_tokens, cfg.speculative_eagle_topk) == (1, 17, 2)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("facts", [HOPPER, BLACKWELL])
@pytest.mark.parametrize("named", ["flashinfer", "triton"])
def test_a_named_backend_is_kept(pair: tuple[str, str], way: str, facts: dict[str, Any], named: str) -> None:
    assert resolved(way, pair, facts, attention_backend=named).attention_backend == named


@pytest.mark.parametrize("way", WAYS)
def test_one_of_a_pair_is_kept_and_the_other_chosen(pair: tuple[str, str], way: str) -> None:
    """A verify runs on prefill's backend, which SGLang would have made FlashInfer."""
    cfg = resolved(way, pair, HOPPER, decode_attention_backend="triton")
    assert (cfg.attention_backend, cfg.decode_attention_backend) == ("fa3", "triton")
    cfg = resolved(way, pair, HOPPER, prefill_attention_backend="flashinfer", decode_attention_backend="triton")
    assert (cfg.prefill_attention_backend, cfg.decode_attention_backend) == ("flashinfer", "triton")


@pytest.mark.parametrize("way", WAYS)
def test_prefills_with_adapters_have_no_graphs(pair: tuple[str, str], way: str) -> None:
    modules = ["q_proj"] if way == "Engine" else "q_proj"
    adapters = {"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": modules}
    without, cfg = (resolved(way, pair, HOPPER, **given) for given in ({}, adapters))
    assert [one.disable_prefill_cuda_graph for one in (without, cfg)] == [False, True]
    assert cfg.cuda_graph_config.prefill.backend == "disabled"
    assert cfg.cuda_graph_config.decode.backend == without.cuda_graph_config.decode.backend
    with pytest.raises((SystemExit, DDTreeConfigError), match="adapters without graphs of prefills"):
        resolved(way, pair, HOPPER, cuda_graph_backend_prefill="breakable", **adapters)


def test_other_algorithms_and_other_platforms_choose_their_own(pair: tuple[str, str]) -> None:
    """Of this very pipeline, which without us makes a tree's backend FlashInfer."""
    from sglang.srt.server_args import ServerArgs

    plain = resolved("Engine", pair, BLACKWELL, speculative_algorithm=None, speculative_draft_model_path=None)
    assert plain.attention_backend == "trtllm_mha"
    args = ServerArgs(model_path=pair[0], speculative_algorithm="DDTREE", speculative_draft_model_path=pair[1])
    attention_default.complete_raw_arguments(args)  # where these tests run: an out-of-tree platform, or none
    assert args.attention_backend is None
    assert args.speculative_num_draft_tokens == 17


def test_one_line_says_which_and_why(pair: tuple[str, str], caplog: pytest.LogCaptureFixture) -> None:
    for facts, given, words in (
        (HOPPER, {}, "DDTREE attends with fa3: --attention-backend names none, and this GPU is a Hopper."),
        (HOPPER, {"dtype": "float32"}, "DDTREE attends with triton: --attention-backend names none, and fa3 takes no"),
        (AMPERE, {}, "and this GPU is no Hopper"),
        (AMPERE, {"attention_backend": "triton"}, None),
    ):
        caplog.clear()
        with caplog.at_level(logging.INFO, attention_default.logger.name):
            resolved("Engine", pair, facts, **given)
        said = [message for message in caplog.messages if "attends with" in message]
        assert len(said) == (words is not None)
        assert all(words in message for message in said if words)


def test_arguments_that_are_resolved_already_are_left_alone(pair: tuple[str, str]) -> None:
    """A child process gets them so, and SGLang seals them."""
    from sglang.srt.server_args import ServerArgs

    with platform(AMPERE):
        args = ServerArgs(
            model_path=pair[0],
            speculative_algorithm="DDTREE",
            speculative_draft_model_path=pair[1],
            skip_tokenizer_init=True,
            device="cuda",
        )
        args.resolve_once()
    with platform(HOPPER):
        args.resolve_once()
    assert args.attention_backend == "triton"


@pytest.mark.parametrize("way", WAYS)
def test_a_cache_whose_rows_share_scales_is_refused(pair: tuple[str, str], way: str) -> None:
    with pytest.raises((SystemExit, DDTreeConfigError), match="rows share scales; set --kv-cache-dtype to auto"):
        resolved(way, pair, HOPPER, kv_cache_dtype="fp4_mx_block16", attention_backend="triton")
