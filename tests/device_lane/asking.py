"""Servers of the lane, forked from one process that has imported the engine, and questions to them."""

from __future__ import annotations

import itertools
import json
import os
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deploy.local.client import events, flush_cache, post
from deploy.local.server_process import ServerProcess, ServerSpec, free_port
from tests.device_lane.pairs import TinyPair
from tests.device_lane.references import Asked
from tests.device_lane.registration import environment
from tests.preloaded.client import ENGINE, Preloaded

MODULES = (
    *ENGINE,
    "sglang.srt.layers.attention.triton_backend",
    "sglang.srt.speculative.dflash_worker_v2",
    "tests.device_lane.launch",
)
"""What a lane server imports, so that its fork need not."""

STRICT_ACCOUNTING = {
    # Every iteration of the scheduler: all slots accounted for, and no slot with two owners.
    "SGLANG_ENABLE_STRICT_MEM_CHECK_DURING_BUSY": "1",
    "SGLANG_CHECK_KV_PAGE_INVARIANTS": "1",
    "SGLANG_ENABLE_TREE_CACHE_SANITY_CHECK": "1",
}
# Keys that slid out of every window are given back soon, in a lane's short texts too.
WINDOWS = {"SGLANG_SWA_EVICTION_INTERVAL": "2"}
# What tokens were drawn from is sent with the keys, on servers that share requests out.
MASKS = {"SGLANG_ENABLE_DISAGG_SAMPLING_MASK": "1"}
# Products this small are slower on two threads, and much slower where other processes want the second core.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

POOL_TOKENS = 768
CONTEXT_LEN = 128
START_TIMEOUT_S = 300.0
LOADS_AGE_S = 10.0


@dataclass(frozen=True)
class LaneServer:
    """A ready server of the lane."""

    process: ServerProcess
    report: Path

    @property
    def url(self) -> str:
        """Address without a trailing slash."""
        return self.process.url

    def log(self) -> str:
        """Everything that its processes wrote."""
        return self.process.log_path.read_text(encoding="utf-8", errors="replace")

    def ask(self, asked: Asked, after_s: float = 0.0, **body: Any) -> dict[str, Any]:
        """The answer to one request that is sent `after_s` seconds from now."""
        time.sleep(after_s)
        answer: dict[str, Any] = post(self.url, "/generate", {**asked.body(), **body})
        return answer

    def stream(self, asked: Asked, after_s: float = 0.0, **body: Any) -> dict[str, Any]:
        """The last event of a streamed answer, with all of them as `events`."""
        time.sleep(after_s)
        sent = list(events(self.url, "/generate", {**asked.body(), **body, "stream": True}))
        return {**sent[-1], "events": sent}

    def open_session(self, name: str) -> None:
        """A streaming session of this name."""
        post(self.url, "/open_session", {"capacity_of_str_len": 4096, "session_id": name, "streaming": True})

    def close_session(self, name: str) -> None:
        """Give its keys and values back."""
        post(self.url, "/close_session", {"session_id": name})

    def decode_rounds(self) -> list[dict[str, Any]]:
        """What the lane reported of each decode round so far."""
        if not self.report.exists():
            return []
        lines = [json.loads(line) for line in self.report.read_text(encoding="utf-8").splitlines()]
        return [line for line in lines if line["mode"] == "DECODE"]

    def has_decoded(self, rid: str) -> bool:
        """Whether a decode round of any of its ranks has had this request."""
        for file in self.report.parent.glob(f"{self.report.name}*"):
            *lines, _ = file.read_text(encoding="utf-8").split("\n")  # behind the last end a line may be half written
            if any(line["mode"] == "DECODE" and rid in line["rids"] for line in map(json.loads, lines)):
                return True
        return False

    def used_slots(self) -> int:
        """Slots of the KV pool that are taken once the prefix cache is empty; fails on a server that is not idle.

        Under DP attention each group says so when it next looks, which is soon.
        """
        flush_cache(self.url)
        until = time.monotonic() + LOADS_AGE_S
        while True:
            used = sum(int(one["num_used_tokens"]) for one in get(self.url, "/v1/loads")["loads"])
            if used == 0 or time.monotonic() > until:
                return used
            time.sleep(0.2)


def get(url: str, path: str) -> dict[str, Any]:
    """JSON of a GET."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url + path, timeout=60) as response:
        return dict(json.loads(response.read()))


@dataclass(frozen=True)
class Lane:
    """Starts servers of the lane as forks of one process that has imported the engine."""

    preloaded: Preloaded
    environment: Mapping[str, str]
    folder: Path
    _count: Iterator[int] = field(default_factory=itertools.count)

    def new_log(self, *names: str) -> Path:
        """A log in a folder of its own."""
        folder = self.folder / "-".join([str(next(self._count)), *filter(None, names)])
        folder.mkdir()
        return folder / "server.log"

    @contextmanager
    def serve(
        self,
        pair: TinyPair,
        backend: str,
        algorithm: str | None = "DDTREE",
        budget: int | None = None,
        *extra: str,
        log: Path,
        mutation: str = "",
        late: bool = False,
        captured: Sequence[int] = (1, 2, 4),
    ) -> Iterator[LaneServer]:
        """A server that is ready, and stopped in the end; `captured` are the batch sizes of its graphs."""
        report = log.with_name("report.jsonl")
        lane = ["--lane-report", str(report)]
        lane += ["--lane-mutation", mutation] if mutation else []
        lane += ["--lane-late"] if late else []
        flags = ["--attention-backend", backend, "--random-seed", "0", "--skip-server-warmup"]
        flags += ["--max-total-tokens", str(POOL_TOKENS), "--context-length", str(CONTEXT_LEN)]
        flags += ["--disable-prefill-cuda-graph"]
        flags += ["--cuda-graph-bs-decode", *map(str, captured)] if captured else ["--disable-decode-cuda-graph"]
        spec = ServerSpec(
            model=pair.model,
            port=free_port(),
            algorithm=algorithm,
            draft=pair.draft if algorithm else None,
            budget=budget,
            extra=(*flags, *extra),
        )
        command = ["python", "-m", "tests.device_lane.launch", *lane, *spec.command("python")[4:]]
        process = ServerProcess("lane", command, spec.url, log, dict(self.environment))
        process.starter = self.preloaded.start
        process.start()
        try:
            process.wait_ready(START_TIMEOUT_S)
            yield LaneServer(process, report)
        finally:
            process.stop(grace_s=0.0)


@contextmanager
def open_lane(folder: Path) -> Iterator[Lane]:
    """Begin to import the engine; the first server waits for that."""
    values = {**environment(folder / "distribution"), **STRICT_ACCOUNTING, **WINDOWS, **MASKS, **ONE_THREAD}
    values["PYTHONPATH"] = os.pathsep.join(filter(None, [values["PYTHONPATH"], os.environ.get("PYTHONPATH")]))
    servers = folder / "servers"
    servers.mkdir()
    with Preloaded(folder / "preloaded.log", MODULES, values) as preloaded:
        yield Lane(preloaded, values, servers)
