"""Policy "adaptive": every round verifies as many nodes as bring the most tokens per second, none if none pays.

Two questions a round. Before the draft: does one pay at all? Its answer is made of what each request's last trees
promised and kept. After the draft, where the tree is at hand on the host: how many of its nodes? On a device the tree
is not at hand, so the first answer names the width, too, and copies of a round's trees are looked at one round later.

Three things are learned while serving: what rounds cost (`core.cost_model`), how much of the drafter's word to believe
(`core.honest_probs`), and by request how much of what was expected came true.

A width is tried that may be better than the best, as little as is known of it, if what the try is thought to lose has
been saved up: a share of all time, EXPLORED, and more when a server begins.

Ranks have clocks of their own. So the first rank of a tensor-parallel target decides, and tells the others each round.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from itertools import compress
from statistics import fmean
from typing import TYPE_CHECKING

import numpy as np

from ddtree_sglang.core import round_loops
from ddtree_sglang.core.cost_model import CostModel, RoundCosts
from ddtree_sglang.core.honest_probs import HonestProbs, NodeClasses, RoundTrees
from ddtree_sglang.core.hope import LEAST_LOSS, OPTIMISM
from ddtree_sglang.core.round_loops import Floats, Ints
from ddtree_sglang.core.second_looks import SOON, SecondLooks
from ddtree_sglang.core.width_choice import drafted_tokens, last_within
from ddtree_sglang.core.width_tries import hopeful_tries
from ddtree_sglang.engine.stages.request_records import ServedRequests
from ddtree_sglang.engine.stages.round_records import (
    Decision,
    Measured,
    Narrowed,
    RoundRecord,
    Totals,
    host_trees,
)
from ddtree_sglang.engine.stages.round_times import LaunchedRound, RoundTimes, TimedRound

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req


EXPLORED = 0.0075
"""Share of the time that may be lost by trying a width that may be better than what seems best."""
FIRST_SAVED, MOST_SAVED = 2.0, 4.0
"""Rounds' time that a server may lose when it begins, and that may be saved up later: half of it for the width that may
be the best, however dear its try, half for those that can be tried meanwhile."""
YOUNG, LOOKS = 64, 4
"""Samples of a row of costs after which one round in so many looks for a width to try, if each was measured more than
once: to look takes time, too."""
LEARNED, LEARNS = 256, 3
"""Drafted rounds after which one in so many teaches how much of the drafter's word to believe, where drafts pay. No
divisor of LOOKS, or all tries might fall on rounds that teach, or none."""
DRAFTED_ANYWAY = 0.003
"""Where no draft pays, share of the time that may be lost by one now and then, to see whether texts have changed."""
FIRST_FOR_DRAFTS = 1.0
"""Plain rounds that a server may lose by them when it begins, as its costs may be from a file that is wrong."""
FIRST_WAIT, LONGEST_WAIT = 8, 64
"""Rounds at least between two such drafts; doubled each time in vain."""
UNMEASURED_LOSS = 0.5
"""Plain rounds that such a draft is thought to lose at most, as long as hardly one was measured, or the last one took
much less than was thought."""
OVERRATED = 1.5
"""By what factor less: another one comes soon, for costs may be from a file that is wrong."""
WIDER = 1.1
"""Such a round has the most nodes that take at most so many times what the best number does: they show more."""
MARGIN = 1.02
"""To change between drafting and not drafting, the other must be better by this factor."""
PAUSE, PAUSE_SECONDS = 20.0, 1.0
"""What takes so many times what was expected, and so many seconds more, is no round alone: once, it is no sample."""


class AdaptiveBudget:
    """Chooses the nodes of each round of one worker; `begin`, `narrow`, `end`, once each and in this order."""

    choose: Callable[[Floats, Floats], int] | None = None
    """Another rule than the most tokens per second, of tokens `[W]` and seconds `[W]`; a benchmark has one."""

    def __init__(
        self,
        widths: Sequence[int],
        costs: CostModel | None = None,
        *,
        lag: int = 0,
        times: RoundTimes | None = None,
        totals: Totals | None = None,
    ) -> None:
        """`widths`: nodes a request, ascending from 1; `lag`: rounds that the host is behind the device; `times`: what
        tells rounds' times, the host's clock for None.
        """
        self.widths = tuple(widths)
        self._width_array: Ints = np.array(self.widths)
        self.costs = costs or CostModel()
        self.probs = HonestProbs()
        self.totals = totals or Totals()
        self.decision = Decision(self.widths[-1], 0.0, 0.0, is_try=False)
        self.measured: Measured | None = None  # of the round whose time the last `begin` learned
        self._lag, self.times = lag, times or RoundTimes(lag)
        self._narrows = self._paused = False
        self._records: deque[tuple[RoundRecord, Narrowed | None, float] | None] = deque()
        self._narrowed: Narrowed | None = None
        self._requests = ServedRequests(self.widths)
        self._saved_for_best = self._saved_for_others = FIRST_SAVED / 2
        self._drafts = True
        self._forced: int | None = None  # width that is to be tried, 0: whichever is best
        self._wait, self._waited, self._for_drafts = FIRST_WAIT, 0, FIRST_FOR_DRAFTS
        self._looks: dict[tuple[int, int], SecondLooks] = {}  # by requests and context
        self._overrated: set[tuple[int, int]] = set()  # the same: where the last draft took much less than was thought
        self._worth = 1.0  # tokens of a request that the round must emit to be worth it
        self._tokens: Floats = np.zeros(len(self.widths))  # of the round by its width, the targets' own included
        self._tree = 1  # the place of the best width that drafts, before the draft
        self._now: tuple[int, float, tuple[int, int]] = 1, 1.0, (1, 0)  # requests, mean prefix, their row of costs
        self._round_costs: RoundCosts  # of the widths that are allowed; asked for when a round begins
        self._num_rounds = self._num_learned = 0

    # -- a round -----------------------------------------------------------------------------------------------------

    def begin(
        self, reqs: Sequence[Req], node_limits: Sequence[int], mean_prefix: float, most_nodes: int, *, narrows: bool
    ) -> int:
        """Nodes a request to draft for, 1 for none; at most `most_nodes`, one of the widths.

        `narrows`: the round's trees will be at hand, and `narrow` asked for what is to be verified of them.
        """
        allowed = self._begin(reqs, node_limits, mean_prefix, most_nodes, narrows=narrows)
        self._saved_for_best = _more(self._saved_for_best, MOST_SAVED)
        self._saved_for_others = _more(self._saved_for_others, MOST_SAVED / 2)
        self.decision = self._choose_before(allowed)
        drafts = self.decision.num_nodes > 1
        # Where the tree can be looked at, it is drafted whole and cut then.
        return allowed[-1] if drafts and self._narrows else self.decision.num_nodes

    def begin_fixed(self, reqs: Sequence[Req], node_limits: Sequence[int], mean_prefix: float, most_nodes: int) -> int:
        """`begin` of a round whose requests want their budget as it is: it is measured, and nothing is chosen."""
        allowed = self._begin(reqs, node_limits, mean_prefix, most_nodes, narrows=False)
        self.decision = self._decide(len(allowed) - 1, is_try=False)
        return allowed[-1]

    def _begin(
        self, reqs: Sequence[Req], node_limits: Sequence[int], mean_prefix: float, most_nodes: int, *, narrows: bool
    ) -> Sequence[int]:
        """Learn of rounds before, look at the requests of this one; the widths that are allowed."""
        self.measured = self._measure()
        self._learn()
        self._num_rounds += 1
        self._narrows, self._narrowed = narrows, None
        allowed = self.widths[: bisect_right(self.widths, most_nodes)]
        self._round_costs = self.costs.of_rounds(len(reqs), mean_prefix, allowed)
        self._now = len(reqs), mean_prefix, self._round_costs.key
        batch = self._requests.batch(reqs, node_limits)
        self._tree = round_loops.expect_round(
            batch.table, self._requests.usual.row, batch.last, self._round_costs.seconds, self._tokens
        )
        return allowed

    def narrow(self, reqs: Sequence[Req], node_limits: Sequence[int], trees: RoundTrees) -> int:
        """Nodes to verify of the trees that were drafted; at least 2, as the draft is paid for.

        Raises:
            ValueError: the trees are not one of each request, or have no width that the round may have.
        """
        shape, batch = trees.parents.shape, self._requests.batch(reqs, node_limits)
        widest = self.widths[len(self._round_costs.seconds) - 1]
        if shape[0] != len(reqs) or not 2 <= shape[1] <= widest:
            # Machine code looks at no bounds.
            raise ValueError(f"trees must be [{len(reqs)}, 2 to {widest}], got {list(shape)}")
        classes, curves = NodeClasses.empty(shape), np.empty((len(reqs), len(self.widths)))
        best = round_loops.look_at_trees(
            *(trees.logprobs, trees.parents, trees.depths, self.probs.base, self.probs.slope),
            *(classes.conditional, classes.cells, classes.parents, self._width_array, curves),
            *(batch.table, self._requests.usual.row, batch.last, self._round_costs.seconds, self._tokens),
        )
        trees.keep_classes(classes)
        self.decision = self._choose_after(best, bisect_right(self.widths, shape[1]))
        self._narrowed = Narrowed(trees, self.decision.num_nodes, curves)
        return self.decision.num_nodes

    def end(self, record: RoundRecord | None, *, counts: bool = True) -> None:
        """The round was launched; `record` of what it drafted, None for nothing that teaches.

        Where it does not count, its time is learned, and the totals are not told.
        """
        # A gain counts for drafts that were made although none pays.
        worth = self._worth if self.decision.is_try else math.inf
        self._records.append(None if record is None else (record, self._narrowed, worth))
        self.times.launched(LaunchedRound(*self._now, self.decision if counts else self.decision._replace(seconds=0.0)))
        if counts:
            self.totals.decided(self.decision)

    @property
    def usual_drafted(self) -> list[float]:
        """Drafted tokens that a request is expected to have accepted by the widths, after what was served lately."""
        usual = self._requests.usual
        return [round(float(one), 4) for one in usual.honesty(1.0) * usual.drafted]

    def interrupt(self) -> None:
        """Something else than a round was run, so the time up to the next one is not a round's."""
        self.times.interrupt()

    # -- what is chosen ----------------------------------------------------------------------------------------------

    def _choose_before(self, allowed: Sequence[int]) -> Decision:
        costs = self._round_costs
        if len(allowed) == 1:
            return self._decide(0, is_try=False)
        tokens, tree = self._tokens, self._tree
        if self.choose is not None:
            tree = 1 + self.choose(tokens[1 : len(allowed)], costs.seconds[1:])
        gain = float(tokens[tree] / tokens[0] * costs.seconds[0] / costs.seconds[tree])
        self._drafts = gain * MARGIN > 1 if self._drafts else gain > MARGIN
        best = tree if self._drafts else 0
        # Where the tree can be looked at, its width is chosen then.
        tried = self._wanted(0, len(allowed), best, only_plain=self._drafts and self._narrows)
        if tried is None and self._drafts and self._looks_of_row.is_time_for_plain(gain):
            tried = 0
        self._forced = None if tried is None else allowed[tried]
        if self._drafts:
            self._wait, self._waited, self._for_drafts = FIRST_WAIT, 0, min(self._for_drafts, FIRST_FOR_DRAFTS)
        elif tried is None:
            widest = 1 + last_within(WIDER, costs.seconds[1:], tree - 1)
            if self._is_time_to_draft(self._loss_of_draft(tokens, costs, widest)):
                tried, self._forced = widest, 0
        return self._decide(best if tried is None else tried, is_try=tried is not None)

    @property
    def _looks_of_row(self) -> SecondLooks:
        if (looks := self._looks.get(self._round_costs.key)) is None:
            looks = self._looks[self._round_costs.key] = SecondLooks()
        return looks

    def _loss_of_draft(self, tokens: Floats, costs: RoundCosts, tree: int) -> float:
        """In plain rounds."""
        loss = float(costs.seconds[tree] / costs.seconds[0] - tokens[tree] / tokens[0])
        is_known = costs.samples[tree] > 1 and costs.key not in self._overrated
        return loss if is_known else min(loss, UNMEASURED_LOSS)

    def _is_time_to_draft(self, loss: float) -> bool:
        """Although it does not pay: texts may have changed."""
        self._waited += 1
        self._for_drafts += DRAFTED_ANYWAY
        if self._waited < self._wait or self._for_drafts < loss:
            return False
        self._wait, self._waited = min(2 * self._wait, LONGEST_WAIT), 0
        self._for_drafts -= max(loss, 0.0)
        return True

    def _choose_after(self, best: int, num_seen: int) -> Decision:
        """Of the first `num_seen` widths, which the trees have, one that drafts."""
        seconds = self._round_costs.seconds
        if self.choose is not None:
            best = 1 + self.choose(self._tokens[1:num_seen], seconds[1:num_seen])
        if self._forced == 0:
            best = 1 + last_within(WIDER, seconds[1:num_seen], best - 1)
        is_forced = self._forced is not None and 1 < self._forced <= self.widths[num_seen - 1]
        tried = self.widths.index(self._forced) if is_forced else self._wanted(1, num_seen, best)
        is_try = self._forced is not None or tried is not None
        return self._decide(best if tried is None else tried, is_try=is_try)

    def _decide(self, place: int, *, is_try: bool) -> Decision:
        """For the width at `place`, by what its rounds are thought to take, unless that is a guess alone."""
        seconds = self._round_costs.seconds
        expected = float(seconds[place])
        self._worth = expected / float(seconds[0])
        if not any(self._round_costs.samples) and self.costs.is_empty:
            expected = 0.0
        return Decision(self.widths[place], float(self._tokens[place]), expected, is_try)

    def _wanted(self, first: int, last: int, best: int, *, only_plain: bool = False) -> int | None:
        """The place of a width that may be above the best, the most hopeful one if what its try loses is saved up; paid
        for. Of the widths from `first` to before `last`.
        """
        costs, tokens = self._round_costs, self._tokens
        if best > 0 and not only_plain:
            look = self._looks_of_row.tree(
                self.widths[:last], tokens, costs.seconds, best, self._num_rounds, self._saved_for_others
            )
            if look is not None:
                self._saved_for_others -= look.loss
                return look.place
        if max(self._saved_for_best, self._saved_for_others) < LEAST_LOSS:
            return None
        if self._num_rounds % LOOKS:
            samples = costs.samples[first:last]
            if sum(samples) > YOUNG and min(samples) >= len(OPTIMISM):
                return None
        limits = MOST_SAVED, self._saved_for_others
        one, other = hopeful_tries(tokens, costs, best, limits, first=first, last=last, only_plain=only_plain)
        if one is not None and one.loss <= self._saved_for_best:
            self._saved_for_best -= one.loss
            return one.place
        if other is None:
            return None
        self._saved_for_others -= other.loss
        return other.place

    # -- what is learned ---------------------------------------------------------------------------------------------

    def _measure(self) -> Measured | None:
        """A round begins: those whose time is known now are samples; the last, unless something else was run since."""
        timed, rested = self.times.begin()
        measured = None
        for one in timed:
            measured = self._took(one) or measured
        if rested is None:
            return measured
        self.costs.rest(rested)
        return None

    def _took(self, timed: TimedRound) -> Measured | None:
        one, seconds = timed.round, timed.seconds
        decision = one.decision
        if decision.seconds and seconds > PAUSE * decision.seconds + PAUSE_SECONDS and not self._paused:
            # Generation was paused, or the machine slept; if the next round is as long, rounds are.
            self._paused = True
            return None
        self._paused = False
        is_far = self.costs.observe(one.batch_size, one.mean_prefix, decision.num_nodes, seconds)
        row = one.row
        if (looks := self._looks.get(row)) is not None:
            facts = decision.num_nodes, seconds, decision.seconds, self.costs.noise
            looks.took(*facts, is_far=is_far, is_try=decision.is_try)
        if decision.seconds:
            self.totals.took(decision.seconds, timed.passed)
            if decision.num_nodes > 1:
                self._compare(row, decision.seconds, seconds)
        return Measured(seconds, decision.seconds, timed.rounds_ago)

    def _compare(self, row: tuple[int, int], expected: float, measured: float) -> None:
        """A drafted round's time with what was expected of it."""
        if measured * OVERRATED > expected:
            self._overrated.discard(row)
            return
        self._overrated.add(row)
        # It lost less than it was charged for.
        self._wait, self._for_drafts = min(self._wait, SOON), max(self._for_drafts, UNMEASURED_LOSS)

    def _learn(self) -> None:
        """Of rounds that the host knows the end of."""
        while len(self._records) > self._lag:
            if (held := self._records.popleft()) is not None:
                self._learn_from(*held)

    def _learn_from(self, record: RoundRecord, narrowed: Narrowed | None, worth: float) -> None:
        path = record.path()
        if narrowed is None:
            narrowed = self._looked_at(record)
        # Where a request ended, its limit or an end token cut the path, not the target's other choice.
        goes_on = [not req.finished() for req in record.reqs]
        kept = [(nodes.index(-1) if nodes[-1] < 0 else len(nodes)) - 1 for nodes in path]
        came = np.array([[drafted, goes, 0.0] for drafted, goes in zip(kept, goes_on, strict=True)])
        batch = self._requests.batch(record.reqs, record.node_limits)
        verified = bisect_right(self.widths, narrowed.num_nodes) - 1
        usual = self._requests.usual.row
        hoped = round_loops.keep_round(batch.table, usual, narrowed.curves, batch.last, verified, came)
        for drafted, goes, expected in came.tolist():
            if goes:
                self.totals.came_true(1 + expected, 1 + drafted)
        self._num_learned += 1
        if self._num_learned <= LEARNED or not self._drafts or self._num_learned % LEARNS == 0:
            limits = np.where(goes_on, record.node_limits, 0)
            counted = np.arange(narrowed.num_nodes) < limits[:, None]
            self.probs.learn(narrowed.trees.first(narrowed.num_nodes), np.array(path), counted)
        if self._drafts or not (going := sum(goes_on)):
            return
        gain = 1 + fmean(compress(kept, goes_on)) - worth
        if gain > 0:
            # It paid. If its trees had promised as much, the next round is drafted, too; else if the gain pays for it.
            more = worth if 1 + hoped / going > worth else gain
            most = max(self._for_drafts, FIRST_FOR_DRAFTS, more)
            self._wait, self._for_drafts = 1, min(self._for_drafts + more, most)

    def _looked_at(self, record: RoundRecord) -> Narrowed:
        """Trees that the host has one round later."""
        if record.tree is None:
            raise ValueError("a round's record must hold its tree unless it was narrowed; give it to RoundRecord.of")
        trees = host_trees(*record.tree)
        num_nodes = trees.parents.shape[1]
        curves = drafted_tokens(self.probs.of_paths(trees), self._width_array)
        batch, seen = self._requests.batch(record.reqs, record.node_limits), bisect_right(self.widths, num_nodes)
        round_loops.follow_round(batch.table, self._requests.usual.row, curves, seen, self._width_array)
        return Narrowed(trees, num_nodes, curves)


def _more(saved: float, most: float) -> float:
    """A round's share of what may be lost is added, up to `most`."""
    return max(saved, min(most, saved + EXPLORED / 2))
