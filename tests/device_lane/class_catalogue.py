"""Scenes of other classes of SGLang's for layers that are served: text alone where a class takes images."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import finishes, past_the_window, prefix_hit, resumes_at_its_end
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

# MiMo-V2: keys wider than values, windows with sinks whose layers have more heads of keys.
MIMO_V2 = Scene(
    "mimo-v2-flash", "fa3", (past_the_window, prefix_hit, staggered), pair="mimo_v2_flash", budget=7, captured=(4,)
)
MIMO_V2_TRITON = replace(
    MIMO_V2, name="mimo-v2-flash-triton", backend="triton", waves=(past_the_window, prefix_hit), moves=True
)
_MIMO_V2_BY_NAME = replace(MIMO_V2, name="mimo-v2", pair="mimo_v2", waves=(past_the_window,))

OTHER_CLASSES: tuple[Scene, ...] = (
    SHORT_CONVOLUTION_VL,
    _UNCACHED,
    INTERN_S2,
    MOBIUS,
    PUZZLE,
    OMNI,
    MIMO_V2,
    MIMO_V2_TRITON,
    _MIMO_V2_BY_NAME,
)
