"""Rounds of a made-up server: which answers run, what each round accepts and takes, round by round.

Only decoding is simulated: a prompt takes no time, and a request that ends is replaced at once (a closed loop). So
rates are upper bounds of what clients see, for every system alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import cycle
from typing import Protocol

from ddtree_sglang.simulator.costs import Costs
from ddtree_sglang.simulator.recording import Answer


class Running:
    """A request in a batch: an answer, and how far it is. The adaptive budget keeps a record of each, as of `Req`."""

    def __init__(self, answer: Answer, position: int) -> None:
        self.answer, self.position = answer, position

    def finished(self) -> bool:
        """Whether its last token is out."""
        return self.position >= self.answer.end


@dataclass
class Round:
    """What a system made of a round: nodes of each request, drafted tokens that each had accepted."""

    num_nodes: int
    accepted: list[int]
    stand_ins: int = 0
    beyond: int = 0


class System(Protocol):
    """Plain decoding, a chain, trees: whatever decides and verifies."""

    @property
    def name(self) -> str:
        """In tables and pictures."""
        ...

    def round(self, running: Sequence[Running]) -> Round:
        """One round of these requests."""
        ...

    def ended(self, spent: float) -> None:
        """The round is over; it took `spent` seconds, and the requests are where it brought them."""
        ...


@dataclass
class Prediction:
    """What a system makes of a load; shares are of requests' rounds."""

    system: str
    concurrency: int
    tokens: int = 0
    seconds: float = 0.0
    request_rounds: int = 0
    stand_ins: int = 0
    beyond: int = 0
    widths: Counter[int] = field(default_factory=Counter)

    @property
    def tokens_per_s(self) -> float:
        """Of all requests together."""
        return self.tokens / self.seconds

    @property
    def accept_length(self) -> float:
        """Tokens of a request and round."""
        return self.tokens / self.request_rounds

    @property
    def mean_nodes(self) -> float:
        """Nodes of a request and round."""
        return sum(width * count for width, count in self.widths.items()) / self.widths.total()


def replay(answers: Sequence[Answer], system: System, costs: Costs, concurrency: int, num_rounds: int) -> Prediction:
    """So many rounds of `concurrency` requests; answers come again and again, in order.

    The first ones begin at different places of their texts, so that they do not all end at once.

    Raises:
        ValueError: no answer, or no request at once.
    """
    if not answers or concurrency < 1:
        raise ValueError(f"a replay needs answers and 1 request or more, got {len(answers)} and {concurrency}")
    coming = cycle(answers)
    running = [staggered(next(coming), index, concurrency) for index in range(concurrency)]
    found = Prediction(system.name, concurrency)
    for _ in range(num_rounds):
        _step(running, system, costs, found)
        running = [one if not one.finished() else begun(coming) for one in running]
    return found


def replay_wave(answers: Sequence[Answer], system: System, costs: Costs) -> Prediction:
    """All answers at once from their beginnings, none replaced, until the last one ends."""
    running = [Running(answer, answer.start) for answer in answers]
    found = Prediction(system.name, len(answers))
    while running:
        _step(running, system, costs, found)
        running = [one for one in running if not one.finished()]
    return found


def _step(running: Sequence[Running], system: System, costs: Costs, found: Prediction) -> None:
    mean_prefix = sum(one.position for one in running) / len(running)
    made = system.round(running)
    spent = costs.seconds(len(running), mean_prefix, made.num_nodes)
    for one, accepted in zip(running, made.accepted, strict=True):
        emitted = min(accepted + 1, one.answer.end - one.position)
        one.position += emitted
        found.tokens += emitted
    found.seconds += spent
    found.request_rounds += len(running)
    found.stand_ins += made.stand_ins
    found.beyond += made.beyond
    found.widths[made.num_nodes] += 1
    system.ended(spent)


def begun(coming: Iterator[Answer]) -> Running:
    """The next answer, at its beginning."""
    answer = next(coming)
    return Running(answer, answer.start)


def staggered(answer: Answer, index: int, concurrency: int) -> Running:
    """The answer of the request at `index`, as far on as spreads so many of them over their texts."""
    return Running(answer, answer.start + (answer.end - answer.start) * index // concurrency)
