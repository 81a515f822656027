"""Faults of heads that score pairs to put back, as `mutations`: what they are given of other requests and positions."""

from __future__ import annotations

from typing import Any

import torch

from tests.device_lane.attention_mutations import set_attribute


def anchors_of_the_neighbour() -> None:
    """What LiLiCorr's head reads of a request's last token is kept in the row of the request before it."""
    from ddtree_sglang.engine.stages.pair_scores import LatticeScorer

    original = LatticeScorer.keep

    def keep(scorer: Any, rows: torch.Tensor, anchors: torch.Tensor) -> None:
        original(scorer, rows.roll(1), anchors)

    set_attribute(LatticeScorer, "keep", keep)


def anchors_of_the_prefill() -> None:
    """What LiLiCorr's head reads is kept when a request begins, and not when a round ends."""
    from ddtree_sglang.engine.stages.pair_scores import LatticeScorer

    original = LatticeScorer.keep
    known: set[int] = set()

    def keep(scorer: Any, rows: torch.Tensor, anchors: torch.Tensor) -> None:
        new = [index for index, row in enumerate(rows.tolist()) if row not in known]
        known.update(rows.tolist())
        original(scorer, rows[new], anchors[new])

    set_attribute(LatticeScorer, "keep", keep)


def drafts_at_the_masks() -> None:
    """A drafter whose tokens each propose the next is read as one that proposes at its masks."""
    from ddtree_sglang.engine.stages import ranking

    original = ranking.CandidateRanking
    set_attribute(ranking, "CandidateRanking", lambda *args, first_state: original(*args, first_state=1))


def gates_of_the_position_before() -> None:
    """A gated Markov head weighs a token's row by the state of the position before the candidate's."""
    from ddtree_sglang.engine.stages.pair_scores import MarkovScorer

    original = MarkovScorer.scores

    def scores(scorer: Any, states: torch.Tensor, roots: Any, ranked: Any) -> torch.Tensor:
        return original(scorer, states.roll(1, dims=1), roots, ranked)

    set_attribute(MarkovScorer, "scores", scores)


def paths_as_long_as_a_block() -> None:
    """A round accepts as many tokens as a block has, one less than a drafter whose root proposes, too, may give."""
    from ddtree_sglang.engine.stages.candidates import CandidateRanking

    set_attribute(CandidateRanking, "max_path_len", property(lambda ranking: ranking.block_size))


HEAD_MUTATIONS = (
    anchors_of_the_neighbour,
    anchors_of_the_prefill,
    drafts_at_the_masks,
    gates_of_the_position_before,
    paths_as_long_as_a_block,
)
