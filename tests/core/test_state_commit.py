"""Which node's state is kept, against a count of tokens one by one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddtree_sglang.core import AcceptedPath
from ddtree_sglang.core.state_commit import NO_NODE, state_steps

MAX_PATH_LEN = 5


def path_of(rows: list[list[int]]) -> AcceptedPath:
    """Paths of these nodes."""
    index = torch.tensor([[*row, *[-1] * (MAX_PATH_LEN - len(row))] for row in rows])
    lens = (index >= 0).sum(1)
    return AcceptedPath(index, lens - 1, lens, index.clamp(min=0), index[:, 0])


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(1, 20), max_size=MAX_PATH_LEN - 1, unique=True)),
        min_size=1,
        max_size=4,
    ),
    st.integers(MAX_PATH_LEN, 17),
)
def test_states_are_those_after_the_last_token_and_after_the_kept_length(
    requests: list[tuple[int, list[int]]], interval: int
) -> None:
    paths = [[0, *sorted(nodes)] for _, nodes in requests]
    prefix_lens = torch.tensor([length for length, _ in requests])
    steps = state_steps(path_of(paths), prefix_lens, interval)
    assert steps.tracked is not None
    for request, (prefix_len, path) in enumerate(zip(prefix_lens.tolist(), paths, strict=True)):
        kept = NO_NODE
        for number, node in enumerate(path, start=1):
            if (prefix_len + number) % interval == 0:
                kept = node
        assert int(steps.last[request]) == path[-1]
        assert int(steps.tracked[request]) == kept


@pytest.mark.parametrize(
    ("prefix_len", "kept"),
    [(59, -1), (60, 9), (61, 7), (62, 3), (63, 0), (64, -1), (0, -1)],
    ids=["one-short", "with-the-last", "in-the-middle", "second", "with-the-root", "begun-there", "empty-prefix"],
)
def test_lengths_around_the_one_that_is_kept(prefix_len: int, kept: int) -> None:
    steps = state_steps(path_of([[0, 3, 7, 9]]), torch.tensor([prefix_len]), 64)
    assert steps.last.tolist() == [9]
    assert steps.tracked is not None
    assert steps.tracked.tolist() == [kept]


def test_nothing_is_kept_for_a_prefix_cache_that_wants_nothing() -> None:
    steps = state_steps(path_of([[0], [0, 2]]), torch.tensor([63, 63]), None)
    assert steps.last.tolist() == [0, 2]
    assert steps.tracked is None


def test_wrong_lengths_and_intervals_are_refused() -> None:
    with pytest.raises(ValueError, match=r"prefix_lens must be \[B\] = \[1\]"):
        state_steps(path_of([[0]]), torch.tensor([1, 2]), 64)
    with pytest.raises(ValueError, match="interval must be at least 1 token, got 0"):
        state_steps(path_of([[0]]), torch.tensor([1]), 0)


@pytest.mark.parametrize("interval", [2 * MAX_PATH_LEN - 1, 2 * MAX_PATH_LEN])
def test_two_paths_in_a_row_keep_one_state_if_the_interval_is_two_paths(interval: int) -> None:
    """A request's last round and the one that is in flight behind it have one slot for what they keep.

    The answer may end at the last round's first token behind the length that it keeps, and the round in flight begins
    behind its whole path.
    """
    path = path_of([list(range(MAX_PATH_LEN))])

    def keeps(prefix_len: int) -> bool:
        tracked = state_steps(path, torch.tensor([prefix_len]), interval).tracked
        assert tracked is not None
        return int(tracked) != NO_NODE

    both = [start for start in range(interval, 3 * interval) if keeps(start) and keeps(start + MAX_PATH_LEN)]
    assert bool(both) == (interval < 2 * MAX_PATH_LEN)
