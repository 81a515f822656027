"""Scenes of targets with recurrent layers whose texts leave the device, and come back with their states."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.context_waves import (
    fills_the_device,
    finishes,
    from_the_host,
    goes_on_right_behind_its_end,
    passes_a_tracked_length,
    resumes_at_a_tracked_length,
)
from tests.device_lane.host_cache import PAGES_FIRST
from tests.device_lane.scenes import pool_of
from tests.device_lane.state_catalogue import GATED_DELTA, SHORT_CONVOLUTION, STATES_POOL, TRACKED
from tests.device_lane.storage_waves import LENGTH, comes_back_to_a_kept_state, comes_back_to_its_end, with_storage

_ON_THE_HOST = replace(
    GATED_DELTA,
    name="gated-delta-host-cache",
    backend="fa3",
    waves=(passes_a_tracked_length, fills_the_device, from_the_host(resumes_at_a_tracked_length)),
    flags=(*TRACKED, *PAGES_FIRST, *pool_of(132)),
    must_log=(),
)
_IN_STORAGE = replace(
    _ON_THE_HOST, name="gated-delta-storage", waves=(comes_back_to_a_kept_state,), flags=(*TRACKED, *PAGES_FIRST)
)
STATES_IN_STORAGE = (
    with_storage(_IN_STORAGE),
    with_storage(replace(_IN_STORAGE, name="mamba-storage", backend="triton", pair="mamba")),
)
# Of convolutions the last inputs, as a request leaves them.
_CONVOLUTIONS_ON_THE_HOST = replace(
    SHORT_CONVOLUTION,
    name="short-convolution-host-cache",
    waves=(finishes, fills_the_device, from_the_host(goes_on_right_behind_its_end)),
    flags=(*STATES_POOL, *PAGES_FIRST, *pool_of(132)),
    captured=(4,),
    must_log=(),
)
_CONVOLUTIONS_IN_STORAGE = replace(
    _CONVOLUTIONS_ON_THE_HOST,
    name="short-convolution-storage",
    backend="flashinfer",
    waves=(comes_back_to_its_end,),
    flags=(*STATES_POOL, *PAGES_FIRST),
)
STATES_ON_THE_HOST = (
    _ON_THE_HOST,
    _CONVOLUTIONS_ON_THE_HOST,
    with_storage(_CONVOLUTIONS_IN_STORAGE, kept=LENGTH),
    replace(
        _CONVOLUTIONS_ON_THE_HOST,
        name="short-convolution-experts-host-cache",
        backend="flashinfer",
        pair="short_convolution_experts",
    ),
    replace(
        _ON_THE_HOST,
        name="delta-attention-host-cache",
        pair="kimi_k3",
        flags=(*TRACKED, *PAGES_FIRST, *pool_of(124)),
        moves=True,
    ),
    *STATES_IN_STORAGE,
    replace(_ON_THE_HOST, name="mamba-host-cache", backend="triton", pair="mamba"),
)
