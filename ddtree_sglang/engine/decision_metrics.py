"""What policy "adaptive" has decided and what came of it, as metrics beside SGLang's own.

Sums since the server's start, by which rates over any time are computed: expected against realised tokens says whether
the drafter is believed rightly, expected against measured seconds whether costs are known.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from ddtree_sglang.engine.gauges import set_gauge
from ddtree_sglang.engine.spec import serves_ddtree

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from ddtree_sglang.engine.round_result import RoundResult
    from ddtree_sglang.engine.stages.round_records import Totals

LEAST_SECONDS = 0.25
"""Between two looks: no scrape misses more than the rounds of so long."""

SUMS = {
    "ddtree_expected_tokens": ("expected_tokens", "Tokens that drafted rounds were expected to emit."),
    "ddtree_realised_tokens": ("tokens", "Tokens that the same rounds emitted."),
    "ddtree_expected_round_seconds": ("expected_seconds", "Seconds that rounds were expected to take."),
    "ddtree_measured_round_seconds": ("seconds", "Seconds that the same rounds took."),
}
ROUNDS = "ddtree_rounds"
NODES = "ddtree_nodes"


def export_decisions(_tokens: list[list[int]], processor: Any, result: RoundResult, _batch: ScheduleBatch) -> None:
    """AFTER hook on `_resolve_spec_v2_tokens`, in each round."""
    if not serves_ddtree() or (collector := processor.metrics_collector) is None:
        return
    totals: Totals | None = processor.model_worker.budget.totals
    if totals is None or not totals.is_due(time.monotonic(), LEAST_SECONDS):
        return
    for name, (field, text) in SUMS.items():
        set_gauge(collector, name, text, float(getattr(totals, field)))
    set_gauge(collector, NODES, "Nodes a request of the newest round, root included.", float(result.num_nodes))
    for decision, count in totals.rounds.items():
        set_gauge(collector, ROUNDS, "Rounds by what was decided.", float(count), decision=decision)
