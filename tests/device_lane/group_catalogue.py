"""Scenes of servers under DP attention: two groups of one rank each."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    SMALLER,
    comes_back_from_the_host,
    hits_about_the_window,
    leaves_the_device,
    mixed,
    passes_a_tracked_length,
    past_the_window,
    prefix_hit,
    resumes_at_a_tracked_length,
    three_at_two_budgets,
    three_go_on,
)
from tests.device_lane.group_waves import (
    every_kind_in_groups,
    in_both_groups,
    in_group,
    mixed_in_one_group,
    more_than_a_groups_pool,
    ten_in_two_groups,
    the_second_group_alone,
    unequal_groups,
)
from tests.device_lane.host_cache import FLAGS as _HOST_CACHE
from tests.device_lane.request_waves import FLAGS as _EVERY_KIND
from tests.device_lane.scenes import SMALL_POOL, Scene, pool_of
from tests.device_lane.state_catalogue import CHUNKS, LOAD_FLAGS, TRACKED
from tests.device_lane.waves import by_its_head, prefix_of_another_adapter, with_adapters

FLAGS = ("--dp-size", "2", "--enable-dp-attention", "--enable-dp-lm-head", "--tp-size", "2")
GROUPS = Scene(
    "attention-groups",
    "fa3",
    (unequal_groups, the_second_group_alone, every_kind_in_groups),
    pair="experts",
    budget=7,
    flags=(*FLAGS, *_EVERY_KIND),
)
GROUPS_EAGER = Scene(
    "attention-groups-eager",
    "fa3",
    (unequal_groups, the_second_group_alone),
    budget=7,
    flags=FLAGS,
    captured=(),
)
# The number of nodes follows the requests of both groups.
GROUPS_WIDTHS = replace(
    GROUPS_EAGER,
    name="attention-groups-widths",
    waves=(more_than_a_groups_pool, *GROUPS_EAGER.waves),
    flags=(*FLAGS, *LOAD_FLAGS, *SMALL_POOL),
    captured=(1, 2),
    must_log=("Retract requests",),
)
# DeepSeek-V3: what SGLang has such groups for.
GROUPS_LATENT = Scene(
    "attention-groups-latent",
    "fa3",
    (unequal_groups, the_second_group_alone, in_both_groups(prefix_hit), every_kind_in_groups),
    pair="deepseek",
    budget=16,
    flags=(*FLAGS, *_EVERY_KIND),
    captured=(1, 2),
)
# A prefill that decodes is one to the other groups, which wait for it as they do for any.
_MIXED = replace(
    GROUPS_EAGER,
    name="attention-groups-mixed",
    pair="experts",
    waves=(mixed_in_one_group, in_both_groups(mixed)),
    flags=(*FLAGS, *CHUNKS, "--enable-mixed-chunk"),
    captured=(1, 2),
)
# A pool that a group's texts leave, and come back to; of a drafter's two layers, too.
_ON_THE_HOST = replace(
    GROUPS_EAGER,
    name="attention-groups-host-cache",
    pair="sliding",
    waves=(
        *(in_group(group, wave) for group in (0, 1) for wave in (leaves_the_device, comes_back_from_the_host)),
        unequal_groups,
    ),
    flags=(*FLAGS, *_HOST_CACHE, *pool_of(120)),
    captured=(1, 2),
)
# Groups of two ranks each, which share a group's heads, its LM head and its trees.
OF_TWO = (*FLAGS[:-1], "4")
GROUPS_OF_TWO = (
    replace(
        GROUPS,
        name="attention-groups-of-two",
        waves=(*GROUPS.waves, in_both_groups(prefix_hit)),
        pair="whole",
        flags=(*OF_TWO, *_EVERY_KIND),
        captured=(1, 2),
    ),
    replace(
        GROUPS_WIDTHS,
        name="attention-groups-of-two-widths",
        backend="triton",
        pair="whole",
        flags=(*OF_TWO, *LOAD_FLAGS, *SMALL_POOL),
    ),
    replace(GROUPS_LATENT, name="attention-groups-of-two-latent", pair="latent_whole", flags=(*OF_TWO, *_EVERY_KIND)),
    # As few nodes as one a request, which two ranks pad to an even number.
    replace(
        GROUPS_EAGER,
        name="attention-groups-of-two-narrow",
        pair="whole",
        waves=(ten_in_two_groups,),
        flags=(*OF_TWO, *LOAD_FLAGS),
        captured=(1, 2),
    ),
)
# Recurrent layers, whose kernels read links of padding, too.
GROUPS_GATED_DELTA = replace(
    GROUPS_EAGER,
    name="attention-groups-gated-delta",
    backend="triton",
    pair="gated_delta_wide",
    flags=(*FLAGS, *TRACKED),
)
GROUPS_STATES = (
    replace(
        GROUPS_GATED_DELTA,
        name="attention-groups-gated-delta-graphs",
        backend="fa3",
        waves=(
            *GROUPS_EAGER.waves,
            *(
                in_group(group, wave)
                for group in (0, 1)
                for wave in (passes_a_tracked_length, resumes_at_a_tracked_length)
            ),
        ),
        captured=(1, 2),
    ),
    replace(
        GROUPS_WIDTHS,
        name="attention-groups-gated-delta-widths",
        pair="gated_delta_wide",
        flags=(*TRACKED, *GROUPS_WIDTHS.flags),
    ),
    replace(
        GROUPS_GATED_DELTA, name="attention-groups-qwen3.5-moe", backend="fa3", pair="Qwen3.5-35B-A3B", captured=(1, 2)
    ),
    replace(GROUPS_GATED_DELTA, name="attention-groups-qwen3-next", pair="Qwen3-Coder-Next", captured=(1, 2)),
)
GROUPS_ADAPTERS = replace(
    GROUPS_EAGER,
    name="refused-groups-adapters",
    pair="wide",
    waves=(*GROUPS_EAGER.waves, in_both_groups(with_adapters), in_both_groups(prefix_of_another_adapter)),
    flags=(*FLAGS, "--max-loras-per-batch", "3", "--lora-backend", "triton"),
    captured=(1, 2),
    adapters=True,
)
_SELECTOR = replace(
    GROUPS_EAGER,
    name="attention-groups-selector",
    pair="selector",
    waves=(
        in_both_groups(by_its_head(three_at_two_budgets)),
        in_both_groups(by_its_head(three_go_on)),
        *GROUPS_EAGER.waves,
    ),
    budget=16,
    captured=(1, 2),
    clear_at=(17, SMALLER + 1),
)
GROUPS_OTHERS = (
    GROUPS_EAGER,
    *GROUPS_OF_TWO,
    *GROUPS_STATES,
    _SELECTOR,
    GROUPS_WIDTHS,
    *(
        replace(GROUPS_EAGER, name=f"attention-groups-{backend}", backend=backend, captured=(1, 2))
        for backend in ("triton", "flashinfer")
    ),
    replace(GROUPS_EAGER, name="attention-groups-kimi", backend="triton", pair="Kimi-K2.5", captured=(1, 2)),
    _MIXED,
    replace(_MIXED, name="attention-groups-mixed-latent", pair="deepseek", budget=16),
    # DSpark.
    replace(GROUPS_EAGER, name="attention-groups-markov", pair="markov", budget=16, captured=(1, 2)),
    replace(GROUPS_EAGER, name="attention-groups-gated-markov", backend="triton", pair="gated_markov", budget=16),
    _ON_THE_HOST,
    replace(_ON_THE_HOST, name="attention-groups-host-cache-latent", backend="triton", pair="deepseek"),
    # Pages of several tokens, of which nodes of windows and of latent attention are read by single slots.
    replace(
        GROUPS_LATENT,
        name="attention-groups-latent-pages",
        waves=(unequal_groups, in_both_groups(prefix_hit)),
        flags=(*FLAGS, "--page-size", "4"),
    ),
    replace(
        GROUPS_LATENT,
        name="attention-groups-windows-pages",
        pair="gpt_oss",
        waves=(unequal_groups, in_both_groups(prefix_hit), in_both_groups(past_the_window)),
        flags=(*FLAGS, "--page-size", "4"),
    ),
    # gpt-oss: windows and sinks.
    replace(
        GROUPS_LATENT,
        name="attention-groups-windows",
        backend="triton",
        pair="gpt_oss",
        waves=(*GROUPS_LATENT.waves, in_both_groups(past_the_window)),
    ),
    replace(
        GROUPS_EAGER,
        name="attention-groups-windows-retraction",
        pair="gpt_oss",
        waves=(more_than_a_groups_pool, *GROUPS_EAGER.waves, in_both_groups(past_the_window)),
        flags=(*FLAGS, *pool_of(76)),
        captured=(1, 2),
        must_log=("Retract requests",),
    ),
    # A drafter that reads the last eight tokens of a context.
    replace(
        GROUPS_EAGER,
        name="attention-groups-draft-window",
        waves=(
            more_than_a_groups_pool,
            *GROUPS_EAGER.waves,
            in_both_groups(past_the_window),
            in_both_groups(hits_about_the_window),
        ),
        flags=(*FLAGS, "--speculative-draft-window-size", "8", *SMALL_POOL),
        budget=16,
        captured=(1, 2),
        must_log=("Retract requests",),
    ),
)
