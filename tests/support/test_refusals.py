"""Every refusal of the list is seen, with SGLang's own parser and resolution, and no target is refused besides.

No weights: a folder with a `config.json` of the family and an empty file. The lane's backends are asked for on SGLang's
own platform for CUDA, told that the machine is a Hopper; `ddtree_cpu` on the CPU platform.
"""

from __future__ import annotations

import ast
import json
from functools import cache
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.support.families import FAMILIES, LAYERS, PLAIN
from tests.support.table import ALL, BACKENDS, CPU, ROWS, Refused, refused_target

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Folders of a target and its drafter, by family."""
    made = {}
    for name, family in FAMILIES.items():
        target = family.config_json
        drafter = {
            **FAMILIES["Qwen3"].config_json,
            "architectures": ["DFlashDraftModel"],
            "num_hidden_layers": 2,
            "block_size": 8,
            "num_target_layers": LAYERS,
            "dflash_config": {"mask_token_id": 4, "target_layer_ids": [0, 2]},
        }
        folder = tmp_path_factory.mktemp("pair")
        made[name] = (write(folder / "target", target), write(folder / "drafter", drafter))
    return made


def write(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


def start(pair: tuple[str, str], backend: str, **given: Any) -> Any:
    """Resolve the arguments of a server, as far as it gets without a model."""
    if backend != CPU:
        return resolved("Engine", pair, HOPPER, attention_backend=backend, **given)
    from sglang.srt.arg_groups.overrides import resolving_view
    from sglang.srt.server_args import ServerArgs

    arguments = {"model_path": pair[0], "speculative_draft_model_path": pair[1], "speculative_algorithm": "DDTREE"}
    server_args = ServerArgs(**{**arguments, "dtype": "float32", "skip_tokenizer_init": True, **given})
    server_args.resolve_once()
    return resolving_view(server_args)


class Layer(torch.nn.Module):
    """A layer's attention with sinks, as SGLang's models have it."""

    def __init__(self, window: int) -> None:
        super().__init__()
        self.sinks = torch.nn.Parameter(torch.zeros(4))
        self.attn = SimpleNamespace(sliding_window_size=window)


METHOD = "set_dflash_layers_to_capture"
"""By which a model is told which layers' states to hand to a drafter."""


@cache
def models_of_sglang() -> dict[str, ast.ClassDef]:
    """Every class of SGLang's models, by name; read, not imported."""
    folder = Path(str(find_spec("sglang").origin)).parent / "srt/models"  # type: ignore[union-attr]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def methods_in_sglang(name: str) -> set[str]:
    """Methods of a model's class and of those it comes from."""
    found = models_of_sglang().get(name)
    if found is None:
        return set()
    own = {node.name for node in found.body if isinstance(node, ast.FunctionDef)}
    return own.union(*(methods_in_sglang(base.id) for base in found.bases if isinstance(base, ast.Name)))


def load(name: str, cfg: Any, backend: str) -> None:
    """The checks of a loaded model, of which the layers' sinks are made up, and what its class hands to a drafter."""
    from sglang.srt import runtime_context
    from sglang.srt.arg_groups.overrides import model_config_of

    from ddtree_sglang.engine.admission.target_checks import check_loaded_target

    model = torch.nn.Sequential(*map(Layer, FAMILIES[name].sinks))
    model.lm_head = torch.nn.Identity()
    if METHOD in methods_in_sglang(FAMILIES[name].architecture):
        setattr(model, METHOD, None)
    config = model_config_of(cfg)
    window = config.sliding_window_size if config.is_hybrid_swa else FAMILIES[name].window
    runner = SimpleNamespace(
        model_config=config, sliding_window_size=window, page_size=cfg.page_size, model=model, lora_manager=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_context, "attention_backends", lambda: (backend, backend))
        plain = SimpleNamespace(enable_deterministic_inference=False)
        patch.setattr(runtime_context, "get_exec", lambda: SimpleNamespace(deterministic=plain))
        check_loaded_target(runner)


@pytest.mark.parametrize(("name", "backend"), [*product(FAMILIES, BACKENDS)], ids=str)
def test_a_target_is_refused_where_the_list_says_so_and_nowhere_else(
    name: str, backend: str, pairs: dict[str, tuple[str, str]]
) -> None:
    why, by_sglang = "", False
    try:
        load(name, start(pairs[name], backend), backend)
    except (DDTreeConfigError, AssertionError) as error:
        why, by_sglang = str(error), isinstance(error, AssertionError)
    refused = refused_target(name, backend)
    assert bool(why) == (refused is not None), why
    if refused is not None:
        assert refused.why in why
        assert refused.by_sglang == by_sglang


FEATURE_REFUSALS = [row for row in ROWS if isinstance(row.cell, Refused) and row.feature != ALL]


@pytest.mark.parametrize("row", FEATURE_REFUSALS, ids=lambda row: f"{row.feature}-{row.family}-{row.backend}")
def test_a_feature_is_refused_with_the_arguments_of_its_row(row: Any, pairs: dict[str, tuple[str, str]]) -> None:
    family = PLAIN if row.family == ALL else row.family
    backend = "fa3" if row.backend == ALL else row.backend
    load(family, start(pairs[family], backend), backend)
    with pytest.raises(DDTreeConfigError) as error:
        load(family, start(pairs[family], backend, **row.cell.given), backend)
    assert row.cell.why in str(error.value)
