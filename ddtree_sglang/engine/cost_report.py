"""What rounds cost, in the answer of `/server_info`: what `ddtree calibrate` draws."""

from __future__ import annotations

from typing import Any

from ddtree_sglang.cost_batches import KEY
from ddtree_sglang.engine.spec import serves_ddtree


def report_costs(_result: None, controller: Any, state: dict[str, Any]) -> None:
    """AFTER hook on `_add_speculative`: a policy that measures puts its table beside the accept length."""
    if not serves_ddtree():
        return
    costs = controller.scheduler.draft_worker.budget.costs()
    if costs:
        state[KEY] = costs
