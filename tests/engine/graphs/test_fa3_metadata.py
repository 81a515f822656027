"""Where the runner of the target's graphs makes FA3's metadata, and where it leaves that to SGLang."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.graphs import target
from ddtree_sglang.engine.graphs.fa3_metadata import TreeMetadata

pytestmark = pytest.mark.sglang


class FlashAttentionBackend(SimpleNamespace):
    """Goes by the name of SGLang's, whose module cannot be imported without FA3."""


FlashAttentionBackend.__module__ = "sglang.srt.layers.attention.flashattention_backend"
PLAIN = {
    "topk": 2,
    "page_size": 1,
    "has_swa": False,
    "use_sliding_window_kv_pool": False,
    "kv_index_translator": SimpleNamespace(reads_are_translated=False),
}


def backend(**changes: Any) -> Any:
    mask = SimpleNamespace(buffer=torch.zeros(8, dtype=torch.uint8))
    return FlashAttentionBackend(**{**PLAIN, "verify_mask": mask, **changes})


@pytest.mark.parametrize(
    "change",
    [
        {"topk": 1},
        {"has_swa": True},
        {"use_sliding_window_kv_pool": True},
        {"kv_index_translator": SimpleNamespace(reads_are_translated=True)},
        {"verify_mask": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_forms_of_the_backend_are_left_to_sglang(change: dict[str, Any]) -> None:
    assert TreeMetadata.of(backend()) is not None
    assert TreeMetadata.of(backend(**change)) is None
    assert TreeMetadata.of(SimpleNamespace(**PLAIN, verify_mask=object())) is None


def test_a_mask_that_was_not_made_in_the_buffer_is_copied_into_it() -> None:
    held = backend()
    metadata = TreeMetadata.of(held)
    assert metadata is not None
    metadata.take_mask(torch.tensor([True, False, True]))
    assert held.verify_mask.buffer.tolist() == [1, 0, 1, 0, 0, 0, 0, 0]
    metadata.take_mask(held.verify_mask.buffer.view(torch.bool))
    assert held.verify_mask.buffer.tolist() == [1, 0, 1, 0, 0, 0, 0, 0]


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the runner's base class and the metadata were asked for, in order."""
    from sglang.srt.model_executor.runner.decode_cuda_graph_runner import DecodeCudaGraphRunner

    seen: list[str] = []

    def mark(*_: Any, **__: Any) -> None:
        seen.append("SGLang's")

    monkeypatch.setattr(DecodeCudaGraphRunner, "_run_in_graph_metadata_prep", mark)
    monkeypatch.setattr(DecodeCudaGraphRunner, "_init_replay_attn_metadata", mark)
    monkeypatch.setattr(TreeMetadata, "make", lambda *_: seen.append("make"))
    monkeypatch.setattr(TreeMetadata, "take_mask", lambda *_: seen.append("take mask"))
    return seen


def runner(attn_backend: Any) -> Any:
    made = object.__new__(target.tree_graph_runner_class())
    made.enable_pdmux, made.attn_backend = False, attn_backend
    return made


@pytest.mark.parametrize(
    ("attn_backend", "captured", "replayed"),
    [(backend(), ["make", "SGLang's"], ["take mask"]), (SimpleNamespace(), ["SGLang's"], ["SGLang's"])],
    ids=["FA3", "another"],
)
def test_metadata_is_recorded_before_the_mark_that_lets_the_scheduler_write(
    events: list[str], attn_backend: Any, captured: list[str], replayed: list[str]
) -> None:
    """SGLang's part ends with the mark: a read of the table of slots after it could meet the next round's slots."""
    made = runner(attn_backend)
    made._run_in_graph_metadata_prep(attn_backend, None)
    assert events == captured
    events.clear()
    forward_batch = SimpleNamespace(spec_info=SimpleNamespace(custom_mask=None))
    made._init_replay_attn_metadata(forward_batch, raw_bs=1)
    assert events == replayed


@pytest.mark.parametrize(
    ("cells", "handed_on"), [(1, 0), (4, 4), (None, None)], ids=["an address", "a mask", "a chain"]
)
def test_a_graph_copies_no_mask_that_was_made_in_place(
    events: list[str], cells: int | None, handed_on: int | None
) -> None:
    mask = None if cells is None else torch.ones(cells, dtype=torch.bool)
    spec_info = SimpleNamespace(custom_mask=mask)
    runner(SimpleNamespace())._init_replay_attn_metadata(SimpleNamespace(spec_info=spec_info), raw_bs=1)
    assert events == ["SGLang's"]
    assert (None if spec_info.custom_mask is None else len(spec_info.custom_mask)) == handed_on
