"""Every class that SGLang registers for drafting blocks is in the list; some are one class by several names."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from ddtree_sglang.engine.admission.drafter_families import FAMILIES, OTHER_MODELS
from tests.support.drafters import ALIASES, DRAFTERS
from tests.support.sglang_models import block_drafters

BY_NAME = {
    "DFlash2BeamDraftModel": set(),
    "DSparkDraftModel": {"configs/model_config.py"},
    "LingDSparkModel": set(),
    "MiniMaxDFlash2DraftModel": set(),
    "MuseGlimmerAssistantModel": {"model_executor/model_runner_components/spec_aux_hidden_state.py"},
}
"""Files of SGLang that ask for a name. One has kernels of AMD's for a drafter's block with "DSparkDraftModel"
(`_should_use_verify_shared_kv`), the other moves the layers that are read of a Muse Glimmer target by one, as for a
"DFlash2DraftModel" (`_map_muse_target_layer_ids`)."""


def test_every_class_that_drafts_blocks_is_known_to_admission_and_in_the_list() -> None:
    listed = {drafter.architecture for drafter in DRAFTERS.values()}
    assert {*block_drafters()} == listed, "add it to tests/support/drafters.py"
    assert {*FAMILIES} | {*OTHER_MODELS} == listed
    assert {*FAMILIES} & {*OTHER_MODELS} == set()


@pytest.mark.sglang
@pytest.mark.parametrize("name", ALIASES)
def test_a_class_by_another_name_has_nothing_of_its_own(name: str) -> None:
    other, architecture = ALIASES[name]
    assert FAMILIES[architecture] == FAMILIES[DRAFTERS[other].architecture]
    assert bodies(architecture) == bodies(DRAFTERS[other].architecture) != []


def bodies(architecture: str) -> list[type]:
    """A class and those that it comes from, without those that add nothing."""
    module, name = block_drafters()[architecture]
    cls = getattr(import_module(f"sglang.srt.models.{module}"), name)
    return [one for one in cls.__mro__ if {*vars(one)} - {"__module__", "__doc__"}]


@pytest.mark.parametrize("architecture", BY_NAME)
def test_sglang_asks_for_such_a_name_in_few_places(architecture: str) -> None:
    assert set(BY_NAME) == {one for _, one in ALIASES.values()}
    folder = Path(str(find_spec("sglang").origin)).parent / "srt"  # type: ignore[union-attr]
    found = {
        str(path.relative_to(folder))
        for path in folder.rglob("*.py")
        if f'"{architecture}"' in path.read_text(encoding="utf-8").replace(f'architectures=["{architecture}"]', "")
    }
    assert found == BY_NAME[architecture]
