"""Which servers share a file of costs: those alone of which every fact that a round's time hangs on is the same."""

from __future__ import annotations

import platform
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.stages import cost_file, round_budget
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.engine.stages.round_budget import COST_FACTS, AdaptiveRounds, make_round_budget

pytestmark = pytest.mark.sglang

SERVER: dict[str, tuple[Any, Any]] = {
    "model_path": ("a/model", "a/nother"),
    "revision": (None, "main"),
    "dtype": ("float32", "bfloat16"),
    "quantization": (None, "fp8"),
    "kv_cache_dtype": ("auto", "fp8_e5m2"),
    "attention_backend": ("triton", "fa3"),
    "tp_size": (1, 2),
    "dp_size": (1, 2),
    "page_size": (1, 16),
    "disable_cuda_graph": (False, True),
    "disable_overlap_schedule": (False, True),
    "enable_lora": (False, True),
    "speculative_draft_model_path": ("a/drafter", "a/nother"),
    "speculative_draft_model_revision": (None, "main"),
    "speculative_draft_model_quantization": (None, "fp8"),
    "speculative_draft_window_size": (None, 512),
    "speculative_draft_attention_backend": (None, "triton"),
    "decode_attention_backend": (None, "triton"),
    "prefill_attention_backend": (None, "triton"),
    "max_running_requests": (16, 32),
    "enable_deterministic_inference": (False, True),
    "enable_torch_compile": (False, True),
    "cpu_offload_gb": (0, 4),
}
"""By argument a value and another one. Written out: a name that COST_FACTS loses is missed here."""
SHOWN = {name: given for name, (given, _) in SERVER.items()}
POLICY = BudgetPolicy.adaptive(9)
CONFIG = DDTreeConfig(policy="adaptive", ngrams=False)


