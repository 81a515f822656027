"""The line that says what graph buffers take: its numbers on a large server, when it warns, and when it is silent.

That the formulas are SGLang's is shown where its backends can be built: `tests/device_lane/test_graph_buffers.py`.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine.admission import graph_memory
from ddtree_sglang.engine.admission.graph_memory import GIB, GraphShape, graph_buffers
from tests.engine.admission.machines import AMPERE, HOPPER, resolved
from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins")]

LONG = GraphShape(max_batch=48, context_len=131072, num_heads=32, head_dim=128, kv_splits=8)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    long = {"max_position_embeddings": 131072}
    return (
        write_checkpoint(tmp_path / "target", {**TARGET, **long}),
        write_checkpoint(tmp_path / "drafter", {**DRAFTER, **long}),
    )


@pytest.mark.parametrize(
    ("backend", "mask", "indices"),
    [("triton", 0.38, 3.05 + 0.75), ("flashinfer", 0.38 + 0.09, 1.52 + 0.38), ("fa3", 0.38, 0.14 + 0.09)],
)
def test_a_tree_of_64_at_a_long_context_takes_gigabytes(backend: str, mask: float, indices: float) -> None:
    """48 requests, 65 nodes, a block of 16, 131,072 tokens, a vocabulary of 151,936."""
    sizes = graph_buffers(LONG, (backend, backend), backend, (65,), 16, 151936)
    assert sizes.mask / GIB == pytest.approx(mask, abs=0.02)
    assert sizes.indices / GIB == pytest.approx(indices, abs=0.02)
    assert sizes.logits / GIB == pytest.approx(1.77, abs=0.02)
    assert sizes.total == sizes.mask + sizes.indices + sizes.partials + sizes.logits


def test_every_number_of_nodes_and_each_of_two_backends_has_buffers_of_its_own() -> None:
    one = graph_buffers(LONG, ("triton", "triton"), "triton", (17,), 16, 1000)
    both = graph_buffers(LONG, ("triton", "triton"), "triton", (5, 17), 16, 1000)
    pair = graph_buffers(LONG, ("triton", "fa3"), "triton", (17,), 16, 1000)
    assert both.indices - one.indices == LONG.backend("triton", 5).indices
    assert both.logits == one.logits  # shared by all graphs, of the largest
    assert pair.mask - one.mask == LONG.backend("fa3", 17).mask


def said(caplog: pytest.LogCaptureFixture) -> logging.LogRecord:
    (record,) = (record for record in caplog.records if "CUDA graphs" in record.getMessage())
    return record


def start(
    monkeypatch: pytest.MonkeyPatch,
    pair: tuple[str, str],
    facts: dict[str, Any],
    capacity_gib: float | None,
    **given: Any,
) -> Any:
    """Resolve the arguments of a server on a GPU with so much memory."""
    from sglang.srt.utils import common

    monkeypatch.setattr(common, "get_device_memory_capacity", lambda _: capacity_gib and capacity_gib * 1024)
    monkeypatch.setattr(graph_memory, "is_device_path", lambda: True)
    return resolved("Engine", pair, facts, mem_fraction_static=0.85, **given)


def test_the_line_says_sizes_batch_and_what_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pair: tuple[str, str]
) -> None:
    monkeypatch.setenv(CONFIG_ENV, '{"budget": 64}')
    with caplog.at_level(logging.INFO, graph_memory.logger.name):
        cfg = start(monkeypatch, pair, AMPERE, 24)
    record, batch = said(caplog), min(max(cfg.cuda_graph_config.decode.bs), 48)
    assert record.levelno == logging.WARNING
    assert f"DDTREE's CUDA graphs, for up to {batch} requests of 65 nodes, need" in record.getMessage()
    shape = GraphShape(batch, 131072, 4, 16, 8)
    expected = graph_buffers(shape, ("triton",), "triton", (65,), 8, 100)
    assert f"need {expected.total / GIB:.1f} GiB" in record.getMessage()
    assert "--mem-fraction-static leaves 3.6 GiB" in record.getMessage()
    assert "a smaller --cuda-graph-max-bs-decode" in record.getMessage()


def test_where_little_is_needed_it_only_informs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pair: tuple[str, str]
) -> None:
    with caplog.at_level(logging.INFO, graph_memory.logger.name):
        start(monkeypatch, pair, HOPPER, 140)
    assert said(caplog).levelno == logging.INFO
    assert "smaller" not in said(caplog).getMessage()


@pytest.mark.parametrize(("budget", "level"), [(16, logging.INFO), (255, logging.WARNING)])
def test_without_a_known_memory_the_limit_is_a_number(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pair: tuple[str, str], budget: int, level: int
) -> None:
    monkeypatch.setenv(CONFIG_ENV, f'{{"budget": {budget}}}')
    with caplog.at_level(logging.INFO, graph_memory.logger.name):
        start(monkeypatch, pair, AMPERE, None)
    assert said(caplog).levelno == level
    assert "leaves" not in said(caplog).getMessage()


@pytest.mark.parametrize("given", [{"disable_decode_cuda_graph": True}, {"speculative_algorithm": None}])
def test_without_graphs_or_without_ddtree_nothing_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pair: tuple[str, str], given: dict[str, Any]
) -> None:
    if "speculative_algorithm" in given:
        given["speculative_draft_model_path"] = None
    with caplog.at_level(logging.INFO, graph_memory.logger.name):
        start(monkeypatch, pair, AMPERE, 24, **given)
    assert [message for message in caplog.messages if "CUDA graphs, for" in message] == []
