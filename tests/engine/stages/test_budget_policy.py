"""Nodes per round: fixed, or as many as the whole batch can afford."""

from __future__ import annotations

import pytest

from ddtree_sglang.config import DEFAULT_VERIFY_TOKENS, DDTreeConfig
from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy, make_policy


@pytest.mark.parametrize(
    ("batch_size", "num_nodes"),
    [(1, 17), (2, 9), (3, 9), (4, 5), (6, 5), (7, 3), (10, 3), (11, 2), (16, 2), (17, 1), (32, 1), (33, 1), (500, 1)],
)
def test_load_keeps_the_batch_within_its_nodes_and_the_request_within_its_budget(
    batch_size: int, num_nodes: int
) -> None:
    policy = BudgetPolicy.by_load(17, verify_tokens=32)
    assert policy.num_nodes(batch_size) == num_nodes
    assert num_nodes == 1 or num_nodes * batch_size <= 32


def test_budget_that_is_no_step_is_the_largest_count() -> None:
    policy = BudgetPolicy.by_load(12, verify_tokens=100)
    assert policy.node_counts == (1, 2, 3, 5, 9, 12)
    assert policy.num_nodes(1) == 12


def test_more_requests_never_get_more_nodes_each() -> None:
    policy = BudgetPolicy.by_load(65, verify_tokens=200)
    counts = [policy.num_nodes(batch_size) for batch_size in range(1, 300)]
    assert counts == sorted(counts, reverse=True)
    assert set(counts) == set(policy.node_counts)


def test_configuration_names_the_policy() -> None:
    assert make_policy(DDTreeConfig(policy="fixed"), 17).num_nodes(1000) == 17
    assert make_policy(DDTreeConfig(policy="load"), 17).verify_tokens == DEFAULT_VERIFY_TOKENS
    assert make_policy(DDTreeConfig(policy="load", verify_tokens=40), 17).num_nodes(8) == 5


@pytest.mark.parametrize(("wanted", "num_nodes"), [(1, 1), (2, 2), (4, 5), (9, 9), (10, 17), (17, 17)])
def test_no_more_nodes_are_verified_than_a_request_of_the_batch_wants(wanted: int, num_nodes: int) -> None:
    assert BudgetPolicy.fixed(17, any_width=True).num_nodes(3, wanted) == num_nodes
    assert BudgetPolicy.by_load(17, verify_tokens=1000).num_nodes(3, wanted) == num_nodes


def test_the_load_still_limits_what_requests_want() -> None:
    assert BudgetPolicy.by_load(17, verify_tokens=32).num_nodes(4, 9) == 5
    assert BudgetPolicy.by_load(17, verify_tokens=32).num_nodes(4, 2) == 2


def test_a_policy_of_one_width_keeps_it_whatever_requests_want() -> None:
    """On a GPU another width would need a backend and graphs of its own."""
    assert BudgetPolicy.fixed(17).num_nodes(3, 1) == 17
    assert make_policy(DDTreeConfig(policy="fixed"), 17, any_width=True).num_nodes(3, 1) == 1


def test_a_policy_is_chosen_before_it_is_made() -> None:
    """A server's default hangs on its arguments, which this place does not know."""
    with pytest.raises(ValueError, match="must name its policy"):
        make_policy(DDTreeConfig(), 17)
