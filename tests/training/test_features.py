"""The feature cache grows with the data, and keeps what it has when growing fails."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from ddtree_sglang.training.data.conversations import Conversations, load_conversations
from ddtree_sglang.training.features import disk_space
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.features.disk_space import DiskFullError
from tests.training.tiny import LAYER_IDS, tiny_target, write_conversations


class BrokenTarget:
    """Has the target's configuration, and fails where it is run."""

    def __init__(self, target: Any) -> None:
        self.config, self.parameters = target.config, target.parameters

    def model(self, **_: Any) -> None:
        raise OSError("No space left on device")


@pytest.fixture(scope="module")
def conversations(tmp_path_factory: pytest.TempPathFactory) -> Conversations:
    return load_conversations(
        write_conversations(tmp_path_factory.mktemp("data") / "data.npz", tiny_target(), count=20)
    )


def build(conversations: Conversations, folder: Path, target: Any = None) -> FeatureCache:
    return build_feature_cache(conversations, target or tiny_target(), LAYER_IDS, folder, fingerprint="tiny", top_k=8)


def assert_equal_rows(found: FeatureCache, expected: FeatureCache, count: int) -> None:
    torch.testing.assert_close(found.features(0, count), expected.features(0, count), rtol=0.02, atol=0.02)
    assert torch.equal(found.next_token_ids(0, count)[:, 0], expected.next_token_ids(0, count)[:, 0])
    torch.testing.assert_close(
        found.next_token_logprobs(0, count), expected.next_token_logprobs(0, count), rtol=0.01, atol=0.01
    )


def test_cache_of_the_first_conversations_grows_to_all(conversations: Conversations, tmp_path: Path) -> None:
    total = len(conversations.tokens)
    expected = build(conversations, tmp_path / "at-once")
    first = build(conversations.head(7), tmp_path / "grown")
    kept = first.features(0, first.spec.num_tokens)
    grown = build(conversations, tmp_path / "grown")
    assert grown.spec == expected.spec
    assert torch.equal(grown.features(0, len(kept)), kept)
    assert_equal_rows(grown, expected, total)


def test_growing_that_fails_leaves_the_cache_as_it_was(conversations: Conversations, tmp_path: Path) -> None:
    before = build(conversations.head(7), tmp_path)
    kept = before.features(0, before.spec.num_tokens)
    with pytest.raises(OSError, match="No space left"):
        build(conversations, tmp_path, BrokenTarget(tiny_target()))
    after = FeatureCache(tmp_path)
    assert after.spec == before.spec
    assert torch.equal(after.features(0, len(kept)), kept)
    assert len(build(conversations, tmp_path).features(0, len(conversations.tokens))) == len(conversations.tokens)


def test_cache_of_more_or_of_other_conversations_is_refused(conversations: Conversations, tmp_path: Path) -> None:
    build(conversations.head(7), tmp_path)
    with pytest.raises(ValueError, match="feature cache must belong"):
        build(conversations.head(6), tmp_path)
    changed = Conversations(conversations.tokens.clone(), conversations.offsets, conversations.answer_start)
    changed.tokens[3] += 1
    with pytest.raises(ValueError, match="feature cache must belong"):
        build(changed, tmp_path)


def _no_space(*_: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", ["before", "meanwhile"])
def test_a_full_disk_is_noticed_before_the_target_runs(
    conversations: Conversations, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    before = build(conversations.head(7), tmp_path)
    kept = before.features(0, before.spec.num_tokens)
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    if moment == "before":
        monkeypatch.setattr(disk_space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    else:  # another program takes the space after it was asked for
        monkeypatch.setattr(disk_space.os, "posix_fallocate", _no_space)
    with pytest.raises(DiskFullError, match=r"features\.bin needs 0\.. MB, .* free: free some space, name another"):
        build(conversations, tmp_path, BrokenTarget(tiny_target()))
    assert {path.name: path.stat().st_size for path in tmp_path.iterdir()} == sizes
    assert torch.equal(FeatureCache(tmp_path).features(0, len(kept)), kept)


def test_all_blocks_are_on_the_disk_before_the_target_runs(conversations: Conversations, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"):  # what the broken target says
        build(conversations, tmp_path, BrokenTarget(tiny_target()))
    for path in tmp_path.glob("*.bin"):
        assert disk_space.held_bytes(path) >= path.stat().st_size > 0
    assert len(list(tmp_path.glob("*.bin"))) == 3


def test_a_cache_of_another_target_or_dtype_is_refused(
    conversations: Conversations, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = tmp_path / "known", tiny_target()

    def open_with(fingerprint: str, target: Any = target) -> FeatureCache:
        return build_feature_cache(conversations, target, LAYER_IDS, folder, fingerprint=fingerprint, top_k=8)

    assert open_with("one").spec.dtype == "float32"
    open_with("one")
    with pytest.raises(ValueError, match=r"this target, two in float32; it was computed with one in float32"):
        open_with("two")
    with pytest.raises(ValueError, match=r"one in bfloat16; it was computed with one in float32\. .*--float32"):
        open_with("one", tiny_target().bfloat16())
    assert capsys.readouterr().out.count("does not say which target") == 0


def test_a_cache_from_before_is_used_with_a_warning_and_stays_unknown(
    conversations: Conversations, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    build(conversations.head(7), tmp_path)
    meta = json.loads((tmp_path / "meta.json").read_text())
    (tmp_path / "meta.json").write_text(json.dumps({k: v for k, v in meta.items() if k not in ("target", "dtype")}))
    grown = build_feature_cache(conversations, tiny_target(), LAYER_IDS, tmp_path, fingerprint="one", top_k=8)
    assert "does not say which target it is of: used without comparing them" in capsys.readouterr().out
    assert grown.spec.target is grown.spec.dtype is None
    assert grown.spec.num_tokens == len(conversations.tokens)


@pytest.mark.parametrize("damage", ["meta", "field", "features"])
def test_a_damaged_cache_says_so_and_what_to_do(conversations: Conversations, tmp_path: Path, damage: str) -> None:
    build(conversations.head(7), tmp_path)
    if damage == "meta":
        (tmp_path / "meta.json").write_text("{")
    elif damage == "field":
        (tmp_path / "meta.json").write_text("{}")
    else:
        os.truncate(tmp_path / "features.bin", 100)
    with pytest.raises(ValueError, match=rf"{tmp_path} must hold a whole feature cache, .*: remove the folder"):
        FeatureCache(tmp_path)
