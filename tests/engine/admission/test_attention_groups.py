"""DP attention: what is refused with it, and what is not."""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]

GROUPS: dict[str, Any] = {"tp_size": 2, "attn_dp_size": 2, "enable_dp_lm_head": True, "attention_backend": "fa3"}

QWEN3 = {**TARGET, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 16}


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    return write_checkpoint(tmp_path / "target", QWEN3), write_checkpoint(tmp_path / "drafter", DRAFTER)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"attn_dp_size": 1, "dp_size": 2, "enable_dp_attention": True},
        {"enable_mixed_chunk": True},
        {"enable_hierarchical_cache": True},
        {"tp_size": 4},
    ],
    ids=["flag", "its older form", "mixed chunks", "hierarchical cache", "groups of two ranks"],
)
def test_groups_are_admitted(given: dict[str, Any], pair: tuple[str, str]) -> None:
    cfg = resolved("Engine", pair, HOPPER, **{**GROUPS, **given})
    assert cfg.attn_dp_size == 2
    assert cfg.speculative_dflash_block_size == 8


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_dp_lm_head": False}, "add --enable-dp-lm-head"),
        ({"enable_lora": True, "max_lora_rank": 8, "lora_target_modules": ["q_proj"]}, "remove --enable-lora"),
        ({"enable_return_routed_experts": True}, "remove --enable-return-routed-experts"),
        ({"moe_a2a_backend": "deepep"}, "remove --moe-a2a-backend"),
        (
            {"enable_dp_attention_local_control_broadcast": True},
            "remove --enable-dp-attention-local-control-broadcast",
        ),
    ],
)
def test_what_was_not_shown_with_groups_is_refused(given: dict[str, Any], message: str, pair: tuple[str, str]) -> None:
    with pytest.raises(DDTreeConfigError, match=f"under DP attention.*{message}"):
        resolved("Engine", pair, HOPPER, **{**GROUPS, **given})


def test_groups_that_count_no_others_requests_are_refused(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGLANG_SCHEDULER_SKIP_ALL_GATHER", "1")
    with pytest.raises(DDTreeConfigError, match=r"under DP attention.*unset SGLANG_SCHEDULER_SKIP_ALL_GATHER"):
        resolved("Engine", pair, HOPPER, **GROUPS)


def test_a_class_that_was_not_run_with_groups_is_refused(tmp_path: Path) -> None:
    """Llama's attention is sharded over all ranks: groups would add up each other's tokens, in plain decoding, too."""
    pair = write_checkpoint(tmp_path / "target", TARGET), write_checkpoint(tmp_path / "drafter", DRAFTER)
    with pytest.raises(DDTreeConfigError, match=r"run with .*, Qwen3VLMoeForConditionalGeneration only, got Llama"):
        resolved("Engine", pair, HOPPER, **GROUPS)


def test_a_budget_may_follow_all_groups_load_and_not_one_groups_costs(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CONFIG_ENV, json.dumps({"policy": "load"}))
    assert resolved("Engine", pair, HOPPER, **GROUPS).attn_dp_size == 2
    monkeypatch.setenv(CONFIG_ENV, json.dumps({"policy": "adaptive"}))
    with pytest.raises(DDTreeConfigError, match="which no group may choose by its own rounds"):
        resolved("Engine", pair, HOPPER, **GROUPS)


def test_a_selector_is_admitted_with_groups(tmp_path: Path) -> None:
    selector = {**DRAFTER["dflash_config"], "selector_rank": 4, "selector_top_k": 4}
    config = {**DRAFTER, "architectures": ["DFlash2DraftModel"], "dflash_config": selector}
    pair = write_checkpoint(tmp_path / "target", QWEN3), write_checkpoint(tmp_path / "drafter", config)
    assert resolved("Engine", pair, HOPPER, **GROUPS).attn_dp_size == 2


def test_sglangs_worker_takes_no_lattice_with_groups() -> None:
    """Why LiLiCorr is refused before its target is loaded: the worker, of which DDTREE's is one, ends over it after."""
    from sglang.srt.speculative.dflash_worker_v2 import DFlashWorkerV2

    from ddtree_sglang.engine.worker import DDTreeWorker

    assert issubclass(DDTreeWorker, DFlashWorkerV2)
    (check,) = (
        node
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(DFlashWorkerV2.__init__))))
        if isinstance(node, ast.If) and "attn_dp_enabled" in ast.unparse(node.test)
    )
    said = "DFLASH with dp attention supports plain DFlash and DFlash2 drafts; Domino and LiLiCorr heads are not"
    assert "self.lilicorr is not None" in ast.unparse(check.body[0])
    assert said in ast.unparse(check.body[0])


TWO_GROUPS = {"tp_size": 2, "attn_dp_size": 2, "attn_tp_size": 1, "attn_cp_size": 1, "tp_rank": 0, "attn_tp_rank": 0}
SMALL: dict[str, Any] = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


