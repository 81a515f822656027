"""Every refusal of the list is seen, with SGLang's own parser and resolution, and no target is refused besides.

No weights: a folder with a `config.json` of the family and an empty file. The lane's backends are asked for on SGLang's
own platform for CUDA, told that the machine is a Hopper; `ddtree_cpu` on the CPU platform.
"""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.support.drafters import DRAFTERS, PAIR_FEATURES
from tests.support.families import FAMILIES, PLAIN, PLAIN_DRAFTER
from tests.support.sglang_models import METHOD, drafted_for
from tests.support.table import (
    ALL,
    ASKED,
    BACKENDS,
    CPU,
    FEATURES,
    PAGED_PREFILLS,
    POLICY,
    ROWS,
    Refused,
    cells,
    refused_target,
)

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, str]]:
    """Folders of a target and its drafter, by family."""
    made = {}
    for name, family in FAMILIES.items():
        folder = tmp_path_factory.mktemp("pair")
        made[name] = (write(folder / "target", family.config_json), write(folder / "drafter", PLAIN_DRAFTER))
    return made


def write(folder: Path, config: dict[str, Any]) -> str:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(b"")
    return str(folder)


def start(pair: tuple[str, str], backend: str, **given: Any) -> Any:
    """Resolve the arguments of a server, as far as it gets without a model."""
    given = dict(given)
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in PAGED_PREFILLS.items():
            patch.setenv(variable, value)
        if POLICY in given:
            patch.setenv(CONFIG_ENV, DDTreeConfig(policy=given.pop(POLICY)).to_json())
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


def load(name: str, cfg: Any, backend: str) -> None:
    """The checks of a loaded model, of which the layers' sinks are made up, and what its class hands to a drafter."""
    from sglang.srt import runtime_context
    from sglang.srt.arg_groups.overrides import model_config_of

    from ddtree_sglang.engine.admission.target_checks import check_loaded_target

    model = torch.nn.Sequential(*map(Layer, FAMILIES[name].sinks))
    model.lm_head = torch.nn.Identity()
    if FAMILIES[name].architecture in drafted_for():
        setattr(model, METHOD, None)
    config = model_config_of(cfg)
    window = config.sliding_window_size if config.is_hybrid_swa else FAMILIES[name].window
    runner = SimpleNamespace(
        model_config=config, sliding_window_size=window, page_size=cfg.page_size, model=model, lora_manager=None
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_context, "attention_backends", lambda: (backend, backend))
        for variable, value in PAGED_PREFILLS.items():
            patch.setenv(variable, value)
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


FEATURE_REFUSALS = [row for row in ROWS if isinstance(row.cell, Refused) and row.cell.given]
SERVED = [names for names in product(FAMILIES, BACKENDS) if refused_target(*names) is None]


@pytest.mark.parametrize("row", FEATURE_REFUSALS, ids=lambda row: f"{row.feature}-{row.family}-{row.backend}")
def test_a_feature_is_refused_with_the_arguments_of_its_row(row: Any, pairs: dict[str, tuple[str, str]]) -> None:
    family = PLAIN if row.family == ALL else row.family
    backend = "fa3" if row.backend == ALL else row.backend
    load(family, start(pairs[family], backend), backend)
    with pytest.raises(DDTreeConfigError) as error:
        load(family, start(pairs[family], backend, **row.cell.given), backend)
    assert row.cell.why in str(error.value)


def words(family: str, backend: str, pair: tuple[str, str], given: dict[str, Any]) -> str:
    """Of the refusal of a server that is asked for this; empty where it would start."""
    try:
        load(family, start(pair, backend, **given), backend)
    except (DDTreeConfigError, AssertionError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


@pytest.mark.parametrize(("family", "backend"), SERVED, ids=str)
def test_what_can_be_asked_for_is_refused_where_the_list_says_so_and_nowhere_else(
    family: str, backend: str, pairs: dict[str, tuple[str, str]]
) -> None:
    wrong = {}
    for feature, given in ASKED.items():
        found = words(family, backend, pairs[family], given)
        listed = [cell.why for cell in cells(family, backend, feature) if isinstance(cell, Refused)]
        if not (any(why in found for why in listed) if listed else found == ""):
            wrong[feature] = (listed, found)
    assert wrong == {}


def test_each_refusal_of_a_feature_can_be_asked_for() -> None:
    unasked = {row.feature for row in ROWS if isinstance(row.cell, Refused) and not row.cell.given} - {ALL}
    assert unasked <= {*ASKED}
    assert {*ASKED} <= {*FEATURES}


@pytest.mark.parametrize("name", DRAFTERS)
def test_a_kind_of_drafter_is_refused_where_the_list_says_so_and_nowhere_else(
    name: str, pairs: dict[str, tuple[str, str]], tmp_path: Path
) -> None:
    drafter = DRAFTERS[name]
    # The weights of a head are looked for in its file, which these have not.
    pair = (pairs["Qwen3"][0], write(tmp_path / "drafter", drafter.config_json(PLAIN_DRAFTER)))
    refusals = [cell.why for cell in drafter.cells if isinstance(cell, Refused)]
    found = words("Qwen3", "fa3", pair, {})
    assert bool(found) == bool(refusals), found
    assert all(why in found for why in refusals)
    for feature in () if refusals else PAIR_FEATURES:
        found, listed = words("Qwen3", "fa3", pair, ASKED[feature]), drafter.refused_with.get(feature)
        assert bool(found) == (listed is not None), (feature, found)
        assert listed is None or listed.why in found


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({"enable_linear_replayssm_spec": True}, "requires a linear draft chain"),
        ({"enable_unified_memory": True}, "only supports --speculative-algorithm"),
        ({"enable_page_major_kv_layout": True}, "without --enable-unified-memory"),
    ],
    ids=str,
)
def test_what_sglang_refuses_of_trees_of_states_needs_no_rule_of_ours(
    given: dict[str, Any], why: str, pairs: dict[str, tuple[str, str]]
) -> None:
    assert why in words("Qwen3.5 / 3.6", "triton", pairs["Qwen3.5 / 3.6"], given)