class Platform:
    """One that tells its forms, as the CPU platform does."""

    capabilities = SimpleNamespace(supports_triton=False)

    @staticmethod
    def product_forms(model: Any) -> list[str]:
        return list(model.forms)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Everything that the key is made of beside what `path` is given."""
    parallel = SimpleNamespace(tp_rank=0, tp_size=1, tp_group=None)
    monkeypatch.setattr(round_budget, "get_parallel", lambda: parallel)
    monkeypatch.setenv("DDTREE_COSTS", str(tmp_path))
    monkeypatch.setattr("sglang.srt.platforms._current_platform", Platform())
    devices = SimpleNamespace(is_available=lambda: True, get_device_name=lambda _index: "a device")
    monkeypatch.setattr(torch, "get_device_module", lambda: devices)


def path(
    server: dict[str, Any] | None = None,
    *,
    policy: BudgetPolicy = POLICY,
    config: DDTreeConfig = CONFIG,
    graphs: tuple[str, list[int]] = ("full", [1, 2]),
    forms: tuple[str, str] = ("packed", "packed"),
) -> Path:
    """The file of a server with these facts."""
    decode = SimpleNamespace(backend=graphs[0], bs=graphs[1])
    args = SimpleNamespace(**SHOWN | (server or {}), cuda_graph_config=SimpleNamespace(decode=decode))
    models: Any = [SimpleNamespace(forms=[form]) for form in forms]
    rounds = make_round_budget(policy, config, args, models)
    assert isinstance(rounds, AdaptiveRounds)
    assert rounds._costs.path is not None
    return rounds._costs.path


@pytest.mark.usefixtures("machine")
def test_the_same_facts_have_the_same_file() -> None:
    assert path() == path()
    assert path(dict(reversed(SHOWN.items()))) == path()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("name", SERVER)
def test_another_argument_has_another_file(name: str) -> None:
    assert path({name: SERVER[name][1]}) != path()


def test_every_argument_of_the_key_is_changed_here() -> None:
    assert set(COST_FACTS) == set(SERVER)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    "other",
    [
        {"policy": BudgetPolicy.adaptive(17)},
        {"policy": BudgetPolicy.adaptive(9, any_width=True)},
        {"config": replace(CONFIG, top_k=3)},
        {"config": replace(CONFIG, trace="trace.jsonl")},
        {"config": replace(CONFIG, ngrams=True)},
        {"graphs": ("breakable", [1, 2])},
        {"graphs": ("full", [1, 2, 4])},
        {"forms": ("plain", "packed")},
        {"forms": ("float32 from 3 rows", "packed")},
        {"forms": ("packed", "bfloat16")},
    ],
    ids=str,
)
def test_other_trees_graphs_and_products_have_another_file(other: dict[str, Any]) -> None:
    assert path(**other) != path()


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("owner", "name", "other"),
    [
        (cost_file.platform, "machine", lambda: "another machine"),
        (cost_file, "_processor", lambda: "another processor"),
        (torch, "get_num_threads", lambda: 99),
        (torch.backends.cpu, "get_cpu_capability", lambda: "fewer"),
        (cost_file, "version", lambda name: f"another {name}" if name == "sglang" else "1"),
        (cost_file, "version", lambda name: f"another {name}" if name == "torch" else "1"),
        (cost_file, "ROUNDS", -1),
        (torch, "get_device_module", lambda: SimpleNamespace(is_available=lambda: False)),
    ],
    ids=["machine", "processor", "threads", "instructions", "sglang", "torch", "rounds", "accelerators"],
)
def test_another_machine_or_version_has_another_file(
    monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, other: Any
) -> None:
    if name == "version":
        monkeypatch.setattr(owner, name, lambda _name: "1")
    before = path()
    monkeypatch.setattr(owner, name, other)
    assert path() != before


@pytest.mark.usefixtures("machine")
def test_a_process_held_to_fewer_instructions_has_another_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cost_file.INSTRUCTIONS_ENV, raising=False)
    before = path()
    monkeypatch.setenv(cost_file.INSTRUCTIONS_ENV, "AVX2")
    assert path() != before


@pytest.mark.usefixtures("machine")
def test_a_platform_that_chooses_no_form_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sglang.srt.platforms._current_platform", SimpleNamespace(capabilities=Platform.capabilities))
    assert path(forms=("packed", "packed")) == path(forms=("plain", "bfloat16"))


def test_a_worker_asks_for_forms_once_the_ranking_has_chosen_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine import worker

    done: list[Any] = []
    spec = SimpleNamespace(speculative_num_draft_tokens=9, speculative_dflash_block_size=8)
    spec.override = lambda **_: nullcontext()
    target, drafter = SimpleNamespace(), SimpleNamespace()
    runner = SimpleNamespace(model=target)

    def loaded(self: Any, *_: Any) -> None:
        done.append("drafter loaded")
        vars(self).update(_target_worker=SimpleNamespace(model_runner=runner), draft_model=drafter, block_size=8)

    def asked(_policy: Any, _config: Any, _args: Any, models: Any) -> Any:
        done.append(models)
        raise InterruptedError

    monkeypatch.setattr(worker, "get_spec", lambda: spec)
    monkeypatch.setattr(worker, "get_parallel", lambda: SimpleNamespace(tp_rank=0))
    monkeypatch.setattr(worker.DFlashWorkerV2, "__init__", loaded)
    given = ("_full_embed_gpu", "_noise_embed_scale", "_mask_token_id", "_draft_block_spec_info", "draft_model_runner")
    for name in (*given, "device"):
        monkeypatch.setattr(worker.DDTreeWorker, name, 0, raising=False)
    for name in ("config_of", "resolving_view", "check_loaded_target", "install_tree_graph_runner", "make_policy"):
        monkeypatch.setattr(worker, name, lambda *_, **__: SimpleNamespace(candidates_per_depth=lambda _nodes: 4))
    for name in ("keep_final_states", "_resolve_dflash_embedding_module", "unwrap_lora_layer", "make_trees"):
        monkeypatch.setattr(worker, name, lambda *_: None)
    for name in ("RoundTrace", "PairWatch"):
        monkeypatch.setattr(worker, name, SimpleNamespace(of=lambda *_: None))
    monkeypatch.setattr(worker, "DraftBlock", lambda *_: SimpleNamespace(embedding=None))
    monkeypatch.setattr(worker.attention_ranks, "ranks_of_batch", lambda: None)

    def ranked(*_: Any) -> Any:
        done.append("head's product chosen")
        return SimpleNamespace(max_path_len=8)

    monkeypatch.setattr(worker, "make_ranking", ranked)
    monkeypatch.setattr(worker, "make_round_budget", asked)
    with pytest.raises(InterruptedError):
        worker.DDTreeWorker(SimpleNamespace(), 0, 0, SimpleNamespace(model_runner=runner))
    assert done == ["drafter loaded", "head's product chosen", (target, drafter)]


def test_two_generations_of_one_name_are_two_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As virtual machines have them; each thread has its lines, and a name's line begins like its number's."""
    found = set()
    for place, model in enumerate((2, 17)):
        lines = ["processor\t: 0", "cpu family\t: 26", f"model\t\t: {model}", "model name\t: AMD EPYC", "stepping\t: 1"]
        others = [line.replace("model\t\t: ", "model\t\t: 9") for line in lines]
        monkeypatch.setattr(cost_file, "CPUINFO", tmp_path / str(place))
        cost_file.CPUINFO.write_text("\n".join([*lines, "", *others]))
        found.add(cost_file._processor())
    assert found == {"AMD EPYC 26 2 1", "AMD EPYC 26 17 1"}
    monkeypatch.setattr(cost_file, "CPUINFO", tmp_path / "none")
    assert cost_file._processor() == platform.processor()
