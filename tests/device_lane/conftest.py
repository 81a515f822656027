"""What tests of the device lane share: the lane, its pairs, and outcomes of scenes that run two at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Lock

import pytest

from tests.device_lane.adapters import make_adapters
from tests.device_lane.asking import Lane, open_lane
from tests.device_lane.convolved_drafter import with_convolutions
from tests.device_lane.install import install_fa3, install_flashinfer
from tests.device_lane.mobius import ARCHITECTURE as MOBIUS
from tests.device_lane.pair_heads import (
    with_gated_markov,
    with_lattice,
    with_markov,
    with_markov_from_the_anchor,
    with_markov_of_lfm2,
    with_selector,
)
from tests.device_lane.pairs import make_pair, one_thread
from tests.device_lane.quantized import round_activations
from tests.device_lane.references import Reference
from tests.device_lane.scenes import Outcome, Scene, play
from tests.device_lane.sliding_drafter import FULL, SLIDING
from tests.support.image_pair import make_image_pair
from tests.support.published import PAIRS as PUBLISHED
from tests.support.quantize import How, quantize
from tests.support.tiny import make_tiny

HERE = Path(__file__).parent
SERVERS_AT_ONCE = 2
PAIRS = {
    "qwen3": ("qwen3", 4, 32),
    "llama": ("llama", 8, 32),
    "selector": ("qwen3", 4, 32),
    "markov": ("qwen3", 4, 32),
    "lilicorr": ("qwen3", 4, 32),
    "markov_anchor": ("qwen3", 4, 32),
    "gated_markov": ("qwen3", 4, 32),
    "selector_convolutions": ("qwen3", 4, 32),
    "wide": ("qwen3", 4, 80),
    "whole": ("qwen3_moe", 4, 128),
    "latent_whole": ("deepseek", 4, 128),
    "wide_selector": ("qwen3", 4, 80),
    "wide_lilicorr": ("qwen3", 4, 80),
    "experts": ("qwen3_moe", 4, 32),
    "gpt_oss": ("gpt_oss", 4, 32),
    "gemma": ("gemma", 4, 32),
    "mellum": ("mellum", 4, 32),
    "mellum_whole": ("mellum", 4, 128),
    "deepseek": ("deepseek", 4, 32),
    "gated_delta": ("qwen3_5", 4, 32),
    "gated_delta_wide": ("qwen3_5_wide", 4, 80),
    "mamba": ("nemotron_h", 4, 32),
    "mamba_omni": ("nemotron_h_omni", 4, 32),
    "mamba_puzzle": ("nemotron_h_puzzle", 4, 32),
    "mimo_v2_flash": ("mimo_v2_flash", 4, 32),
    "mimo_v2": ("mimo_v2", 4, 32),
    "kimi_k3": ("kimi_k3", 4, 32),
    "kimi_k3_wide": ("kimi_k3", 4, 80),
    "kimi_k3_whole": ("kimi_k3", 4, 128),
    "kimi_k3_text": ("kimi_k3_text", 4, 32),
    "sliding": ("qwen3", 4, 32),
    "short_convolution": ("lfm2", 4, 32),
    "short_convolution_vl": ("lfm2_vl", 4, 32),
    "short_convolution_markov": ("lfm2", 4, 32),
    "short_convolution_experts": ("lfm2_moe", 4, 32),
    "sliding_gated_delta": ("qwen3_5", 4, 32),
    "int8": ("qwen3", 4, 32),
    "awq": ("qwen3", 4, 32),
    "gptq": ("qwen3", 4, 32),
    "fp8": ("qwen3", 4, 32),
    "fp8_blocks": ("qwen3", 4, 32),
}
"""Architecture, block size and vocabulary; published pairs have a list of their own."""
SEES = "sees"
"""A pair whose target takes images (tests/support/image_pair.py)."""
OTHER_NAMES = {
    "intern_s2": replace(PUBLISHED["Qwen3.5-35B-A3B"], architecture="InternS2PreviewForConditionalGeneration"),
    "mobius": replace(PUBLISHED["Qwen3.5-35B-A3B"], architecture=MOBIUS),
}
"""Published pairs whose target is saved as another class of the same layers."""
KINDS = dict.fromkeys(("sliding", "sliding_gated_delta"), (SLIDING, FULL))
"""Of the layers of a pair's drafter, where they are not one that sees the whole context."""
QUANTIZED: dict[str, tuple[How, How]] = {
    "int8": ("w8a8_int8", "plain"),
    "awq": ("awq", "plain"),
    "gptq": ("gptq", "plain"),
    "fp8": ("fp8", "fp8"),
    "fp8_blocks": ("fp8-blocks", "w8a8_int8"),
}
"""How the linear layers of a pair's target and of its drafter are stored."""
HEADS = {
    "selector": with_selector,
    "wide_selector": with_selector,
    "markov": with_markov,
    "wide_lilicorr": with_lattice,
    "lilicorr": with_lattice,
    "markov_anchor": with_markov_from_the_anchor,
    "gated_markov": with_gated_markov,
    "short_convolution_markov": with_markov_of_lfm2,
    "selector_convolutions": lambda pair: with_convolutions(with_selector(pair)),
}
"""Of a pair whose drafter scores pairs of candidates, what gives it the head."""
ADAPTERS = {pair: {"first": 4, "second": 8} for pair in ("qwen3", "wide", "short_convolution", "gated_delta")}
ADAPTERS |= {pair: {"first": 4, "third": 8} for pair in ("Qwen3.5-4B", "Qwen3.5-35B-A3B", "mamba", "kimi_k3")}
"""Of a pair, their ranks by name."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What asks for outcomes keeps two servers busy, and runs by itself; the others do not (tests/parts.py)."""
    for item in items:
        if Path(item.path).parent == HERE and "outcomes" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.scene)


