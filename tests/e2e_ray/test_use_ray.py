"""The stock launcher with `--use-ray`: ranks are actors that know DDTREE, on a machine without a GPU too."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray_client import completed
from server_process import ServerProcess, ServerSpec, free_port
from servers import Pair

BODY = {
    "model": "m",
    "messages": [{"role": "user", "content": "Why is the sky blue?"}],
    "temperature": 0,
    "max_tokens": 24,
    "return_spec_tokens_details": True,
}


def test_stock_launcher_serves_ddtree_from_actors(
    pair: Pair, tmp_path: Path, reference: Callable[..., list[dict[str, Any]]]
) -> None:
    expected = reference([BODY])[0]
    spec = ServerSpec(
        model=pair.model,
        port=free_port(),
        algorithm="DDTREE",
        draft=pair.draft,
        budget=16,
        extra=("--use-ray", "--max-total-tokens", "8192", "--random-seed", "0"),
    )
    with ServerProcess.from_spec("ray", spec, sys.executable, tmp_path / "server.log") as process:
        process.wait_ready()
        answer = completed(spec.url, BODY)
    assert answer["choices"][0]["message"] == expected["choices"][0]["message"]
    verifies = answer["sglext"]["spec_tokens_details"]["spec_verify_ct"]
    assert verifies == expected["sglext"]["spec_tokens_details"]["spec_verify_ct"]
    assert "RankActor" in (tmp_path / "server.log").read_text()
