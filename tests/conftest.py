"""What tests of real servers share: their marker, and the embedded models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.bytecode import keep_bytecode

if TYPE_CHECKING:
    from tests.e2e.servers import Pair

# Before any test imports the engine.
keep_bytecode()
# What rounds cost beside other tests is nothing to keep for servers to come.
os.environ["DDTREE_COSTS"] = ""
# Rounds are compared with other rounds: in bfloat16 they depend on how many rows a draft is made with.
os.environ["DDTREE_CPU_DRAFTS"] = "model"

HERE = Path(__file__).parent
STARTS_SERVERS = (HERE / "e2e", HERE / "e2e_ray")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything below those folders starts servers, or tests what does."""
    for item in items:
        if any(folder in STARTS_SERVERS for folder in Path(item.path).parents):
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session")
def pair() -> Pair:
    """The embedded target and its drafter, or the ones that the environment names."""
    from ddtree_sglang.demo.drafter import shipped_drafter
    from ddtree_sglang.demo.prepare import prepare_model
    from tests.e2e.servers import Pair

    model = os.environ.get("DDTREE_TEST_MODEL") or str(prepare_model())
    return Pair(model, os.environ.get("DDTREE_TEST_DRAFT") or str(shipped_drafter()))


@pytest.fixture(scope="module")
def plugins() -> None:
    """SGLang with its plugins, as a server's first process has it."""
    from sglang.srt.plugins import load_plugins

    load_plugins()


@pytest.fixture
def no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration of DDTREE's in the environment, and none left there afterwards."""
    from ddtree_sglang.config import CONFIG_ENV

    monkeypatch.setenv(CONFIG_ENV, "")
