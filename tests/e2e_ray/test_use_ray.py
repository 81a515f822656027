"""The stock launcher with `--use-ray`: ranks are actors that know DDTREE, on a machine without a GPU too."""

from __future__ import annotations

import sys
from pathlib import Path

from deploy.local.rank_processes import ranks
from deploy.local.ray_client import completed, same_answer
from deploy.local.server_process import ServerProcess, ServerSpec, free_port
from tests.e2e.servers import Pair
from tests.e2e_ray.questions import BODIES, Answers


def test_stock_launcher_serves_ddtree_from_actors(pair: Pair, tmp_path: Path, reference: Answers) -> None:
    spec = ServerSpec(
        model=pair.model,
        port=free_port(),
        algorithm="DDTREE",
        draft=pair.draft,
        budget=16,
        policy="fixed",
        extra=("--use-ray", "--max-total-tokens", "8192", "--random-seed", "0"),
    )
    with ServerProcess.from_spec("ray", spec, sys.executable, tmp_path / "server.log") as process:
        process.wait_ready()
        assert len(ranks()) == 1
        answer = completed(spec.url, {**BODIES[0], "return_spec_tokens_details": True})
    assert same_answer(answer, reference[0])
    assert answer["sglext"]["spec_tokens_details"] == reference[0]["sglext"]["spec_tokens_details"]
