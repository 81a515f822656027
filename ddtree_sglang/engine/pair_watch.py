"""Warns once of a pair whose drafter is as good as none, after a server's first thousand rounds.

A drafter of another target, or one that was read wrongly, changes no answer: each token is the target's own. It only
costs, so nothing else would tell. Lengths are counted where SGLang has them on the host anyway, after a round's copy;
the device is not asked.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from sglang.srt.runtime_context import get_parallel

from ddtree_sglang.engine.admission.pair_facts import suspicions
from ddtree_sglang.engine.gauges import set_gauge
from ddtree_sglang.engine.request_options import learns
from ddtree_sglang.engine.spec import ALGORITHM, serves_ddtree
from ddtree_sglang.engine.stages.round_ends import node_limit

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req, ScheduleBatch

    from ddtree_sglang.engine.round_result import RoundResult

logger = logging.getLogger(__name__)

ROUNDS, FEW_ROUNDS = 1000, 200
"""Of single requests: a round of a batch of eight is eight. Few where a policy hardly drafts once drafts are in vain: a
drafter that hits once in four is right in 50 of 200, and 10 would be far off."""
LEAST_LENGTH = 1.05
"""Tokens per round, the bonus included, up to which a drafter is as good as none."""
METRIC = "ddtree_suspect_pair"
CAUSES = (
    "a drafter of another target, or of another version of it; a changed chat template or tokenizer; rope parameters, "
    "target layer ids or a mask token other than in training; weights that were quantized or loaded as another type"
)


class PairWatch:
    """Counts the first rounds in which a guess could have hit.

    A request's last round is left out: what ends it there, its limit or an end token, leaves a perfect drafter no more
    than one token, too. So are rounds without a draft, of a policy or of a request that wants none, and those that a
    server asks of itself.
    """

    def __init__(self, found: Sequence[str], num_nodes: int, num_rounds: int = ROUNDS) -> None:
        """`found`: what the configurations tell; `num_nodes`: N of a full tree."""
        self.found = tuple(found)
        self.num_rounds = num_rounds
        self._num_nodes = num_nodes
        self._counted = self._hits = 0
        self._newest: WeakKeyDictionary[Req, int] = WeakKeyDictionary()

    @classmethod
    def of(cls, worker: Any) -> PairWatch:
        """Of a worker whose models are loaded; says at once what their configurations tell."""
        runners = worker.draft_model_runner, worker.model_runner
        found = suspicions(*(runner.model_config.hf_config.to_dict() for runner in runners))
        if get_parallel().tp_rank == 0:
            for one in found:
                logger.warning("%s: drafter and target may not fit each other; %s.", ALGORITHM, one)
        return cls(found, worker.num_nodes, FEW_ROUNDS if worker.config.policy == "adaptive" else ROUNDS)

    @property
    def is_done(self) -> bool:
        """Whether enough was counted; then nothing is counted any more."""
        return self._counted >= self.num_rounds

    @property
    def accept_length(self) -> float:
        """Mean tokens per round of those counted, the bonus included; 1 before the first."""
        return 1 + self._hits / max(self._counted, 1)

    @property
    def is_suspect(self) -> bool:
        """Whether enough was counted and hardly a guess has hit."""
        return self.is_done and self.accept_length <= LEAST_LENGTH

    def count(self, reqs: Sequence[Req], hits: Sequence[int], num_nodes: int) -> None:
        """A round of `num_nodes` a request, on the host: of each request the drafted tokens that were accepted.

        A round of a request counts when its next one comes.
        """
        if num_nodes == 1:
            # The request goes on behind its last draft, and may be over before the next.
            for req in reqs:
                newest = self._newest.pop(req, None)
                # The round may have been launched before the one in which the request ended.
                if not (req.finished() or req.is_retracted):
                    self._count(newest)
            return
        wanted = [node_limit(req, self._num_nodes) for req in reqs]
        for req, nodes, hit in zip(reqs, wanted, hits, strict=True):
            if nodes == 1 or req.is_retracted or req.finished() or not learns(req):
                continue
            self._count(self._newest.get(req))
            self._newest[req] = hit

    def _count(self, hits: int | None) -> None:
        if hits is not None and not self.is_done:
            self._counted += 1
            self._hits += hits

    def message(self) -> str:
        """What the log says of a suspect pair."""
        told = "; ".join(self.found)
        causes = f"The configurations tell: {told}. Else likely: {CAUSES}" if told else f"Likely causes: {CAUSES}"
        return (
            f"{ALGORITHM}: {self.num_rounds} rounds emitted {self.accept_length:.3f} tokens each, so hardly a guess of "
            f"the drafter hits. Answers are right all the same, and slower than without a drafter. {causes}."
        )


def watch_first_rounds(_tokens: list[list[int]], processor: Any, result: RoundResult, batch: ScheduleBatch) -> None:
    """AFTER hook on `_resolve_spec_v2_tokens`, which has a round's accepted lengths on the host."""
    if not serves_ddtree() or processor.model_worker.pair_watch.is_done:
        return
    watch: PairWatch = processor.model_worker.pair_watch
    watch.count(batch.reqs, result.num_correct_drafts_per_req_cpu, result.num_nodes)
    if not watch.is_done:
        return
    if watch.is_suspect and get_parallel().tp_rank == 0:
        logger.warning(watch.message())
    if processor.metrics_collector is not None:
        export(processor.metrics_collector, watch)


def export(collector: Any, watch: PairWatch) -> None:
    """The verdict as a metric with SGLang's labels: 1 for a suspect pair, 0 for one that hits."""
    text = f"1 if the first {watch.num_rounds} rounds emitted at most {LEAST_LENGTH} tokens each."
    set_gauge(collector, METRIC, text, float(watch.is_suspect))
