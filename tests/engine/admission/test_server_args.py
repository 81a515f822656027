"""SGLang's real parser and resolution, with our hooks on: what is filled in, and what each mistake is told.

No weights are needed: every refusal comes before a model loads.
"""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig
from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND
from ddtree_sglang.engine.debug.trace import server_facts
from ddtree_sglang.engine.stages import round_budget
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]

TARGET = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 100,
    "max_position_embeddings": 256,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
}
DRAFTER = {
    **TARGET,
    "architectures": ["DFlashDraftModel"],
    "model_type": "qwen3",
    "num_hidden_layers": 2,
    "head_dim": 16,
    "block_size": 8,
    "num_target_layers": 4,
    "dflash_config": {"mask_token_id": 4, "target_layer_ids": [0, 2]},
}


ADAPTERS = ("--enable-lora", "--max-lora-rank", "8", "--lora-target-modules", "q_proj", "v_proj")


def write_checkpoint(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


@pytest.fixture
def target(tmp_path: Path) -> str:
    return write_checkpoint(tmp_path / "target", TARGET)


@pytest.fixture
def drafter(tmp_path: Path) -> str:
    return write_checkpoint(tmp_path / "drafter", DRAFTER)


def record(*argv: str) -> Any:
    """SGLang's own: its fields are what was given, whatever was made of it."""
    from sglang.srt.server_args import prepare_server_args

    server_args = prepare_server_args([*argv, "--skip-tokenizer-init"])
    server_args.resolve_once()
    return server_args


def resolve(*argv: str) -> Any:
    from sglang.srt.arg_groups.overrides import resolving_view

    return resolving_view(record(*argv))


def ddtree(target: str, drafter: str, *more: str) -> tuple[str, ...]:
    return (
        *("--model-path", target, "--speculative-algorithm", "DDTREE"),
        *("--speculative-draft-model-path", drafter, *more),
    )


def test_arguments_are_completed_from_the_budget_and_the_drafter(target: str, drafter: str) -> None:
    cfg = resolve(*ddtree(target, drafter, "--speculative-ddtree-budget", "31"))
    assert cfg.speculative_num_draft_tokens == 32
    assert cfg.speculative_dflash_block_size == 8
    assert cfg.speculative_num_steps == 7
    assert cfg.speculative_eagle_topk == 2
    assert cfg.max_running_requests is not None


@pytest.mark.parametrize(("from_anchor", "rows"), [(True, 8), (False, 9)])
@pytest.mark.parametrize("asked", [(), ("--speculative-dflash-block-size", "8")])
def test_a_dspark_drafter_proposes_its_whole_block_size(
    target: str, tmp_path: Path, from_anchor: bool, rows: int, asked: tuple[str, ...]
) -> None:
    """SGLang's chain does, in as many rows, or in one more where the root proposes nothing."""
    head = {"architectures": ["Qwen3DSparkModel"], "markov_rank": 4, "markov_head_type": "vanilla"}
    drafter = write_checkpoint(tmp_path / "dspark", {**DRAFTER, **head, "sample_from_anchor": from_anchor})
    cfg = resolve(*ddtree(target, drafter, *asked))
    assert (cfg.speculative_num_steps, cfg.speculative_dflash_block_size) == (8, rows)


@pytest.mark.parametrize(
    ("more", "warmups"),
    [
        ((), "ddtree_costs"),
        (("--speculative-ddtree-measure-seconds", "0"), None),
        (("--speculative-ddtree-policy", "fixed"), None),
        (("--speculative-ddtree-policy", "adaptive"), "ddtree_costs"),
        (("--speculative-ddtree-policy", "adaptive", "--warmups", "mine,other"), "mine,other,ddtree_costs"),
        (("--speculative-ddtree-policy", "adaptive", "--warmups", "ddtree_costs,mine"), "ddtree_costs,mine"),
        (("--speculative-ddtree-policy", "adaptive", "--speculative-ddtree-measure-seconds", "0"), None),
        (("--speculative-ddtree-policy", "adaptive", "--skip-server-warmup"), None),
        (("--speculative-ddtree-policy", "adaptive", "--tokenizer-worker-num", "2"), None),
    ],
)
def test_rounds_are_measured_by_a_warm_up_where_the_policy_needs_them(
    target: str, drafter: str, more: tuple[str, ...], warmups: str | None
) -> None:
    assert resolve(*ddtree(target, drafter, *more)).warmups == warmups


def test_rounds_on_a_cpu_are_timed_as_rounds_that_nothing_overlaps(
    target: str, drafter: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody said so on the command line, so the record does not, either: each round's time was the one's before it."""
    server_args = record(*ddtree(target, drafter, "--speculative-ddtree-policy", "adaptive"))
    assert not server_args.disable_overlap_schedule
    monkeypatch.setattr(round_budget, "get_parallel", lambda: SimpleNamespace(tp_rank=0, tp_size=1))
    monkeypatch.setenv("DDTREE_COSTS", "")
    config = DDTreeConfig(policy="adaptive")
    rounds = round_budget.make_round_budget(BudgetPolicy.adaptive(17), config, server_args, ())
    assert isinstance(rounds, round_budget.AdaptiveRounds)
    assert rounds.budget._lag == 0
    assert rounds._costs._facts["attention_backend"] == ATTENTION_BACKEND
    assert server_facts(config, server_args)["attention_backend"] == ATTENTION_BACKEND


def test_help_lists_our_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        resolve("--help")
    assert "--speculative-ddtree-budget" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--speculative-ddtree-budget", "0"), "from 1 to 255, got 0"),
        (("--speculative-ddtree-budget", "256"), "from 1 to 255, got 256"),
        (("--speculative-dflash-block-size", "16"), "trained for, 8, got 16"),
        (("--attention-backend", "torch_native"), "attention"),
        (("--pp-size", "2"), "--pp-size"),
        (("--attn-cp-size", "2", "--tp-size", "2"), "remove --attn-cp-size"),
        (("--speculative-use-rejection-sampling",), "rejection-sampling"),
        (("--speculative-accept-threshold-single", "0.5"), "lossless"),
        (("--speculative-draft-window-size", "7"), "at least its block of 8 tokens, got 7"),
        (
            ("--speculative-draft-window-size", "64", "--speculative-draft-sink-size", "4"),
            "first tokens .* remove --speculative-draft-sink-size",
        ),
        (("--enable-unified-cache-external-linker",), "remove --enable-unified-cache-external-linker"),
        (("--enable-flexkv",), "remove --enable-lmcache, --enable-flexkv and --radix-cache-backend"),
        (("--grammar-backend", "outlines"), "which outlines cannot; use --grammar-backend xgrammar or llguidance"),
        (("--enable-return-indexer-topk",), "--enable-return-indexer-topk"),
        ((*ADAPTERS, "--lora-backend", "triton"), "--lora-backend must be 'torch_native' on a machine without a GPU"),
        ((*ADAPTERS, "--enable-lora-overlap-loading"), "--enable-lora-overlap-loading needs a GPU"),
        ((*ADAPTERS, "--moe-runner-backend", "experimental_sgl_trtllm"), "experimental_sgl_trtllm"),
        (("--speculative-num-steps", "3"), "the drafter's block gives 7, got 3"),
    ],
)
def test_unsupported_arguments_end_with_one_line(
    target: str, drafter: str, more: tuple[str, ...], message: str
) -> None:
    with pytest.raises((SystemExit, ValueError), match=message):
        resolve(*ddtree(target, drafter, *more))


@pytest.mark.parametrize("window", [8, 2048])
def test_a_drafters_window_may_be_as_short_as_its_block(target: str, drafter: str, window: int) -> None:
    cfg = resolve(*ddtree(target, drafter, "--speculative-draft-window-size", str(window)))
    assert cfg.speculative_draft_window_size == window


def test_adapters_are_served_on_the_backend_of_this_machine(target: str, drafter: str) -> None:
    cfg = resolve(*ddtree(target, drafter, *ADAPTERS, "--speculative-ddtree-policy", "load"))
    assert (cfg.enable_lora, cfg.lora_backend) == (True, "torch_native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"lora_backend": "triton"}, None),
        ({"lora_backend": "torch_native"}, "LoRA backends csgmv and triton"),
        ({"lora_backend": "triton_v2"}, "LoRA backends csgmv and triton"),
        ({"enable_lora_overlap_loading": True}, "--enable-lora-overlap-loading"),
        ({"moe_runner_backend": "experimental_sgl_trtllm"}, "experimental_sgl_trtllm"),
        ({"policy": "load"}, "a fixed number of nodes on a GPU"),
    ],
)
def test_rules_of_a_server_with_adapters_on_a_gpu(
    change: dict[str, Any], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddtree_sglang.engine.admission import server_args

    monkeypatch.setattr(server_args, "is_device_path", lambda: True)
    monkeypatch.setenv(CONFIG_ENV, json.dumps({"policy": change.pop("policy", "fixed")}))
    fields = {"lora_backend": "csgmv", "enable_lora_overlap_loading": False}
    fields |= {"moe_runner_backend": "auto", "speculative_moe_runner_backend": None}
    cfg = SimpleNamespace(**{**fields, **change})
    broken = [rule.message for rule in server_args.ADAPTER_RULES if rule.broken(cfg)]
    assert len(broken) == (message is not None)
    assert message is None or message in broken[0]


@pytest.mark.parametrize("backend", ["breakable", "disabled"])
@pytest.mark.parametrize("lora_paths", [None, ["a=b"]])
def test_graphs_of_prefills_with_adapters_are_refused_on_a_gpu(
    lora_paths: list[str] | None, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ddtree_sglang.engine.admission import server_args

    cfg = SimpleNamespace(enable_lora=None, lora_paths=lora_paths)
    cfg.cuda_graph_config = SimpleNamespace(prefill=SimpleNamespace(backend=backend))
    server_args._check_prefills_with_adapters(cfg)
    monkeypatch.setattr(server_args, "is_device_path", lambda: True)
    if lora_paths is None or backend == "disabled":
        server_args._check_prefills_with_adapters(cfg)
        return
    with pytest.raises(DDTreeConfigError, match="got 'breakable'; remove --cuda-graph-backend-prefill"):
        server_args._check_prefills_with_adapters(cfg)


@pytest.mark.parametrize("algorithm", ["DDTREE", None])
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--attention-backend", "torch_native"), "--attention-backend must be 'ddtree_cpu'"),
        (("--kv-cache-dtype", "fp8_e4m3"), "--kv-cache-dtype must be 'auto'"),
        (("--pp-size", "2"), "--pp-size"),
        (("--enable-deterministic-inference",), "--enable-deterministic-inference needs a GPU"),
    ],
)
def test_what_a_cpu_cannot_do_ends_a_command_line_with_one_line(
    target: str, drafter: str, algorithm: str | None, more: tuple[str, ...], message: str
) -> None:
    arguments = ddtree(target, drafter, *more) if algorithm else ("--model-path", target, *more)
    with pytest.raises(SystemExit, match=f"^error: .*{message}"):
        resolve(*arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": 128}, "hidden_size must equal the target's, got 128 and 64"),
        ({"vocab_size": 101}, "got 101 and 100 tokens"),
        ({"num_target_layers": 30}, "trained for a target of 30 layers"),
        ({"dflash_config": {"target_layer_ids": [4]}}, r"\[4\] do not exist"),
        ({"dflash_config": {"selector_rank": 4, "selector_top_k": 4}}, "does not build"),
        # What Transformers would end over in its own words, before DDTREE is asked.
        ({"layer_types": ["full_attention"]}, "layer_types must have one kind for each of 2 layers"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be a whole number of at least 1, got -1"),
        ({"dflash_config": {"target_layer_ids": []}}, "target_layer_ids must name at least one layer"),
    ],
)
def test_drafter_that_does_not_fit_ends_with_one_line(
    tmp_path: Path, target: str, change: dict[str, Any], message: str
) -> None:
    wrong = write_checkpoint(tmp_path / "wrong", {**DRAFTER, **change})
    with pytest.raises(SystemExit, match=message):
        resolve(*ddtree(target, wrong))


def test_missing_drafter_is_named(target: str, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="add --speculative-draft-model-path"):
        resolve("--model-path", target, "--speculative-algorithm", "DDTREE")
    with pytest.raises(SystemExit, match="nowhere' does not exist; check --speculative-draft-model-path"):
        resolve(*ddtree(target, str(tmp_path / "nowhere")))


def test_port_in_use_is_named_before_anything_loads(target: str, drafter: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        with pytest.raises(SystemExit, match=f"port must be free, got {port} on 127.0.0.1"):
            resolve(*ddtree(target, drafter, "--port", port))


def test_how_the_scheduler_cuts_contexts_is_free(target: str, drafter: str) -> None:
    more = ("--page-size", "16", "--chunked-prefill-size", "32", "--enable-mixed-chunk", "--enable-streaming-session")
    cfg = resolve(*ddtree(target, drafter, *more, "--enable-priority-scheduling", "--disable-radix-cache"))
    assert (cfg.page_size, cfg.enable_mixed_chunk, cfg.enable_streaming_session) == (16, True, True)


def test_engine_users_get_the_exception_itself(target: str, drafter: str) -> None:
    from sglang.srt.server_args import ServerArgs

    args = ServerArgs(
        model_path=target,
        speculative_algorithm="DDTREE",
        speculative_draft_model_path=drafter,
        speculative_num_draft_tokens=512,
        skip_tokenizer_init=True,
    )
    with pytest.raises(DDTreeConfigError, match="got 511"):
        args.resolve_once()


def test_target_whose_own_defaults_are_penalties_starts(target: str, drafter: str) -> None:
    """As Qwen2.5-Instruct's."""
    (Path(target) / "generation_config.json").write_text('{"repetition_penalty": 1.05}')
    resolve(*ddtree(target, drafter, "--preferred-sampling-params", '{"presence_penalty": 0.5}'))


def test_a_pair_that_auto_would_load_in_two_dtypes_is_refused_unless_one_is_named(tmp_path: Path, target: str) -> None:
    """As the embedded pair: SGLang makes float16 of the float32 target, the drafter is bfloat16."""
    drafter = write_checkpoint(tmp_path / "half", {**DRAFTER, "torch_dtype": "bfloat16"})
    with pytest.raises(SystemExit, match="one dtype, got float16 and bfloat16 with --dtype auto; add --dtype float16"):
        resolve(*ddtree(target, drafter))
    for dtype in ("float32", "bfloat16"):
        resolve(*ddtree(target, drafter, "--dtype", dtype))


def test_target_with_recurrent_layers_is_refused_before_it_loads(tmp_path: Path, drafter: str) -> None:
    from sglang.srt.configs import FalconH1Config

    config = FalconH1Config(
        hidden_size=64, num_hidden_layers=4, vocab_size=100, num_attention_heads=4, num_key_value_heads=2
    )
    hybrid = {**config.to_dict(), "architectures": ["FalconH1ForCausalLM"]}
    with pytest.raises(SystemExit, match="got FalconH1ForCausalLM, whose states have not been shown to follow a tree"):
        resolve(*ddtree(write_checkpoint(tmp_path / "hybrid", hybrid), drafter))


def test_sglang_captures_nothing_of_an_indexer_that_a_target_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why asking for it is refused: SGLang warns and starts, and no answer has what was asked for."""
    from sglang.srt.state_capturer import indexer_topk

    monkeypatch.setattr(indexer_topk, "IndexerTopkCapturer", lambda **sizes: sizes)
    asked = {"enable": True, "index_topk": 2, "num_tokens": 8, "max_running_requests": 2, "device": "cpu"}
    assert indexer_topk._create_indexer_capturer_raw(num_indexer_layers=1, **asked) is not None
    assert indexer_topk._create_indexer_capturer_raw(num_indexer_layers=0, **asked) is None


def test_sglang_turns_adaptive_steps_off_itself(target: str, drafter: str) -> None:
    """So no rule of ours is needed for them."""
    assert resolve(*ddtree(target, drafter, "--speculative-adaptive")).speculative_adaptive is False
