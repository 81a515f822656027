"""Policy "adaptive": every round verifies as many nodes as bring the most tokens per second, none if none pays.

Two questions a round. Before the draft: does one pay at all? Its answer is made of what each request's last trees
promised and kept. After the draft, where the tree is at hand on the host: how many of its nodes? On a device the tree
is not at hand, so the first answer names the width, too, and copies of a round's trees are looked at one round later.

Three things are learned while serving: what rounds cost (`core.cost_model`), how much of the drafter's word to believe
(`core.honest_probs`), and by request how much of what was expected came true. A round takes from its beginning to the
next one's beginning, so the scheduler's own work counts, and no device is asked for the time. Where scheduling
overlaps, the host begins a round when it has the result of the one before the last, so what lies between two beginnings
is the last but one's time.

A server begins with a look at each width. Knowledge ages: a share of all rounds, EXPLORED, tries what is unknown, and
what is next to the best and was not measured for long.

Ranks have clocks of their own. So the first rank of a tensor-parallel target decides, and tells the others each round.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from ddtree_sglang.core.cost_model import KNOWN, CostModel, batch_class
from ddtree_sglang.core.honest_probs import Floats, HonestProbs, RoundTrees
from ddtree_sglang.core.width_choice import best_width, drafted_tokens
from ddtree_sglang.engine.stages.round_records import (
    Decision,
    Narrowed,
    RequestRecord,
    RoundRecord,
    Totals,
    host_trees,
)

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


EXPLORED = 0.015
"""Share of rounds that try something else than what seems best."""
MOST_SAVED = 8.0
"""Tries that may be saved up."""
FIRST_TRIES = 3
"""Of each width, that a server begins with."""
STALE_ROUNDS = 300
"""After so many rounds a measurement is made again."""
FIRST_WAIT, LONGEST_WAIT = 8, 128
"""Rounds without a draft after which one is drafted to see whether texts have changed; doubled each time in vain."""
LOOK_ROUNDS = 16
"""Where nothing was worth a try, rounds until the next look for one."""
FAR_SAMPLES = 2
"""Of a width that is not next to the best; the first may hold what is done once."""
DEAREST_TRY = 4.0
"""Tries that one may cost at most, as what is thought of it may be wrong."""
HOPELESS = 8.0
"""A far width that was never measured and is thought to take so many times the best's time is not tried."""
MARGIN = 1.02
"""To change between drafting and not drafting, the other must be better by this factor."""
MEMORY, LONG_MEMORY = 0.97, 0.995
"""What of a request's record is left after each of its rounds, and of the whole server's."""
NO_HOPE = 0.25
"""Drafted tokens a round that a pair is thought to get before the first tree."""


