"""Strange requests at the server that the other tests ask: it answers each, the canaries too, and loses no KV slot."""

from __future__ import annotations

from tests.e2e.servers import Server
from tests.fuzz.cases import BY_DESIGN, LASTING
from tests.fuzz.run import fuzz, settle

SEED = 20261126
NUM_REQUESTS = 100


def test_strange_requests_leave_a_server_as_it_was(ddtree: Server) -> None:
    """Without what lasts: the tests after this one ask the same server."""
    report = fuzz(ddtree.url, SEED, range(NUM_REQUESTS), leave_out={*LASTING, *BY_DESIGN})
    settle(ddtree.url, report)
    settle(ddtree.url, report, empty_the_cache=True)
    assert report.failures == []
    assert report.valid > NUM_REQUESTS // 10
    assert report.canaries > len(report.statuses) // 10
