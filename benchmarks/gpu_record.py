"""Start the servers of some cases, ask them, and write down what each answered: one JSON file a case.

    python -m benchmarks gpu_record CASE... --out FOLDER [--at-once 4]

A part of `gpu_proof`, which prepares FOLDER (machine, pairs). Nothing is judged here. A server that dies or answers
with an error leaves a record that says so, and the other cases go on. Exit status 0 when every case answered.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from benchmarks.gpu_cases import CASES, Case
from benchmarks.gpu_questions import ask, waves
from benchmarks.harness.flags import end_on_sigterm
from benchmarks.harness.gpu_setting import Setting
from ddtree_sglang.whole_file import replace_text
from deploy.local.client import ClientError, flush_cache, server_info
from deploy.local.server_process import ServerError, ServerProcess, ServerSpec, free_port
from workers.progress import say

# Logged by SGLang at info level (model_executor/model_runner_components/cuda_graph_setup.py).
MARKS = {
    "captured_graphs": re.compile(r"Capture target (verify|decode) CUDA graph begin"),
    "captured_prefill": re.compile(r"Capture target prefill CUDA graph begin"),
}
INFO = ("device", "attention_backend", "disable_overlap_schedule", "version", "tp_size", "mem_fraction_static")
_RUNNING: list[ServerProcess] = []
_ENDING = threading.Event()
MEMORY_MARKS = ("avail mem=", "mem usage=", "KV Cache is allocated", "max_total_num_tokens=")


def server_of(case: Case, setting: Setting, at_once: int) -> ServerProcess:
    """The server of a case, not started; its log is `servers/<case>.log` in the folder of results."""
    model, draft = setting.pair(case.pair)
    spec = ServerSpec(
        model=model,
        port=free_port(),
        algorithm=case.algorithm,
        draft=draft if case.algorithm else None,
        budget=case.budget,
        policy=case.policy if case.algorithm == "DDTREE" else None,
        dtype=case.dtype,
        extra=(*case.server_flags(setting.machine, at_once), *setting.server_flags),
    )
    log = setting.out / "servers" / f"{case.name.replace('/', '-')}.log"
    return ServerProcess.from_spec(case.name, spec, sys.executable, log, **dict(case.environment))


def record(case: Case, setting: Setting, at_once: int) -> dict[str, Any]:
    """Everything that a case says: answers by wave, facts of its server and log, or the error that ended it."""
    found: dict[str, Any] = {"case": case.name, "identity": setting.identity_of(case.pair), "run": setting.run}
    found |= {"provenance": setting.provenance, "waves": {}, "error": ""}
    server, started = server_of(case, setting, at_once), time.monotonic()
    try:
        with server:
            _RUNNING.append(server)
            server.wait_ready(setting.start_timeout_s * (2 if case.dtype == "float32" else 1))
            found["start_s"] = round(time.monotonic() - started, 1)
            info = server_info(server.url, setting.client_timeout_s)
            found["server"] = {name: info.get(name) for name in INFO}
            for asked in case.asked:
                for wave in waves(asked, setting.scale, setting.prompts(case.pair)):
                    flush_cache(server.url)
                    asked_at = time.monotonic()
                    answers = ask(server.url, wave, case.algorithm is None, setting.client_timeout_s)
                    found["waves"][wave.name] = answers
                    say(f"{case.name}: {wave.name} answered in {time.monotonic() - asked_at:.1f} s")
            server.check_alive()
    except (ServerError, ClientError, KeyError, ValueError, OSError) as error:
        found["error"] = f"{type(error).__name__}: {error}"
    found["seconds"] = round(time.monotonic() - started, 1)
    return found | _from_log(server.log_path)


def _from_log(log: Path) -> dict[str, Any]:
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    marks = {name: mark.search(text) is not None for name, mark in MARKS.items()}
    told = [line.strip()[:300] for line in text.splitlines() if any(mark in line for mark in MEMORY_MARKS)]
    return {**marks, "memory_lines": told[-40:]}


def save(case: Case, setting: Setting, at_once: int) -> bool:
    """Record one case into its file; True when the server answered everything."""
    found = record(case, setting, at_once)
    if _ENDING.is_set():  # its server was stopped under it: the next call asks again
        return False
    path = setting.record_path(case.name)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(found) + "\n")
    told = f"failed: {found['error'].splitlines()[0][:200]}" if found["error"] else f"recorded in {found['seconds']} s"
    say(f"{case.name}: {told}")
    return not found["error"]


def main(argv: Sequence[str]) -> int:
    """Record the named cases, some at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("cases", nargs="+", choices=list(CASES), metavar="CASE")
    parser.add_argument("--out", type=Path, required=True, help="folder that gpu_proof prepared")
    parser.add_argument("--at-once", type=int, default=1, help="servers at once (default 1)")
    args = parser.parse_args(argv)
    end_on_sigterm()
    setting = Setting.load(args.out)
    pool = ThreadPoolExecutor(args.at_once)
    try:
        started = [pool.submit(save, CASES[name], setting, args.at_once) for name in args.cases]
        answered = [one.result() for one in started]
        return 0 if all(answered) else 1
    except KeyboardInterrupt:
        # Threads that wait for a server cannot be interrupted.
        _ENDING.set()
        for server in _RUNNING:
            server.stop(grace_s=0.0)
        os._exit(130)
