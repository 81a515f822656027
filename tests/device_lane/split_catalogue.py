"""The lane's scenes of two servers, of which one prefills and one decodes (split.py). Most are slow."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    SMALLER,
    TRACKED_LEN,
    chunked,
    hits_about_the_window,
    leaves_the_device,
    past_the_window,
    prefix_hit,
    prompt_comes_back_from_the_host,
    prompt_passes_a_tracked_length,
    retracted_and_restored,
)
from tests.device_lane.group_catalogue import FLAGS as GROUPS_FLAGS
from tests.device_lane.group_waves import in_both_groups
from tests.device_lane.host_cache import FLAGS as HOST_CACHE
from tests.device_lane.penalty_waves import penalized
from tests.device_lane.picture_waves import behind_their_prompts, pictures_at_once
from tests.device_lane.scenes import SMALL_POOL, Scene, pool_of
from tests.device_lane.sliding_drafter import WINDOW
from tests.device_lane.split_waves import (
    an_abort_before_the_keys_is_an_error,
    behind_both_prompts,
    drawn_and_streamed,
    over_with_the_first_token,
    refuse_several_answers,
    thinks,
    thinks_and_is_restored,
    two_prompts_of,
)
from tests.device_lane.state_catalogue import CHUNKS, LOAD_FLAGS, STATES_POOL, TRACKED
from tests.device_lane.waves import (
    aborted,
    changing_widths,
    few,
    one,
    seeded,
    under_grammars,
)

_RESERVED = ("--num-reserved-decode-tokens", "1")

_SPLIT = Scene("", "fa3", (few,), budget=7, captured=(1, 4), split=True, at_once=3)
SPLIT = replace(_SPLIT, name="split", waves=(few, prefix_hit, aborted))
SPLIT_WINDOWS = replace(
    _SPLIT,
    name="split-windows",
    backend="triton",
    pair="gpt_oss",
    waves=(past_the_window, prefix_hit, chunked, aborted),
    flags=CHUNKS,
)
SPLIT_PENALTIES = replace(_SPLIT, name="split-penalties", backend="triton", waves=(penalized,))
SPLIT_RETRACTION = replace(
    _SPLIT,
    name="split-retraction",
    waves=(retracted_and_restored,),
    flags=(*SMALL_POOL, *_RESERVED),
    must_log=("Retract requests",),
    at_once=2,
)
# Both servers under DP attention. Requests that name a group have it on both; others are decoded in any.
_HITS_IN_GROUPS = (two_prompts_of(WINDOW + 3), behind_both_prompts)
SPLIT_GROUPS = (
    replace(
        SPLIT,
        name="split-groups",
        pair="experts",
        waves=(few, *_HITS_IN_GROUPS, aborted, chunked),
        flags=(*GROUPS_FLAGS, *CHUNKS),
        captured=(1, 2),
        at_once=0,
    ),
    replace(
        SPLIT_RETRACTION,
        name="split-groups-latent",
        backend="triton",
        pair="deepseek",
        waves=(retracted_and_restored, few, prefix_hit),
        flags=(*GROUPS_FLAGS, *pool_of(60), *_RESERVED),
        captured=(1, 2),
    ),
)
# The prefilling server keeps prompts on the host; SGLang's decoding one has no prefix cache.
SPLIT_HOST_CACHE = replace(
    SPLIT,
    name="split-host-cache",
    waves=(leaves_the_device, prompt_comes_back_from_the_host, aborted),
    flags=pool_of(120),
    prefill_flags=(*HOST_CACHE, *pool_of(64)),
    at_once=0,
)
_STRICT = ("--reasoning-parser", "qwen3", "--enable-strict-thinking")
SPLIT_THINKING = (
    replace(SPLIT, name="split-thinking", waves=(thinks, aborted), flags=_STRICT),
    replace(
        SPLIT_RETRACTION,
        name="split-thinking-retraction",
        backend="triton",
        waves=(thinks_and_is_restored,),
        flags=(*SPLIT_RETRACTION.flags, *_STRICT),
    ),
)
# Prompts that are computed before the other server has slots; SGLang is told to give each first try up.
_LATE_SLOTS = ("--disaggregation-decode-allocation-policy", "prefill_complete")
SPLIT_LATE_SLOTS = (
    replace(
        SPLIT,
        name="split-late-slots",
        waves=(*SPLIT.waves, chunked, under_grammars),
        flags=(
            *(*_LATE_SLOTS, *CHUNKS),
            *("--lane-variable", "SGLANG_TEST_FORCE_OPTIMISTIC_PREFILL_RETRY_PROB=1.0"),
        ),
        must_log=("optimistic prefill yielded",),
        at_once=0,
    ),
    replace(
        SPLIT_RETRACTION,
        name="split-late-slots-retraction",
        backend="triton",
        flags=(*SPLIT_RETRACTION.flags, *_LATE_SLOTS),
    ),
)
# With a parser streams come token by token.
SPLIT_ENDS = replace(
    _SPLIT,
    name="split-ends",
    backend="triton",
    waves=(over_with_the_first_token, drawn_and_streamed, chunked),
    flags=("--page-size", "4", *CHUNKS, "--reasoning-parser", "qwen3"),
    late=True,
    before=refuse_several_answers,
)
# Recurrent states go over with the keys, and to the host and back with a retracted request.
_IN_STEP = ("--disable-overlap-schedule",)
SPLIT_GATED_DELTA = replace(
    _SPLIT,
    name="split-gated-delta",
    pair="gated_delta",
    waves=(few, prompt_passes_a_tracked_length, aborted),
    flags=TRACKED,
    decode_flags=_IN_STEP,
    captured=(1, 2),
    must_log=("recurrent state at every node",),
)
SPLIT_STATES_RETRACTION = replace(
    SPLIT_RETRACTION,
    name="split-gated-delta-retraction",
    pair="gated_delta",
    flags=(*SPLIT_RETRACTION.flags, *STATES_POOL),
    decode_flags=_IN_STEP,
)
_OF_TENSORS = ("--disaggregation-decode-retraction-backup", "cpu_tensor")
SPLIT_STATES = (
    SPLIT_STATES_RETRACTION,
    replace(
        SPLIT_STATES_RETRACTION,
        name="split-gated-delta-tensors",
        backend="triton",
        flags=(*SPLIT_STATES_RETRACTION.flags, *_OF_TENSORS),
    ),
    replace(
        SPLIT_GATED_DELTA,
        name="split-gated-delta-two-ranks",
        backend="triton",
        pair="gated_delta_wide",
        waves=(few, chunked),
        flags=(*TRACKED, *CHUNKS, "--tp-size", "2"),
    ),
    replace(SPLIT_GATED_DELTA, name="split-mamba", pair="mamba"),
    replace(SPLIT_GATED_DELTA, name="split-delta-attention", pair="kimi_k3"),
    replace(SPLIT_STATES_RETRACTION, name="split-delta-attention-retraction", backend="triton", pair="kimi_k3"),
    replace(SPLIT_STATES_RETRACTION, name="split-mamba-retraction", backend="triton", pair="mamba"),
    replace(
        SPLIT_GATED_DELTA,
        name="split-short-convolution",
        pair="short_convolution",
        waves=(few, chunked, aborted),
        flags=CHUNKS,
    ),
    replace(
        SPLIT_STATES_RETRACTION,
        name="split-short-convolution-retraction",
        pair="short_convolution",
        flags=(*pool_of(72), *_RESERVED, *STATES_POOL),
    ),
)
# Both servers under DP attention, with targets that have more in a layer than attention (group_families.py).
SPLIT_GROUPS_MELLUM = replace(
    SPLIT_GROUPS[0],
    name="split-groups-mellum",
    pair="mellum",
    waves=(past_the_window, *_HITS_IN_GROUPS, aborted, chunked),
    before=an_abort_before_the_keys_is_an_error,
)
SPLIT_GROUPS_KDA = replace(
    SPLIT_GATED_DELTA,
    name="split-groups-delta-attention",
    pair="kimi_k3",
    waves=(two_prompts_of(TRACKED_LEN + 5), behind_both_prompts, aborted),
    flags=(*GROUPS_FLAGS, *TRACKED),
    at_once=0,
)
SPLIT_GROUPS_IMAGES = replace(
    SPLIT_GROUPS[0],
    name="split-groups-images",
    pair="sees",
    waves=(*(in_both_groups(wave) for wave in (pictures_at_once, behind_their_prompts)), few),
    budget=16,
    flags=GROUPS_FLAGS,
    clear_at=(17, SMALLER + 1),
)
# What SGLang does by itself with what is aborted early.
SPLIT_STOCK = tuple(
    replace(
        _SPLIT,
        name=f"split-{name}",
        algorithm=algorithm,
        budget=None,
        waves=(one,),
        captured=(),
        at_once=0,
        before=an_abort_before_the_keys_is_an_error,
    )
    for name, algorithm in (("plain", None), ("stock", "DFLASH"))
)
SPLIT_OTHERS = (
    *SPLIT_STATES,
    SPLIT_ENDS,
    *SPLIT_GROUPS,
    SPLIT_GROUPS_MELLUM,
    SPLIT_GROUPS_KDA,
    SPLIT_GROUPS_IMAGES,
    *SPLIT_STOCK,
    SPLIT_HOST_CACHE,
    *SPLIT_LATE_SLOTS,
    *SPLIT_THINKING,
    replace(
        _SPLIT,
        name="split-flashinfer",
        backend="flashinfer",
        waves=(few, prefix_hit, over_with_the_first_token),
        flags=("--reasoning-parser", "qwen3"),
    ),
    SPLIT_PENALTIES,
    SPLIT_RETRACTION,
    replace(_SPLIT, name="split-grammars", waves=(under_grammars,), late=True),
    # Of which SGLang keeps a retracted request's keys in tensors of its own.
    replace(SPLIT_RETRACTION, name="split-latent", backend="triton", pair="deepseek"),
    replace(
        SPLIT_RETRACTION,
        name="split-latent-pages",
        pair="deepseek",
        waves=(retracted_and_restored, few, prefix_hit),
        flags=(*SPLIT_RETRACTION.flags, "--page-size", "4"),
    ),
    replace(
        SPLIT_RETRACTION,
        name="split-retraction-tensors",
        flags=(*SPLIT_RETRACTION.flags, *_OF_TENSORS),
    ),
    replace(_SPLIT, name="split-seeds", waves=(seeded,), pair="llama", flags=("--enable-deterministic-inference",)),
    replace(
        _SPLIT,
        name="split-widths",
        backend="triton",
        waves=(changing_widths,),
        budget=4,
        flags=LOAD_FLAGS,
        captured=(1, 2),
    ),
    replace(
        _SPLIT,
        name="split-adaptive",
        waves=(changing_widths, aborted, chunked),
        budget=4,
        flags=("--speculative-ddtree-policy", "adaptive", "--speculative-ddtree-measure-seconds", "0"),
        captured=(1, 2),
        late=True,
        at_once=0,
    ),
    replace(
        SPLIT_RETRACTION,
        name="split-draft-window",
        backend="triton",
        waves=(retracted_and_restored, past_the_window, hits_about_the_window, aborted),
        flags=("--speculative-draft-window-size", "8", *SPLIT_RETRACTION.flags),
    ),
    replace(
        SPLIT_RETRACTION,
        name="split-windows-retraction",
        pair="gpt_oss",
        waves=(retracted_and_restored, past_the_window),
        budget=16,
        flags=(*pool_of(90), *_RESERVED),
    ),
    replace(
        SPLIT_RETRACTION,
        name="split-windows-tensors",
        backend="triton",
        pair="gpt_oss",
        waves=(retracted_and_restored, past_the_window),
        flags=(*pool_of(90), *_RESERVED, *_OF_TENSORS),
    ),
    replace(
        _SPLIT,
        name="split-windows-gemma",
        backend="triton",
        pair="gemma",
        waves=(past_the_window, prefix_hit, aborted),
    ),
    replace(_SPLIT, name="split-selector", pair="selector"),
    # DSpark: as many candidates as its head was trained for, which a tree of sixteen nodes can use.
    replace(_SPLIT, name="split-markov", pair="markov", waves=(few, prefix_hit, aborted), budget=16),
    replace(_SPLIT, name="split-gated-markov", pair="gated_markov", waves=(few, prefix_hit), budget=16),
    replace(_SPLIT, name="split-two-ranks", pair="wide", flags=("--tp-size", "2")),
)
