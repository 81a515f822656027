"""Scenes of other classes of SGLang's for layers that are served: text alone where a class takes images."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import finishes, resumes_at_its_end
from tests.device_lane.published_catalogue import ON_OTHER_BACKENDS, PUBLISHED
from tests.device_lane.scenes import Scene
from tests.device_lane.state_catalogue import MAMBA, SHORT_CONVOLUTION, STATES_POOL
from tests.device_lane.waves import aborted, ends, few, staggered

_PUBLISHED = {scene.name: scene for scene in (*PUBLISHED, *ON_OTHER_BACKENDS)}

# LFM2-VL. SGLang would let its rounds overlap beside a prefix cache, as it does not for LFM2.
SHORT_CONVOLUTION_VL = replace(
    SHORT_CONVOLUTION,
    name="short-convolution-vl",
    pair="short_convolution_vl",
    waves=(staggered, finishes, resumes_at_its_end, ends),
    flags=(*STATES_POOL, "--disable-overlap-schedule"),
)
_UNCACHED = replace(
    SHORT_CONVOLUTION_VL,
    name="short-convolution-vl-uncached",
    waves=(few, ends, aborted),
    flags=(*STATES_POOL, "--disable-radix-cache"),
)
INTERN_S2 = replace(_PUBLISHED["Qwen3.5-35B-A3B"], name="intern-s2", pair="intern_s2")
"""Qwen3.5's mixture of experts by another name."""
MOBIUS = Scene(
    "intern-s2-mobius",
    "fa3",
    (staggered, finishes, resumes_at_its_end, aborted),
    pair="mobius",
    budget=16,
    flags=(*STATES_POOL, "--moe-runner-backend", "triton"),
    moves=True,
)
"""Qwen3.5's layers, of which some share their experts. SGLang lets its rounds not overlap beside a prefix cache."""
PUZZLE = replace(
    MAMBA, name="mamba-puzzle", pair="mamba_puzzle", flags=(*MAMBA.flags, "--moe-runner-backend", "triton")
)
OMNI = replace(MAMBA, name="mamba-omni", pair="mamba_omni")

OTHER_CLASSES: tuple[Scene, ...] = (
    SHORT_CONVOLUTION_VL,
    _UNCACHED,
    INTERN_S2,
    MOBIUS,
    PUZZLE,
    OMNI,
)
