"""A round costs the host no more than stock DFLASH's does, outside graphs, and waits for nothing.

Launches are counted where both of a round's forwards were replays; outside graphs a forward is hundreds.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from statistics import median
from typing import Any

import pytest

import ddtree_sglang.kernels
from tests.device_lane.catalogue import GRAMMARS, SMALL_FA3, SMALL_TRITON, STOCK_FA3, STOCK_TRITON
from tests.device_lane.scenes import Outcome, Scene

REPLAYS = 2
SCENES = (SMALL_TRITON, SMALL_FA3, STOCK_TRITON, STOCK_FA3, GRAMMARS)


def launches(outcome: Outcome) -> dict[int, float]:
    """By the number of requests, which tells whether a graph was padded; its median."""
    rounds = [line for line in outcome.decode_rounds if line["replays"] == REPLAYS]
    sizes = {line["batch_size"] for line in rounds}
    return {size: median(line["launches"] for line in rounds if line["batch_size"] == size) for size in sizes}


def waits(line: dict[str, Any]) -> set[str]:
    """Reads by the host in a round and since the one before, but for SGLang's own accounting, which tests turn on."""
    reads = {*line["host_reads"], *line["between"]["host_reads"]}
    return {place for place in reads if "invariant_checker.py" not in place}


@pytest.mark.parametrize("play", [(scene, "") for scene in SCENES], ids=[scene.name for scene in SCENES])
def test_no_round_waits_for_the_device(play: tuple[Scene, str], outcomes: Callable[[Scene, str], Outcome]) -> None:
    rounds = outcomes(*play).decode_rounds
    assert rounds
    assert set().union(*map(waits, rounds)) == set()


@pytest.mark.parametrize(("ours", "stock"), [(SMALL_TRITON, STOCK_TRITON), (SMALL_FA3, STOCK_FA3)])
def test_launches_outside_graphs_are_not_above_stocks(
    ours: Scene, stock: Scene, outcomes: Callable[[Scene, str], Outcome]
) -> None:
    found, allowed = launches(outcomes(ours, "")), launches(outcomes(stock, ""))
    assert found.keys() & allowed.keys()
    assert {size: count for size, count in found.items() if count > allowed.get(size, count)} == {}


@pytest.mark.parametrize("scene", [SMALL_TRITON, SMALL_FA3])
def test_no_kernel_of_ours_is_compiled_while_serving(scene: Scene, outcomes: Callable[[Scene, str], Outcome]) -> None:
    """SGLang's own may be: the kernel that writes the drafter's keys and values is, in stock DFLASH too."""
    modules = [module.name for module in pkgutil.iter_modules(ddtree_sglang.kernels.__path__)]
    ours = {name for module in modules for name in vars(_module(module)) if name.endswith("kernel")}
    assert ours
    rounds = outcomes(scene, "").decode_rounds
    late = {name for line in rounds for name in (*line["new_variants"], *line["between"]["new_variants"])}
    assert late & ours == set()


def _module(name: str) -> object:
    return __import__(f"ddtree_sglang.kernels.{name}", fromlist=[name])