class AdaptiveBudget:
    """Chooses the nodes of each round of one worker; `begin`, `narrow`, `end`, once each and in this order."""

    def __init__(
        self,
        widths: Sequence[int],
        costs: CostModel | None = None,
        *,
        lag: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """`widths`: nodes a request, ascending from 1; `lag`: rounds that the host is behind the device."""
        self.widths = tuple(widths)
        self.costs = costs or CostModel()
        self.probs = HonestProbs()
        self.totals = Totals()
        self.decision = Decision(self.widths[-1], 0.0, 0.0, is_try=False)
        self._lag, self._clock = lag, clock
        self._narrows = False
        self._records: deque[tuple[RoundRecord, Narrowed | None] | None] = deque()
        self._narrowed: Narrowed | None = None
        self._requests: WeakKeyDictionary[Req, RequestRecord] = WeakKeyDictionary()
        # Before the first tree a pair is thought to be so-so: it is tried, and not for long.
        self._usual = RequestRecord(NO_HOPE * np.log2(np.array(self.widths, dtype=np.float64)))
        self._began: float | None = None
        self._launched: deque[tuple[int, float, Decision]] = deque(maxlen=lag + 1)
        self._saved = float(FIRST_TRIES * len(self.widths))
        self._measured_at: dict[tuple[int, int], int] = {}
        # By requests and widths to choose from: the round from which on a try is looked for.
        self._look_at: dict[tuple[int, int, int], int] = {}
        self._num_rounds = 0
        self._drafts, self._forced = True, False
        self._wait, self._waited = FIRST_WAIT, 0
        self._tokens = np.zeros(len(self.widths))
        self._now: tuple[int, float] = 1, 1.0

    # -- a round -----------------------------------------------------------------------------------------------------

    def begin(
        self, reqs: Sequence[Req], node_limits: Sequence[int], mean_prefix: float, most_nodes: int, *, narrows: bool
    ) -> int:
        """Nodes a request to draft for, 1 for none; at most `most_nodes`, one of the widths.

        `narrows`: the round's trees will be at hand, and `narrow` asked for what is to be verified of them.
        """
        allowed = self._begin(reqs, node_limits, mean_prefix, most_nodes, narrows=narrows)
        self.decision = self._choose_before(allowed)
        drafts = self.decision.num_nodes > 1
        # Where the tree can be looked at, it is drafted whole and cut then.
        return allowed[-1] if drafts and self._narrows else self.decision.num_nodes

    def begin_fixed(self, reqs: Sequence[Req], node_limits: Sequence[int], mean_prefix: float, most_nodes: int) -> int:
        """`begin` of a round whose requests want their budget as it is: it is measured, and nothing is chosen."""
        allowed = self._begin(reqs, node_limits, mean_prefix, most_nodes, narrows=False)
        self.decision = self._decide(len(allowed) - 1, self._seconds(allowed), is_try=False)
        return allowed[-1]

    def _begin(
        self, reqs: Sequence[Req], node_limits: Sequence[int], mean_prefix: float, most_nodes: int, *, narrows: bool
    ) -> list[int]:
        """Learn of rounds before, look at the requests of this one; the widths that are allowed."""
        self._measure()
        self._learn()
        self._narrows, self._narrowed = narrows, None
        self._num_rounds += 1
        self._saved = max(self._saved, min(MOST_SAVED, self._saved + EXPLORED))
        self._now = len(reqs), mean_prefix
        allowed = [width for width in self.widths if width <= most_nodes]
        records = [self._requests.get(req) for req in reqs]
        usual = self._usual_honesty
        curves = [usual * self._usual.drafted if one is None else one.honesty(usual) * one.drafted for one in records]
        self._tokens = len(reqs) + self._within(np.stack(curves), node_limits).sum(0)
        return allowed

    def narrow(self, reqs: Sequence[Req], node_limits: Sequence[int], trees: RoundTrees) -> int:
        """Nodes to verify of the trees that were drafted; at least 2, as the draft is paid for."""
        num_nodes = trees.parents.shape[1]
        curves = drafted_tokens(self.probs.of_paths(trees), self.widths)
        self._follow(reqs, curves, len(self.widths))
        drafted = self._within(curves, node_limits)
        usual = self._usual_honesty
        honesty = np.array([self._requests[req].honesty(usual) for req in reqs])
        self._tokens = len(reqs) + honesty @ drafted
        self.decision = self._choose_after([width for width in self.widths if 1 < width <= num_nodes])
        self._narrowed = trees.first(self.decision.num_nodes), drafted
        return self.decision.num_nodes

    def _within(self, curves: Floats, node_limits: Sequence[int]) -> Floats:
        """`[B, W]`: what `curves` say of widths, no further than each request's own limit."""
        last = np.searchsorted(self.widths, node_limits, side="right") - 1
        return np.take_along_axis(curves, np.minimum(np.arange(len(self.widths)), last[:, None]), 1)

    def end(self, record: RoundRecord | None) -> None:
        """The round was launched; `record` of what it drafted, None for nothing."""
        self._records.append(None if record is None else (record, self._narrowed))
        self._launched.append((*self._now, self.decision))
        self.totals.decided(self.decision)

    @property
    def usual_drafted(self) -> list[float]:
        """Drafted tokens that a request is expected to have accepted by the widths, after what was served lately."""
        return [round(float(one), 4) for one in self._usual_honesty * self._usual.drafted]

    def interrupt(self) -> None:
        """Something else than a round was run, so the time up to the next one is not a round's."""
        self._began = None
        self._launched.clear()

    # -- what is chosen ----------------------------------------------------------------------------------------------

    def _choose_before(self, allowed: Sequence[int]) -> Decision:
        seconds = self._seconds(allowed)
        tokens = self._tokens[: len(allowed)]
        if len(allowed) == 1:
            return self._decide(0, seconds, is_try=False)
        tree = 1 + best_width(tokens[1:], seconds[1:])
        gain = tokens[tree] / seconds[tree] / (tokens[0] / seconds[0])
        self._drafts = bool(gain > (1 / MARGIN if self._drafts else MARGIN))
        if self._drafts:
            self._wait, self._waited = FIRST_WAIT, 0
            # Where the tree can be looked at, its width is chosen then.
            tried = self._wanted(allowed, tree, [0] if self._narrows else range(len(allowed)), seconds)
        else:
            tried = self._wanted(allowed, 0, range(1, len(allowed)), seconds) if self._saved > MOST_SAVED else None
            if tried is None:
                # Nothing is left of what a server begins with.
                self._saved = min(self._saved, MOST_SAVED)
                tried = self._peek(tree)
        self._forced = tried is not None
        if tried is None:
            return self._decide(tree if self._drafts else 0, seconds, is_try=False)
        if tried == 0 or not self._narrows:
            self._pay(seconds[tried], seconds[tree if self._drafts else 0])
        return self._decide(tried, seconds, is_try=True)

    def _peek(self, tree: int) -> int | None:
        """`tree`, if it is time to draft again although it does not pay."""
        self._waited += 1
        if self._waited < self._wait:
            return None
        self._wait, self._waited = min(2 * self._wait, LONGEST_WAIT), 0
        return tree

    def _choose_after(self, allowed: Sequence[int]) -> Decision:
        seconds = self._seconds(allowed)
        tokens = self._tokens[1 : 1 + len(allowed)]
        best = best_width(tokens, seconds)
        tried = self._wanted(allowed, best, range(len(allowed)), seconds)
        if tried is not None:
            self._pay(seconds[tried], seconds[best])
        chosen = best if tried is None else tried
        expected = float(seconds[chosen]) if self.costs.cells else 0.0
        is_try = self._forced or tried is not None
        return Decision(allowed[chosen], float(tokens[chosen]), expected, is_try)

    def _decide(self, index: int, seconds: Floats, *, is_try: bool) -> Decision:
        expected = float(seconds[index]) if self.costs.cells else 0.0
        return Decision(self.widths[index], float(self._tokens[index]), expected, is_try)

    def _seconds(self, widths: Sequence[int]) -> Floats:
        batch_size, mean_prefix = self._now
        return self.costs.seconds(batch_size, mean_prefix, widths)

    def _wanted(self, allowed: Sequence[int], best: int, among: Sequence[int], seconds: Floats) -> int | None:
        """An index of `allowed`, one of `among` and not `best`, that is worth a measurement, if a try is left.

        Plain decoding and the neighbours of the best are worth several, and new ones when they are old; the others,
        behind what may be a cliff, two, unless they seem hopeless.
        """
        batch_size, mean_prefix = self._now
        look = batch_size, allowed[among[0]], len(among)
        if self._saved < 1.0 or self._num_rounds < self._look_at.get(look, 0):
            return None
        near = {0, best - 1, best + 1}
        for index in sorted(among, key=lambda place: (place not in near, abs(place - best))):
            if index == best:
                continue
            age = self._num_rounds - self._measured_at.get((batch_class(batch_size), allowed[index]), -STALE_ROUNDS)
            samples = self.costs.num_samples(batch_size, mean_prefix, allowed[index])
            if index not in near:
                if samples < FAR_SAMPLES and (samples or seconds[index] < HOPELESS * seconds[best]):
                    return index
            elif samples < KNOWN or age >= STALE_ROUNDS:
                return index
        self._look_at[look] = self._num_rounds + LOOK_ROUNDS
        return None

    def _pay(self, tried: float, best: float) -> None:
        """A try costs as many tries as it is thought to take longer than the best; a server's first ones cost one."""
        self._saved -= 1.0 if self._saved > MOST_SAVED else min(max(1.0, tried / best), DEAREST_TRY)

    # -- what is learned ---------------------------------------------------------------------------------------------

    def _measure(self) -> None:
        """The time since the last round began is a sample, if it was that round's."""
        now = self._clock()
        began, self._began = self._began, now
        if began is None or len(self._launched) <= self._lag:
            return
        batch_size, mean_prefix, decision = self._launched[0]
        self.costs.observe(batch_size, mean_prefix, decision.num_nodes, now - began)
        self._measured_at[batch_class(batch_size), decision.num_nodes] = self._num_rounds
        if decision.seconds:
            self.totals.took(decision.seconds, now - began)

    def _learn(self) -> None:
        """Of rounds that the host knows the end of."""
        while len(self._records) > self._lag:
            if (held := self._records.popleft()) is not None:
                self._learn_from(*held)

    def _learn_from(self, record: RoundRecord, narrowed: Narrowed | None) -> None:
        accept_index, limits = record.path(), np.array(record.node_limits)
        if narrowed is not None:
            trees, drafted = narrowed
        else:
            if record.tree is None:
                raise ValueError(
                    "a round's record must hold its tree unless it was narrowed; give it to RoundRecord.of"
                )
            trees = host_trees(*record.tree)
            curves = drafted_tokens(self.probs.of_paths(trees), self.widths)
            drafted = self._within(curves, record.node_limits)
        seen = sum(width <= trees.parents.shape[1] for width in self.widths)
        if narrowed is None:
            self._follow(record.reqs, curves, seen)
        # Where a request ended, its limit or an end token cut the path, not the target's other choice.
        goes_on = np.array([not req.finished() for req in record.reqs])
        counted = (np.arange(trees.parents.shape[1]) < limits[:, None]) & goes_on[:, None]
        kept, usual = (accept_index > 0).sum(1), self._usual_honesty
        for row, req in enumerate(record.reqs):
            if goes_on[row] and (one := self._requests.get(req)) is not None:
                promised, came = float(drafted[row, seen - 1]), float(kept[row])
                self.totals.came_true(1 + one.honesty(usual) * promised, 1 + came)
                one.keep(promised, came, MEMORY)
                self._usual.keep(promised, came, LONG_MEMORY)
        self.probs.learn(trees, accept_index, counted)

    def _follow(self, reqs: Sequence[Req], drafted: Floats, num_seen: int) -> None:
        for req, row in zip(reqs, drafted, strict=True):
            if (one := self._requests.get(req)) is None:
                one = self._requests[req] = RequestRecord(self._usual.drafted.copy())
            one.follow(row, num_seen)
        self._usual.follow(drafted.mean(0), num_seen)

    @property
    def _usual_honesty(self) -> float:
        return self._usual.honesty(1.0)
