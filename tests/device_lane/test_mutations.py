"""The lane notices: each fault that is put back makes a scene fail that passes without it (here, or in test_scenes).

A server and a few requests each. `symptom` is what must be found among the scene's problems: a wrong token, other
numbers accepted, a rule of a kernel or of a capture that is broken. A server that dies counts by what its log says.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.device_lane.catalogue import (
    ADAPTIVE,
    CONTEXT_END,
    DRAFT_WINDOW_FLASHINFER,
    EXPERTS,
    FA3,
    FA3_DETERMINISTIC,
    FA3_PAGES,
    GRAMMARS,
    HOST_CACHE,
    LATE,
    PAIRS_OF_CANDIDATES,
    PENALTIES,
    RETRACTION,
    SMALL,
    SMALL_FA3,
    SMALL_FLASHINFER,
    SMALL_PROCESSORS,
    SMALL_TRITON,
    TRITON_3,
    TRITON_DETERMINISTIC,
    TRITON_WIDTHS,
    WINDOWS_DETERMINISTIC,
    WINDOWS_FLASHINFER,
    WINDOWS_TRITON,
)
from tests.device_lane.class_catalogue import (
    INTERN_S2,
    MIMO_V2,
    MIMO_V2_TRITON,
    MOBIUS,
    OMNI,
    PUZZLE,
    SHORT_CONVOLUTION_VL,
)
from tests.device_lane.drafter_catalogue import GATED_MARKOV, LATTICE, MARKOV, MARKOV_LFM2
from tests.device_lane.group_catalogue import GROUPS, GROUPS_EAGER, GROUPS_GATED_DELTA, GROUPS_OF_TWO, GROUPS_WIDTHS
from tests.device_lane.group_families import GROUPS_IMAGES, GROUPS_IMAGES_ALONE, GROUPS_KDA, GROUPS_MELLUM
from tests.device_lane.host_states_catalogue import STATES_ON_THE_HOST
from tests.device_lane.latent_catalogue import LATENT_FA3_PAGES
from tests.device_lane.mutations import MUTATIONS
from tests.device_lane.picture_catalogue import IMAGES
from tests.device_lane.problems import problems
from tests.device_lane.references import Reference
from tests.device_lane.scenes import Outcome, Scene
from tests.device_lane.split_catalogue import SPLIT, SPLIT_PENALTIES
from tests.device_lane.state_catalogue import (
    DELTA_ATTENTION,
    GATED_DELTA,
    SHORT_CONVOLUTION,
)
from tests.device_lane.window_catalogue import WINDOWS_FA3_PAGES, WINDOWS_FA3_PAGES_RETRACTION

TOKENS = "tokens .* expected"
ROUNDS = "rounds by correct drafts .* expected"
STATES = "hidden states differ"
VIOLATION = "LaneViolation"
SIZES = "must match the size"
NOT_TAKEN = "Grammar accept_token failed"
CAPTURE = "not permitted when stream is capturing"
LOGPROBS = "log-probabilities .* expected"
LAW = "standard deviations off their laws"
LOST_RANK = "gloo/transport|IndexError"


@dataclass(frozen=True)
class Fault:
    """A mutation, the scene that notices it, and by what. `slow`: not run in each CI run, for its time."""

    mutation: str
    scene: Scene
    symptom: str
    slow: bool = False


FAULTS = (
    Fault("tail_mask_in_deterministic_mode", TRITON_DETERMINISTIC, TOKENS, slow=True),
    # What lies behind the table is read: no slot of the pool, another's keys, or nothing that the process may read.
    Fault("requests_as_long_as_the_context", CONTEXT_END, f"{VIOLATION}|{TOKENS}", slow=True),
    Fault("drafter_planned_for_the_window", SMALL_FLASHINFER, VIOLATION, slow=True),
    Fault("causal_verify_graph", SMALL_TRITON, TOKENS),
    Fault("mask_keeps_old_cells", SMALL_FA3, TOKENS),
    Fault("lengths_published_before_acceptance", SMALL_FA3, TOKENS),
    Fault("drafter_writes_to_its_neighbours_window", SMALL_FA3, ROUNDS, slow=True),
    # FA3 is handed its mask; only a backend that reads its own buffer notices.
    Fault("widths_share_the_widest_mask", TRITON_WIDTHS, TOKENS, slow=True),
    Fault("grammars_of_the_round_before", GRAMMARS, NOT_TAKEN, slow=True),
    Fault("roots_children_whatever_the_grammar", GRAMMARS, ROUNDS, slow=True),
    Fault("grammars_along_the_flat_order", GRAMMARS, NOT_TAKEN, slow=True),
    Fault("penalties_of_the_root_at_every_node", PENALTIES, TOKENS),
    Fault("one_token_of_a_round_is_counted", PENALTIES, TOKENS, slow=True),
    Fault("answers_are_forgotten_when_requests_are_retracted", RETRACTION, TOKENS, slow=True),
    *(
        Fault("short_convolutions_in_a_chain", scene, TOKENS, slow=True)
        for scene in (SHORT_CONVOLUTION, SHORT_CONVOLUTION_VL)
    ),
    *(Fault("states_by_depth", scene, TOKENS, slow=True) for scene in (INTERN_S2, MOBIUS, OMNI, PUZZLE)),
    Fault("rows_of_one_width", MIMO_V2, TOKENS, slow=True),
    Fault("rows_of_windows_stay_where_they_are", MIMO_V2, TOKENS, slow=True),
    *(
        Fault(name, MIMO_V2_TRITON, TOKENS, slow=True)
        for name in ("rows_of_one_width", "sinks_left_out", "windows_by_index_in_the_tree")
    ),
    Fault("drafts_at_the_masks", MARKOV_LFM2, ROUNDS, slow=True),
    Fault("states_by_depth", GATED_DELTA, TOKENS, slow=True),
    Fault("states_stay_where_they_were", GATED_DELTA, TOKENS, slow=True),
    Fault("kept_state_is_one_token_off", GATED_DELTA, TOKENS, slow=True),
    Fault("nodes_linked_as_a_chain", GATED_DELTA, TOKENS, slow=True),
    Fault("positions_off_by_one", SMALL_FA3, TOKENS, slow=True),
    Fault("host_value_in_a_graph", SMALL_FA3, CAPTURE, slow=True),
    Fault("pairs_after_the_neighbours_tokens", PAIRS_OF_CANDIDATES, ROUNDS, slow=True),
    Fault("anchors_of_the_neighbour", LATTICE, ROUNDS, slow=True),
    Fault("anchors_of_the_prefill", LATTICE, ROUNDS, slow=True),
    Fault("drafts_at_the_masks", MARKOV, ROUNDS, slow=True),
    Fault("gates_of_the_position_before", GATED_MARKOV, ROUNDS, slow=True),
    Fault("paths_as_long_as_a_block", MARKOV, ROUNDS, slow=True),
    Fault("nodes_written_to_their_neighbours_window", SMALL_FA3, TOKENS, slow=True),
    Fault("accepted_rows_stay_where_they_are", FA3, TOKENS, slow=True),
    Fault("drafter_is_told_nothing", SMALL_FA3, ROUNDS, slow=True),
    Fault("trees_of_the_round_before", SMALL_FA3, TOKENS, slow=True),
    Fault("root_is_another_token", SMALL_FA3, TOKENS, slow=True),
    Fault("draws_at_the_roots_position", FA3_DETERMINISTIC, TOKENS, slow=True),
    Fault("parameters_of_another_request", FA3_DETERMINISTIC, TOKENS, slow=True),
    Fault("path_of_the_widest_tree", ADAPTIVE, SIZES, slow=True),
    Fault("rounds_are_looked_at_before_they_are_over", ADAPTIVE, "must begin at node 0", slow=True),
    Fault("end_tokens_are_not_known", FA3_DETERMINISTIC, ROUNDS, slow=True),
    Fault("limit_one_token_too_far", FA3_DETERMINISTIC, ROUNDS, slow=True),
    Fault("budgets_of_one_node_more", FA3_DETERMINISTIC, ROUNDS, slow=True),
    Fault("prefix_pages_of_one_token", FA3_PAGES, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("last_token_of_a_turn_counted_as_written", FA3_PAGES, f"{TOKENS}|{ROUNDS}", slow=True),
    Fault("states_by_index_in_the_tree", LATE, STATES, slow=True),
    Fault("experts_where_their_nodes_were", EXPERTS, "routed experts", slow=True),
    Fault("processors_a_round_late", SMALL_PROCESSORS, TOKENS),
    Fault("processors_see_the_root_alone", SMALL_PROCESSORS, TOKENS, slow=True),
    Fault("windows_by_index_in_the_tree", WINDOWS_TRITON, TOKENS),
    Fault("windows_by_index_in_one_go", WINDOWS_DETERMINISTIC, TOKENS, slow=True),
    Fault("windows_by_index_beside_a_mask", WINDOWS_FLASHINFER, TOKENS),
    Fault("windows_one_token_short", WINDOWS_FLASHINFER, TOKENS, slow=True),
    Fault("keys_of_a_window_from_the_texts_start", WINDOWS_FLASHINFER, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("windows_read_the_mask_of_the_others", WINDOWS_FLASHINFER, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("windows_read_slots_of_the_other_pool", WINDOWS_FA3_PAGES_RETRACTION, f"{TOKENS}|{VIOLATION}"),
    Fault("windows_one_slot_off_within_a_page", WINDOWS_FA3_PAGES, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("windows_of_whole_pages", WINDOWS_FA3_PAGES, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("latent_nodes_of_whole_pages", LATENT_FA3_PAGES, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("prefix_pages_of_one_token", LATENT_FA3_PAGES, f"{TOKENS}|{VIOLATION}", slow=True),
    Fault("windows_one_token_short_on_fa3", WINDOWS_FA3_PAGES, TOKENS, slow=True),
    Fault("pictures_of_the_neighbour", IMAGES, TOKENS, slow=True),
    Fault("sinks_left_out", WINDOWS_TRITON, TOKENS, slow=True),
    Fault("drafter_sees_the_first_tokens", DRAFT_WINDOW_FLASHINFER, ROUNDS, slow=True),
    Fault("drafters_rows_stay_on_the_device", HOST_CACHE, ROUNDS, slow=True),
    *(
        Fault(mutation, DELTA_ATTENTION, TOKENS, slow=True)
        for mutation in (
            "states_by_depth",
            "states_stay_where_they_were",
            "kept_state_is_one_token_off",
            "nodes_linked_as_a_chain",
        )
    ),
    *(Fault("states_stay_on_the_host", scene, TOKENS, slow=True) for scene in STATES_ON_THE_HOST),
    Fault("candidates_of_one_rank", GROUPS_OF_TWO[0], f"{ROUNDS}|{TOKENS}|{LOST_RANK}", slow=True),
    Fault("rows_of_windows_stay_where_they_are", WINDOWS_TRITON, TOKENS, slow=True),
    Fault("idle_group_waits_for_a_block", GROUPS, LOST_RANK, slow=True),
    Fault("padding_has_no_cells", GROUPS_EAGER, LOST_RANK, slow=True),
    Fault("padding_has_no_links", GROUPS_GATED_DELTA, LOST_RANK, slow=True),
    Fault("idle_group_verifies_padding", GROUPS_GATED_DELTA, LOST_RANK, slow=True),
    Fault("width_of_the_groups_own_load", GROUPS_WIDTHS, LOST_RANK, slow=True),
    Fault("padding_has_no_cells", GROUPS_MELLUM, LOST_RANK, slow=True),
    Fault("rows_of_windows_stay_where_they_are", GROUPS_MELLUM, TOKENS, slow=True),
    Fault("padding_has_no_links", GROUPS_KDA, LOST_RANK, slow=True),
    Fault("idle_group_verifies_padding", GROUPS_KDA, LOST_RANK, slow=True),
    Fault("states_by_depth", GROUPS_KDA, TOKENS, slow=True),
    Fault("idle_group_waits_for_a_block", GROUPS_IMAGES_ALONE, LOST_RANK, slow=True),
    Fault("pictures_of_the_neighbour", GROUPS_IMAGES, TOKENS, slow=True),
    Fault("pictures_are_left_out_between_layers", GROUPS_IMAGES_ALONE, TOKENS, slow=True),
    Fault("drafter_is_told_nothing", GROUPS_KDA, ROUNDS, slow=True),
    Fault("masks_of_a_prefill_by_width", TRITON_3, f"{TOKENS}|{LOGPROBS}|{NOT_TAKEN}", slow=True),
    Fault("bias_of_another_request", TRITON_3, TOKENS, slow=True),
    Fault("the_best_is_drawn", TRITON_3, LAW, slow=True),
    Fault("supports_of_the_first_nodes", TRITON_3, "was drawn from", slow=True),
    Fault("logprobs_of_the_first_nodes", TRITON_3, LOGPROBS, slow=True),
    Fault("streams_round_by_round", TRITON_3, "one by one", slow=True),
    Fault("drafters_keys_stay_where_they_were_made", SPLIT, ROUNDS, slow=True),
    Fault("first_token_of_another_server_is_counted_twice", SPLIT_PENALTIES, TOKENS, slow=True),
)


@pytest.mark.parametrize("play", [(scene, "") for scene in SMALL], ids=[scene.name for scene in SMALL])
def test_scene_passes_without_a_fault(
    play: tuple[Scene, str], outcomes: Callable[[Scene, str], Outcome], references: Callable[[str], Reference]
) -> None:
    scene, _ = play
    assert problems(scene, outcomes(scene, ""), references(scene.pair)) == []


@pytest.mark.parametrize(
    ("play", "symptom"),
    [
        pytest.param(
            (fault.scene, fault.mutation),
            fault.symptom,
            id=fault.mutation,
            marks=[pytest.mark.slow] if fault.slow else [],
        )
        for fault in FAULTS
    ],
)
def test_fault_is_noticed(
    play: tuple[Scene, str],
    symptom: str,
    outcomes: Callable[[Scene, str], Outcome],
    references: Callable[[str], Reference],
) -> None:
    scene, mutation = play
    outcome = outcomes(scene, mutation)
    found = problems(scene, outcome, references(scene.pair))
    assert re.search(symptom, "\n".join(found)), found


def test_every_mutation_has_a_scene() -> None:
    assert {fault.mutation for fault in FAULTS} == set(MUTATIONS)


@pytest.mark.usefixtures("plugins")
@pytest.mark.parametrize("name", MUTATIONS)
def test_each_fault_finds_what_it_breaks(name: str) -> None:
    """Most faults are played by who asks for slow tests; a name that went away is seen at once."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            MUTATIONS[name]()
            status = 0
        finally:
            # Whatever happened: what pytest would do at its end is the parent's.
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
