"""Faults of recurrent states to put back, as `mutations`: the node, the length, and who reads whose state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from tests.device_lane.attention_mutations import set_attribute as _set


def states_by_depth() -> None:
    """A request goes on with the state of the node whose index is its path's depth: what stock DFLASH commits."""

    def steps(original: Callable[..., Any], path: Any, prefix_lens: torch.Tensor, interval: int | None) -> Any:
        return replace(original(path, prefix_lens, interval), last=path.commit_lens - 1)

    _change_state_steps(steps)


def states_stay_where_they_were() -> None:
    """No state of an accepted node becomes its request's."""
    from ddtree_sglang.engine.stages.recurrent_states import RecurrentStates

    _set(RecurrentStates, "commit", lambda *_: None)


def kept_state_is_one_token_off() -> None:
    """The prefix cache gets the state after one token more than it says."""

    def steps(original: Callable[..., Any], path: Any, prefix_lens: torch.Tensor, interval: int | None) -> Any:
        return replace(original(path, prefix_lens, interval), tracked=original(path, prefix_lens - 1, interval).tracked)

    _change_state_steps(steps)


def short_convolutions_in_a_chain() -> None:
    """Each node is convolved with the nodes before it, whoever its parent is: what SGLang's model does."""
    from ddtree_sglang.engine.stages import short_convolutions

    _set(short_convolutions, "along_paths", lambda chain: chain)


def _change_state_steps(steps: Callable[..., Any]) -> None:
    from ddtree_sglang.engine.stages import recurrent_states

    original = recurrent_states.state_steps
    _set(recurrent_states, "state_steps", lambda *arguments: steps(original, *arguments))


STATE_MUTATIONS = (
    states_by_depth,
    states_stay_where_they_were,
    kept_state_is_one_token_off,
    short_convolutions_in_a_chain,
)