@pytest.fixture(scope="session", autouse=True)
def _references(request: pytest.FixtureRequest) -> None:
    """Before a test imports what they stand in: in two processes, tests come in any order."""
    if any(item.get_closest_marker("scene") is None for item in request.session.items):
        install_fa3()
        install_flashinfer()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="session")
def lane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lane]:
    with open_lane(tmp_path_factory.mktemp("lane")) as opened:
        yield opened


@pytest.fixture(scope="session")
def references(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Reference]:
    """By the name of a pair; made when first asked for, one at a time: they draw from torch's one generator."""
    made_alone = Lock()

    @cache
    def make(name: str) -> Reference:
        folder = tmp_path_factory.mktemp(name)
        if name in (*PUBLISHED, *OTHER_NAMES):
            pair = make_tiny(folder, OTHER_NAMES[name] if name in OTHER_NAMES else PUBLISHED[name])
            return Reference(pair, make_adapters(pair, folder, ADAPTERS.get(name, {})))
        if name == SEES:
            return Reference(make_image_pair(folder))
        architecture, block_size, vocabulary = PAIRS[name]
        kinds = KINDS.get(name, (FULL,))
        pair = make_pair(folder, architecture, block_size, vocabulary=vocabulary, kinds=kinds)  # type: ignore[arg-type]
        pair = HEADS[name](pair) if name in HEADS else pair
        if name in QUANTIZED:
            quantize(pair, *QUANTIZED[name])
            for model, how in zip((pair.target, pair.drafter), QUANTIZED[name], strict=True):
                round_activations(model, how)
        return Reference(pair, make_adapters(pair, folder, ADAPTERS.get(name, {})))

    def reference(name: str) -> Reference:
        with made_alone:
            return make(name)

    return reference


@pytest.fixture(scope="session")
def outcomes(
    request: pytest.FixtureRequest, lane: Lane, references: Callable[[str], Reference]
) -> Iterator[Callable[[Scene, str], Outcome]]:
    """The outcome of a scene, with a mutation or "" for none. All that this run will ask for begin in its order."""
    asked_for = [
        item.callspec.params["play"]  # type: ignore[attr-defined]
        for item in request.session.items
        if "play" in getattr(getattr(item, "callspec", None), "params", {})
    ]
    pool = ThreadPoolExecutor(SERVERS_AT_ONCE)

    def begun(scene: Scene, mutation: str) -> Future[Outcome]:
        # A pair is made while the other server runs.
        return pool.submit(lambda: play(scene, lane, references(scene.pair), mutation))

    chosen = {(scene.name, mutation): scene for scene, mutation in asked_for}
    running = {key: begun(scene, key[1]) for key, scene in chosen.items()}

    def outcome(scene: Scene, mutation: str) -> Outcome:
        key = scene.name, mutation
        if key not in running:  # its own test was not chosen for this run
            running[key] = begun(scene, mutation)
        return running[key].result()

    yield outcome
    pool.shutdown(cancel_futures=True)
