"""Refusals of servers: more of those that `lifted_catalogue` has."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.catalogue import ADAPTERS
from tests.device_lane.context_waves import first_turns, later_turns
from tests.device_lane.group_catalogue import GROUPS_ADAPTERS, GROUPS_EAGER
from tests.device_lane.needed import TOKENS, Needed
from tests.device_lane.split_catalogue import SPLIT
from tests.device_lane.state_catalogue import DELTA_ATTENTION, GATED_DELTA
from tests.device_lane.waves import few_adapters

SERVERS = (
    Needed(
        "groups_that_count_alone",
        "counts the requests of all groups before each round",
        replace(
            GROUPS_EAGER,
            name="refused-groups-counts",
            flags=(*GROUPS_EAGER.flags, "--lane-variable", "SGLANG_SCHEDULER_SKIP_ALL_GATHER=1"),
        ),
        # A group without a request chooses its number of nodes by them.
        "'NoneType' object is not iterable",
    ),
    Needed("adapters_of_groups", "verifies wrongly with adapters in a graph", GROUPS_ADAPTERS, TOKENS),
    Needed(
        "sessions_on_two_servers",
        "has not been run with sessions",
        replace(
            SPLIT,
            name="refused-split-sessions",
            waves=(first_turns, later_turns),
            flags=("--enable-streaming-session",),
            captured=(),
            at_once=0,
        ),
        "already has a slot",
    ),
    Needed(
        "adapters_of_states",
        "has not been shown with adapters",
        replace(
            GATED_DELTA,
            name="refused-states-adapters",
            waves=(few_adapters,),
            flags=(*GATED_DELTA.flags, *ADAPTERS.flags),
            adapters=True,
        ),
        # Which module comes first is the order of a set of names.
        r"get_hidden_dim not implemented for \w+_proj\w*|LoRA buffer shape .* does not match weight shape",
    ),
    Needed(
        "adapters_of_states",
        "has not been shown with adapters",
        replace(
            DELTA_ATTENTION,
            name="refused-delta-attention-adapters",
            waves=(few_adapters,),
            flags=(*DELTA_ATTENTION.flags, *ADAPTERS.flags),
            adapters=True,
        ),
        TOKENS,
    ),
)
