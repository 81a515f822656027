"""The table of SGLang names holds for the installed version, and notices when one of them changes."""

from __future__ import annotations

import inspect

import pytest

from ddtree_sglang.contract import engine as contract
from ddtree_sglang.contract.engine import CONTRACT, Entry, check_contract, find_mismatch
from ddtree_sglang.exceptions import EngineContractError

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize("entry", CONTRACT, ids=lambda entry: f"{entry.module}:{entry.name}")
def test_entry_holds_for_the_installed_engine(entry: Entry) -> None:
    assert find_mismatch(entry) is None


def test_every_wrapped_function_is_in_the_table() -> None:
    from sglang.srt.plugins import load_plugins
    from sglang.srt.plugins.hook_registry import HookRegistry

    load_plugins()
    listed = {f"{entry.module}.{entry.name}" for entry in CONTRACT}
    ours = {
        target
        for target, hooks in HookRegistry._hooks.items()
        if any(hook.__module__.startswith("ddtree_sglang.engine") for _, hook, _ in hooks)
    }
    assert ours, "the plugin registered no hook"
    assert ours <= listed


def test_triton_attention_skips_the_masks_prefix_cells_unless_told_otherwise() -> None:
    from sglang.kernels.ops.attention.extend_attention import extend_attention_fwd

    assert inspect.signature(extend_attention_fwd).parameters["skip_prefix_custom_mask"].default is True


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (Entry("sglang.srt.no_such_module", "x", (), ""), "no module"),
        (Entry("sglang.srt.server_args", "ServerArgs.no_such_method", (), ""), "has no ServerArgs.no_such_method"),
        (Entry("sglang.srt.server_args", "prepare_server_args", ("argv", "gone"), ""), r"has no \['gone'\]"),
        (Entry("sglang.srt.speculative.eagle_info", "EagleVerifyInput", ("no_field",), ""), "no_field"),
    ],
)
def test_a_changed_engine_is_named_with_what_changed(entry: Entry, problem: str) -> None:
    with pytest.raises(EngineContractError, match=problem) as caught:
        check_contract((entry,))
    assert "Install sglang==0.5.23" in str(caught.value)


def test_another_version_is_refused_even_when_all_names_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contract, "version", lambda name: "0.5.24")
    with pytest.raises(EngineContractError, match=r"supports sglang==0\.5\.23, got 0\.5\.24"):
        check_contract()
