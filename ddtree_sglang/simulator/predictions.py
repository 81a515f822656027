"""One table of predictions: systems against concurrency, as text, as a chart, as JSON."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
from ddtree_sglang.simulator.costs import Costs, known_model
from ddtree_sglang.simulator.defaults import BUDGETS
from ddtree_sglang.simulator.recording import Answer
from ddtree_sglang.simulator.replay import Prediction, System, replay
from ddtree_sglang.simulator.systems import Adaptive, Chain, FixedTree, Plain
from ddtree_sglang.viewer.charts import Chart, Line
from ddtree_sglang.viewer.terminal import aligned

ROUNDS, LEAST_REQUEST_ROUNDS = 200, 2000
"""Of a replay: so many, and at least as many as give so many rounds of single requests."""
WARM_UP = 1000
"""Rounds from which the adaptive budget may learn before it counts."""


@dataclass(frozen=True)
class Scene:
    """What is replayed, at which costs."""

    answers: Sequence[Answer]
    costs: Costs
    block_size: int
    budgets: Sequence[int] = BUDGETS
    most: int = max(BUDGETS)
    """Of the adaptive budget."""
    on_device: bool = True

    def __post_init__(self) -> None:
        widest = min(answer.widest for answer in self.answers)
        most = max(*self.budgets, self.most)
        if most >= widest:
            raise ValueError(
                f"trees must not be wider than the {widest} nodes of the narrowest round that drafted, got a budget of "
                f"{most}; record wider ones, all of one width, or leave it out"
            )

    @property
    def prefixes(self) -> list[int]:
        """Committed lengths at which answers begin and end."""
        return [answer.start for answer in self.answers] + [answer.end for answer in self.answers]

    def systems(self, concurrency: int) -> list[Callable[[], System]]:
        """Makers of each system, anew for each concurrency."""
        prefixes = self.prefixes
        widths = BudgetPolicy.adaptive(self.most + 1, any_width=not self.on_device).node_counts

        def adaptive() -> System:
            span = (min(prefixes), sum(prefixes) / len(prefixes), max(prefixes))
            model = known_model(self.costs, [concurrency], span, widths)
            return Adaptive(widths, model, on_device=self.on_device)

        trees: list[Callable[[], System]] = [lambda budget=budget: FixedTree(budget) for budget in self.budgets]  # type: ignore[misc]
        return [Plain, lambda: Chain(self.block_size), *trees, adaptive]

    def predict(self, concurrencies: Sequence[int]) -> list[Prediction]:
        """All systems at all concurrencies."""
        found = []
        for concurrency in concurrencies:
            rounds = max(ROUNDS, LEAST_REQUEST_ROUNDS // concurrency)
            for system in (make() for make in self.systems(concurrency)):
                if system.name == Adaptive.name:
                    replay(self.answers, system, self.costs, concurrency, WARM_UP)
                found.append(replay(self.answers, system, self.costs, concurrency, rounds))
        return found


def rows_of(predictions: Sequence[Prediction]) -> list[list[str]]:
    """A line for each concurrency, tokens per second by system, the head first; in brackets the ratio to plain."""
    names = list(dict.fromkeys(one.system for one in predictions))
    rates = {(one.system, one.concurrency): one.tokens_per_s for one in predictions}
    rows = [["requests", *names]]
    for concurrency in dict.fromkeys(one.concurrency for one in predictions):
        plain = rates.get(("plain", concurrency))
        cells = []
        for name in names:
            rate = rates[name, concurrency]
            cells.append(f"{rate:,.0f} ({rate / plain:.2f})" if plain else f"{rate:,.0f}")
        rows.append([str(concurrency), *cells])
    return rows


def terminal(predictions: Sequence[Prediction], guessed: Sequence[str] = ()) -> str:
    """The table, what the adaptive budget chose, what the record could not tell, and what costs were `guessed`."""
    lines = ["predicted tokens per second of all requests, and times plain decoding", *aligned(rows_of(predictions))]
    chosen = [one for one in predictions if one.system == "adaptive"]
    if chosen:
        nodes = ", ".join(f"{one.mean_nodes:.1f} at {one.concurrency}" for one in chosen)
        lines += ["", f"adaptive verified nodes of each request: {nodes}"]
    return "\n".join([*lines, *remarks(predictions), *guessed]) + "\n"


def remarks(predictions: Sequence[Prediction]) -> list[str]:
    """What the record did not hold."""
    rounds = sum(one.request_rounds for one in predictions) or 1
    found = []
    if stand_ins := sum(one.stand_ins for one in predictions) / rounds:
        found.append(f"at {stand_ins:.1%} of the positions another tree of the same answer stood in")
    chains = [one for one in predictions if one.system == "chain"]
    beyond = sum(one.beyond for one in chains) / max(sum(one.request_rounds for one in chains), 1)
    if beyond:
        found.append(
            f"{beyond:.1%} of the chain's rounds ran past what was recorded, so that it may be a little faster"
        )
    return found


def chart(predictions: Sequence[Prediction], title: str) -> Chart:
    """Times plain decoding, by concurrency."""
    plain = {one.concurrency: one.tokens_per_s for one in predictions if one.system == "plain"}
    names = list(dict.fromkeys(one.system for one in predictions))
    lines = tuple(
        Line(
            name,
            tuple(
                (float(one.concurrency), one.tokens_per_s / plain[one.concurrency])
                for one in predictions
                if one.system == name
            ),
            dashed=name == "plain",
        )
        for name in names
    )
    ticks = tuple(float(concurrency) for concurrency in plain)
    return Chart(title, "requests at once", "times plain decoding", lines, log_x=True, x_ticks=ticks)


def to_json(one: Prediction) -> dict[str, Any]:
    """A JSON-ready record."""
    return {
        "system": one.system,
        "concurrency": one.concurrency,
        "tokens_per_s": round(one.tokens_per_s, 2),
        "accept_length": round(one.accept_length, 4),
        "mean_nodes": round(one.mean_nodes, 2),
        "stand_ins": round(one.stand_ins / one.request_rounds, 4),
        "beyond": round(one.beyond / one.request_rounds, 4),
    }
