"""Scenes of targets with recurrent layers."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    TRACKED_LEN,
    chunked,
    ends_about_a_tracked_length,
    fill_the_pool,
    finishes,
    go_on_after_mixing,
    go_on_behind_that_state,
    mixed,
    mixed_into_a_kept_state,
    mixed_past_a_tracked_length,
    passes_a_tracked_length,
    resumes_at_a_tracked_length,
    resumes_at_its_end,
)
from tests.device_lane.scenes import Scene, pool_of
from tests.device_lane.waves import (
    aborted,
    changing_widths,
    ends,
    few,
    few_of_chains,
    pair_of_requests,
    staggered,
)

CHUNKS = ("--chunked-prefill-size", "8")
LOAD_FLAGS = ("--speculative-ddtree-policy", "load", "--speculative-ddtree-verify-tokens", "8")

# Layers with a recurrent state: the prefix cache gets a copy at multiples of a length, or, without overlap, the state
# that a request ends with.
STATES_POOL = ("--max-mamba-cache-size", "48")
TRACKED = (*STATES_POOL, "--mamba-track-interval", str(TRACKED_LEN))
_SCARCE = pool_of(100)
_LAST_STATES = (*STATES_POOL, "--disable-overlap-schedule")
GATED_DELTA = Scene(
    "gated-delta",
    "triton",
    (few, passes_a_tracked_length, resumes_at_a_tracked_length),
    pair="gated_delta",
    budget=7,
    flags=TRACKED,
    captured=(4,),
    must_log=("recurrent state at every node",),
)
GATED_DELTA_CHAIN = Scene(
    "gated-delta-chain",
    "triton",
    (few_of_chains,),
    pair="gated_delta",
    budget=7,
    flags=(*TRACKED, "--speculative-ddtree-top-k", "1"),
    captured=(4,),
)
GATED_DELTA_16 = Scene(
    "gated-delta-16",
    "fa3",
    (staggered, finishes, resumes_at_its_end, ends, aborted),
    pair="gated_delta",
    budget=16,
    flags=_LAST_STATES,
)

GATED_DELTA_FA3 = Scene(
    "gated-delta-fa3",
    "fa3",
    (few, passes_a_tracked_length, resumes_at_a_tracked_length),
    pair="gated_delta",
    budget=7,
    flags=TRACKED,
    captured=(4,),
)
# Nemotron-H: Mamba2.
MAMBA = Scene(
    "mamba",
    "fa3",
    (few, passes_a_tracked_length, resumes_at_a_tracked_length),
    pair="mamba",
    budget=7,
    flags=TRACKED,
    captured=(4,),
    must_log=("recurrent state at every node",),
)
MAMBA_16 = Scene(
    "mamba-16",
    "triton",
    (staggered, finishes, resumes_at_its_end, ends, aborted),
    pair="mamba",
    budget=16,
    flags=_LAST_STATES,
)
MAMBA_CHUNKS = Scene(
    "mamba-chunks",
    "fa3",
    (chunked, fill_the_pool, aborted),
    pair="mamba",
    budget=16,
    flags=(*TRACKED, *CHUNKS, *_SCARCE),
)
# Running requests take part in prefills: past a length at which a state is kept, into a kept one, and where none is.
_MIXED = Scene(
    "mamba-mixed",
    "fa3",
    (mixed_past_a_tracked_length, go_on_after_mixing),
    pair="mamba",
    budget=7,
    flags=(*TRACKED, *CHUNKS, "--enable-mixed-chunk"),
    captured=(4,),
    at_once=2,
)
_MIXED_KEPT = Scene(
    "mamba-mixed-kept",
    "fa3",
    (mixed_into_a_kept_state, go_on_behind_that_state),
    pair="mamba",
    budget=16,
    flags=(*TRACKED, "--chunked-prefill-size", "72", "--enable-mixed-chunk"),
    captured=(2,),
    at_once=2,
)
_MIXED_UNCACHED = Scene(
    "mamba-mixed-uncached",
    "triton",
    (mixed, fill_the_pool),
    pair="mamba",
    budget=7,
    flags=(*STATES_POOL, *CHUNKS, *_SCARCE, "--enable-mixed-chunk", "--disable-radix-cache"),
    captured=(4,),
    must_log=("Retract requests",),
)
MAMBA_MIXED = (_MIXED_UNCACHED, _MIXED, _MIXED_KEPT)
# Kimi-K3: KDA beside latent attention.
DELTA_ATTENTION = Scene(
    "delta-attention",
    "fa3",
    (few, passes_a_tracked_length, resumes_at_a_tracked_length),
    pair="kimi_k3",
    budget=7,
    flags=TRACKED,
    captured=(4,),
    at_once=3,
    moves=True,
    must_log=("recurrent state at every node", "verify=TritonKDAKernel"),
)
DELTA_ATTENTION_16 = Scene(
    "delta-attention-16",
    "triton",
    (staggered, finishes, resumes_at_its_end, ends, aborted),
    pair="kimi_k3",
    budget=16,
    flags=_LAST_STATES,
    moves=True,
)
DELTA_ATTENTION_RETRACTION = Scene(
    "delta-attention-retraction",
    "fa3",
    (fill_the_pool, aborted),
    pair="kimi_k3",
    budget=7,
    flags=(*TRACKED, *_SCARCE),
    must_log=("Retract requests", "verify=TritonKDAKernel"),
)
DELTA_ATTENTION_OTHERS = (
    DELTA_ATTENTION_16,
    Scene(
        "delta-attention-chunks",
        "fa3",
        (staggered, chunked, ends, aborted),
        pair="kimi_k3",
        budget=16,
        flags=(*TRACKED, *CHUNKS),
    ),
    Scene(
        "delta-attention-chain",
        "triton",
        (few_of_chains,),
        pair="kimi_k3",
        budget=7,
        flags=(*TRACKED, "--speculative-ddtree-top-k", "1"),
        captured=(4,),
    ),
    Scene(
        "delta-attention-widths",
        "fa3",
        (changing_widths,),
        pair="kimi_k3",
        budget=4,
        flags=(*TRACKED, *LOAD_FLAGS),
        captured=(1, 2),
    ),
    replace(
        DELTA_ATTENTION,
        name="delta-attention-ends",
        backend="triton",
        waves=(ends_about_a_tracked_length, resumes_at_a_tracked_length),
        captured=(1, 2),
        at_once=0,
    ),
    replace(
        DELTA_ATTENTION,
        name="delta-attention-two-ranks",
        pair="kimi_k3_wide",
        waves=(few,),
        flags=(*DELTA_ATTENTION.flags, "--tp-size", "2"),
    ),
    replace(DELTA_ATTENTION, name="delta-attention-stock", algorithm="DFLASH", budget=None, moves=False, must_log=()),
    *(
        replace(scene, name=f"delta-attention{scene.name.removeprefix('mamba')}", pair="kimi_k3")
        for scene in MAMBA_MIXED
    ),
)
# LFM2. SGLang keeps no copies of its states at fixed lengths, and overlaps nothing.
SHORT_CONVOLUTION = Scene(
    "short-convolution",
    "fa3",
    (few, finishes, resumes_at_its_end, ends, aborted),
    pair="short_convolution",
    budget=7,
    flags=STATES_POOL,
    captured=(1, 4),
    must_log=("recurrent state at every node",),
)
SHORT_CONVOLUTION_OTHERS = (
    Scene(
        "short-convolution-16",
        "fa3",
        (staggered, chunked, aborted),
        pair="short_convolution",
        budget=16,
        flags=(*STATES_POOL, *CHUNKS),
    ),
    Scene(
        "short-convolution-retraction",
        "fa3",
        (fill_the_pool,),
        pair="short_convolution",
        budget=16,
        flags=(*STATES_POOL, *_SCARCE),
        must_log=("Retract requests",),
    ),
    replace(_MIXED_UNCACHED, name="short-convolution-mixed-uncached", backend="fa3", pair="short_convolution"),
    Scene(
        "short-convolution-experts",
        "fa3",
        (few, finishes, resumes_at_its_end),
        pair="short_convolution_experts",
        budget=7,
        flags=STATES_POOL,
        captured=(4,),
    ),
    Scene(
        "short-convolution-chain",
        "fa3",
        (few_of_chains,),
        pair="short_convolution",
        budget=7,
        flags=(*STATES_POOL, "--speculative-ddtree-top-k", "1"),
        captured=(4,),
    ),
    Scene(
        "short-convolution-widths",
        "fa3",
        (changing_widths,),
        pair="short_convolution",
        budget=4,
        flags=(*STATES_POOL, *LOAD_FLAGS),
        captured=(1, 2),
    ),
)
GATED_DELTA_RETRACTION = Scene(
    "gated-delta-retraction",
    "fa3",
    (fill_the_pool, aborted),
    pair="gated_delta",
    budget=7,
    flags=(*TRACKED, *_SCARCE),
    must_log=("Retract requests",),
)
GATED_DELTA_MIXED = replace(_MIXED, name="gated-delta-mixed", backend="triton", pair="gated_delta")
GATED_DELTA_OTHERS = (
    GATED_DELTA_MIXED,
    replace(_MIXED_KEPT, name="gated-delta-mixed-kept", pair="gated_delta"),
    replace(_MIXED_UNCACHED, name="gated-delta-mixed-uncached", pair="gated_delta"),
    Scene(
        "gated-delta-chunks",
        "fa3",
        (staggered, chunked, ends, aborted),
        pair="gated_delta",
        budget=16,
        flags=(*TRACKED, *CHUNKS),
    ),
    Scene(
        "gated-delta-64",
        "fa3",
        (pair_of_requests,),
        pair="gated_delta",
        budget=64,
        flags=(*STATES_POOL, "--mamba-track-interval", "128"),
        captured=(2,),
    ),
    Scene(
        "gated-delta-widths",
        "fa3",
        (changing_widths,),
        pair="gated_delta",
        budget=4,
        flags=(*TRACKED, *LOAD_FLAGS),
        captured=(1, 2),
    ),
    Scene(
        "gated-delta-two-ranks",
        "fa3",
        (few,),
        pair="gated_delta_wide",
        budget=7,
        flags=(*TRACKED, "--tp-size", "2"),
        captured=(4,),
    ),
    Scene(
        "gated-delta-flashinfer",
        "flashinfer",
        (few, passes_a_tracked_length, resumes_at_a_tracked_length),
        pair="gated_delta",
        budget=7,
        flags=TRACKED,
        captured=(4,),
    ),
    Scene(
        "gated-delta-ends",
        "fa3",
        (ends_about_a_tracked_length, resumes_at_a_tracked_length),
        pair="gated_delta",
        budget=7,
        flags=TRACKED,
        captured=(1, 2),
    ),
)

# Of recurrent layers, for their time not in each CI run.
SLOW_STATES = (
    GATED_DELTA,
    GATED_DELTA_CHAIN,
    GATED_DELTA_16,
    GATED_DELTA_FA3,
    *GATED_DELTA_OTHERS,
    DELTA_ATTENTION,
    *DELTA_ATTENTION_OTHERS,
    MAMBA,
    MAMBA_16,
    *MAMBA_MIXED,
    *SHORT_CONVOLUTION_OTHERS,
)
