"""How many nodes a round verifies: always the configured number, or fewer when many requests share the forward.

A node costs almost nothing while the forward waits for memory. Once the forward is bound by arithmetic, its time grows
with the nodes of all requests together, so the rule limits their sum. It reads the batch size alone, so tensor-parallel
ranks agree without a message. Paper, section 5: the budget is the knob between acceptance and verify cost.
"""

from __future__ import annotations

from dataclasses import dataclass

from ddtree_sglang.config import DEFAULT_VERIFY_TOKENS, DDTreeConfig

BUDGET_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128)
"""What a round may choose from below the configured budget; 0 is plain decoding, without a draft."""
FINE_STEPS = (3, 5, 6, 10, 12, 14, 20, 24, 28, 40, 48, 56, 80, 96, 112)
"""Between them, where a width needs nothing of its own."""


@dataclass(frozen=True, slots=True)
class BudgetPolicy:
    """Chooses N per round.

    Attributes:
        node_counts: N (root included) of the rounds that may occur, ascending; the last is the configured one.
        verify_tokens: most nodes of a batch, or None: as many as the requests want.
    """

    node_counts: tuple[int, ...]
    verify_tokens: int | None

    @classmethod
    def fixed(cls, num_nodes: int, *, any_width: bool = False) -> BudgetPolicy:
        """Every round verifies `num_nodes` a request; with `any_width` fewer where none of its requests wants as many.

        A width of its own costs memory and start-up time where forwards are captured, and nothing elsewhere.
        """
        return cls((*_steps_below(num_nodes), num_nodes) if any_width else (num_nodes,), None)

    @classmethod
    def by_load(cls, num_nodes: int, verify_tokens: int) -> BudgetPolicy:
        """At most `num_nodes` a request and, if even one node each is not too many, `verify_tokens` in all."""
        return cls((*_steps_below(num_nodes), num_nodes), verify_tokens)

    def num_nodes(self, batch_size: int, most_wanted: int | None = None) -> int:
        """N of a round of `batch_size` requests, of which none wants more than `most_wanted`; 1: nothing is drafted."""
        wanted = [count for count in self.node_counts if most_wanted is None or count < most_wanted]
        enough = self.node_counts[min(len(wanted), len(self.node_counts) - 1)]
        if self.verify_tokens is None:
            return enough
        fitting = [count for count in self.node_counts if count * batch_size <= self.verify_tokens]
        return min(enough, fitting[-1] if fitting else self.node_counts[0])

    @classmethod
    def adaptive(cls, num_nodes: int, *, any_width: bool = False) -> BudgetPolicy:
        """The widths that `stages.adaptive_budget` chooses from; with `any_width` more of them."""
        steps = sorted({*BUDGET_STEPS, *(FINE_STEPS if any_width else ())})
        return cls((*(step + 1 for step in steps if step + 1 < num_nodes), num_nodes), None)


def _steps_below(num_nodes: int) -> tuple[int, ...]:
    return tuple(step + 1 for step in BUDGET_STEPS if step + 1 < num_nodes)


def make_policy(config: DDTreeConfig, num_nodes: int, *, any_width: bool = False) -> BudgetPolicy:
    """The policy that the configuration names, for trees of at most `num_nodes`.

    Args:
        config: with its policy chosen (`engine.admission.default_policy`).
        any_width: a forward of another number of nodes needs nothing of its own, as on the CPU platform.

    Raises:
        ValueError: no policy is chosen yet.
    """
    if config.policy is None:
        raise ValueError("a configuration must name its policy here, got none; choose one by its server.")
    if config.policy == "fixed":
        return BudgetPolicy.fixed(num_nodes, any_width=any_width)
    if config.policy == "adaptive":
        return BudgetPolicy.adaptive(num_nodes, any_width=any_width)
    return BudgetPolicy.by_load(num_nodes, config.verify_tokens or DEFAULT_VERIFY_TOKENS)