def attention_of(family: str) -> Any:
    """A layer's attention as SGLang builds it, of four heads."""
    import transformers
    from sglang.srt.models import gemma4_causal, lfm2, lfm2_moe, llama, qwen3

    match family:
        case "llama":
            return llama.LlamaAttention(transformers.LlamaConfig(**SMALL), 64, 4, 2)
        case "gemma4":
            config = transformers.Gemma4TextConfig(**SMALL, head_dim=16, num_hidden_layers=2)
            return gemma4_causal.Gemma4Attention(0, config, 16, 512)
        case "lfm2":
            return lfm2.Lfm2Attention(transformers.Lfm2Config(**SMALL), 0)
        case "lfm2_moe":
            return lfm2_moe.Lfm2MoeAttention(transformers.Lfm2MoeConfig(**SMALL), 0)
    return qwen3.Qwen3Attention(64, 4, 2, head_dim=16)


@pytest.mark.parametrize("family", ["llama", "gemma4", "lfm2", "lfm2_moe", "qwen3"])
def test_sglang_shards_some_classes_heads_over_the_ranks_of_all_groups(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why these are refused: a group of one rank has half of the heads, for tokens that no other group sees."""
    from sglang.srt.models import qwen3
    from sglang.srt.runtime_context import get_parallel

    plain = SimpleNamespace(deterministic=SimpleNamespace(rl_on_policy_target=None))
    monkeypatch.setattr(qwen3, "get_exec", lambda: plain)
    with get_parallel().override(**TWO_GROUPS):
        attention = attention_of(family)
    assert attention.attn.tp_q_head_num == (4 if family == "qwen3" else 2)
    assert attention.qkv_proj.weight.shape[0] == (4 + 2 + 2) * 16 // (1 if family == "qwen3" else 2)


class Boundary:
    """Of a layer, with SGLang's own stream of residuals: a norm makes another tensor of what it reads."""

    def prepare(self, hidden: torch.Tensor, forward_batch: Any) -> torch.Tensor:
        stream = forward_batch.residual_stream
        stream.check(hidden)
        return stream.write(hidden).clone()  # type: ignore[no-any-return]

    def finish(self, hidden: torch.Tensor, forward_batch: Any) -> Any:
        return forward_batch.residual_stream.record(hidden, SimpleNamespace(bind=None))


@pytest.mark.parametrize("is_idle", [False, True])
def test_sglangs_nemotron_h_leaves_a_layer_of_an_idle_group_before_its_end(is_idle: bool) -> None:
    """Why it is refused, on whatever backend: the next layer ends over a residual that this one has not given back."""
    from sglang.srt.layers.layer_boundary.residual import batch as residual_batch
    from sglang.srt.models.nemotron_h import NemotronHAttnLikeDecoderLayer

    forward = NemotronHAttnLikeDecoderLayer.forward
    layer = SimpleNamespace(boundary=Boundary(), _forward_mixer=lambda hidden, _forward_batch: hidden + 1)
    forward_batch = SimpleNamespace(forward_mode=SimpleNamespace(is_idle=lambda: is_idle))
    residual_batch.start(forward_batch)
    hidden = forward(layer, hidden_states=torch.ones(0 if is_idle else 3, 8), forward_batch=forward_batch)
    with pytest.raises(RuntimeError, match="written residual does not match") if is_idle else nullcontext():
        forward(layer, hidden_states=hidden, forward_batch=forward_batch)


@pytest.mark.parametrize("by_group", [False, True])
def test_sglangs_groups_read_a_control_request_each_in_its_own_turn(
    by_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why it is refused: the second group has not read it yet, and the first one waits for it, within the update."""
    from sglang.srt.managers.scheduler_components import request_receiver as module

    second = SimpleNamespace(
        attn_dp_enabled=True,
        attn_tp_rank=0,
        attn_cp_rank=0,
        tp_size=2,
        tp_group=SimpleNamespace(rank=1, ranks=[0, 1], cpu_group=None),
        enable_dp_attention_local_control_broadcast=by_group,
    )
    monkeypatch.setattr(module, "get_parallel", lambda: second)
    monkeypatch.setattr(module, "get_exec", lambda: SimpleNamespace(moe=SimpleNamespace(is_ep_scale_joiner=False)))
    monkeypatch.setattr(module, "attn_cp_tp_broadcast_pyobj", lambda own: own)
    monkeypatch.setattr(module, "broadcast_pyobj", lambda _own, _rank, _group, src: ["the first group's update"])
    receiver = SimpleNamespace(_split_work_and_control_reqs=lambda reqs: ([], reqs))
    found = module.SchedulerRequestReceiver._broadcast_reqs_across_ranks(receiver, [])
    assert found == ([] if by_group else ["the first group's update"])
