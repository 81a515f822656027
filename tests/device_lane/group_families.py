"""Scenes of servers under DP attention whose targets have more in a layer than attention: windows, KDA, pictures."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    SMALLER,
    mixed,
    past_the_window,
    prefix_hit,
)
from tests.device_lane.group_catalogue import FLAGS as _FLAGS
from tests.device_lane.group_catalogue import (
    GROUPS,
    GROUPS_EAGER,
    GROUPS_GATED_DELTA,
    GROUPS_STATES,
    GROUPS_WIDTHS,
    OF_TWO,
)
from tests.device_lane.group_waves import (
    every_kind_in_groups,
    in_both_groups,
    in_group,
    mixed_in_one_group,
    more_than_a_groups_pool,
)
from tests.device_lane.picture_waves import behind_pictures, pictures_at_once
from tests.device_lane.request_waves import FLAGS as _EVERY_KIND
from tests.device_lane.scenes import Scene, pool_of
from tests.device_lane.state_catalogue import CHUNKS, LOAD_FLAGS, TRACKED

_PAGED_PREFILLS = ("--lane-variable", "SGLANG_FLASHINFER_USE_PAGED=1")
_RETRACTED = (more_than_a_groups_pool, *GROUPS_EAGER.waves)

# Mellum: windows of eight tokens without sinks, and experts.
GROUPS_MELLUM = replace(
    GROUPS_EAGER,
    name="attention-groups-mellum",
    pair="mellum",
    waves=(*GROUPS_EAGER.waves, in_both_groups(past_the_window)),
    captured=(1, 2),
)
_MELLUM = (
    replace(GROUPS_MELLUM, name="attention-groups-mellum-eager", backend="triton", captured=()),
    replace(
        GROUPS_MELLUM,
        name="attention-groups-mellum-triton",
        backend="triton",
        waves=(*GROUPS_MELLUM.waves, in_both_groups(prefix_hit), every_kind_in_groups),
        flags=(*_FLAGS, *_EVERY_KIND),
        budget=16,
    ),
    replace(
        GROUPS_MELLUM,
        name="attention-groups-mellum-flashinfer",
        backend="flashinfer",
        waves=(*GROUPS_MELLUM.waves, in_both_groups(prefix_hit)),
        flags=(*_FLAGS, *_PAGED_PREFILLS),
        budget=16,
    ),
    # One pool of keys: SGLang runs a request once more than it needs to where others have grammars, with slots of its
    # windows' pool that it has given back by then, which the stand-ins of FlashInfer and FA3 take for a mistake.
    *(
        replace(
            GROUPS_MELLUM,
            name=f"attention-groups-mellum-kinds-{backend}",
            backend=backend,
            waves=(every_kind_in_groups,),
            flags=(*_FLAGS, *_EVERY_KIND, *_PAGED_PREFILLS, "--disable-hybrid-swa-memory"),
        )
        for backend in ("flashinfer", "fa3")
    ),
    replace(
        GROUPS_MELLUM,
        name="attention-groups-mellum-retraction",
        waves=(*_RETRACTED, in_both_groups(past_the_window), in_both_groups(prefix_hit)),
        flags=(*_FLAGS, *pool_of(76)),
        must_log=("Retract requests",),
    ),
    replace(
        GROUPS_WIDTHS,
        name="attention-groups-mellum-widths",
        backend="flashinfer",
        pair="mellum",
        flags=(*GROUPS_WIDTHS.flags, *_PAGED_PREFILLS),
    ),
    replace(
        GROUPS_MELLUM,
        name="attention-groups-mellum-mixed",
        waves=(mixed_in_one_group, in_both_groups(mixed)),
        flags=(*_FLAGS, *CHUNKS, "--enable-mixed-chunk"),
    ),
    replace(GROUPS_MELLUM, name="attention-groups-of-two-mellum", pair="mellum_whole", flags=OF_TWO),
)

# Kimi-K3: KDA beside latent attention.
GROUPS_KDA = replace(GROUPS_GATED_DELTA, name="attention-groups-delta-attention", backend="fa3", pair="kimi_k3")
_KDA_GRAPHS = replace(GROUPS_STATES[0], name="attention-groups-delta-attention-graphs", pair="kimi_k3")
_KDA = (
    _KDA_GRAPHS,
    replace(_KDA_GRAPHS, name="attention-groups-delta-attention-triton", backend="triton"),
    replace(
        GROUPS,
        name="attention-groups-delta-attention-kinds",
        pair="kimi_k3",
        waves=(every_kind_in_groups,),
        flags=(*_FLAGS, *TRACKED, *_EVERY_KIND),
        captured=(1, 2),
    ),
    replace(
        GROUPS_WIDTHS,
        name="attention-groups-delta-attention-widths",
        pair="kimi_k3",
        flags=(*_FLAGS, *TRACKED, *LOAD_FLAGS, *pool_of(76)),
    ),
    replace(
        GROUPS_GATED_DELTA,
        name="attention-groups-of-two-delta-attention",
        backend="fa3",
        pair="kimi_k3_whole",
        flags=(*OF_TWO, *TRACKED),
        captured=(1, 2),
    ),
)

# Qwen3-VL: pictures, of which the first layers get more behind them.
_SEEN = tuple(in_both_groups(wave) for wave in (pictures_at_once, behind_pictures))
_SEEN_ALONE = tuple(in_group(1, wave) for wave in (pictures_at_once, behind_pictures))
GROUPS_IMAGES = Scene(
    "attention-groups-images",
    "fa3",
    _SEEN,
    pair="sees",
    budget=16,
    flags=_FLAGS,
    captured=(1, 2),
    clear_at=(17, SMALLER + 1),
)
_SMALLER = replace(GROUPS_IMAGES, budget=SMALLER, clear_at=())
# The other group has no request, and sees nothing.
GROUPS_IMAGES_ALONE = replace(GROUPS_IMAGES, name="attention-groups-images-alone", waves=_SEEN_ALONE)
_IMAGES = (
    replace(_SMALLER, name="attention-groups-images-eager", waves=(*_SEEN, *GROUPS_EAGER.waves), captured=()),
    *(
        replace(
            _SMALLER,
            name=f"attention-groups-images-{backend}",
            backend=backend,
            asked_as="attention-groups-images-flashinfer",
            waves=(*_SEEN, *GROUPS_EAGER.waves, every_kind_in_groups),
            flags=(*_FLAGS, *_EVERY_KIND),
        )
        for backend in ("triton", "flashinfer")
    ),
    replace(
        GROUPS_WIDTHS,
        name="attention-groups-images-widths",
        pair="sees",
        waves=(*_RETRACTED, *_SEEN),
        flags=(*_FLAGS, *LOAD_FLAGS, *pool_of(96)),
    ),
    replace(_SMALLER, name="attention-groups-of-two-images", flags=OF_TWO),
)
GROUPS_FAMILIES = (GROUPS_MELLUM, *_MELLUM, GROUPS_KDA, *_KDA, GROUPS_IMAGES, GROUPS_IMAGES_ALONE, *_IMAGES)
