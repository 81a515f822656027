"""What clients notice when workers die or hang during streamed answers: six faults, ten rounds each, real actors.

    python -m benchmarks faults [--model M --draft D] [--rounds 10] [--faults prefill ...] [--output FILE.jsonl]

Starts a Ray of its own with two replicas and breaks the one that is answering; once both are ready again, the same
prompt is answered undisturbed. A token is lost or repeated if text or usage differ from the undisturbed answer's.
Prints a table; a JSON line per round goes to the results folder. With the --output of a run that was broken off, the
rounds that it holds are not run again.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from benchmarks.harness.flags import end_on_sigterm
from benchmarks.harness.provenance import REPO, collect_provenance
from deploy.local.rank_processes import busy_rank, group, owner
from deploy.local.ray_client import Streamed, stream, wait_until_ready
from deploy.local.server_process import free_port
from workers.cluster.local import prepare_environment
from workers.progress import say, step

# Before anything imports Ray.
prepare_environment()

NUM_TOKENS = 48
AT_CHUNK = 10
SHORT = "Write a Python function that reverses a list."
# Long enough that a kill half a second after it was sent falls into its prefill.
LONG = "Summarize this text. " + "The quick brown fox jumps over the lazy dog near the old river bank. " * 60


class Fault(NamedTuple):
    """`strike` breaks what belongs to a rank, by process id: after `at_chunk` chunks, or in prefill if that is None."""

    name: str
    prompt: str
    at_chunk: int | None
    strike: Callable[[int], None]


@dataclass(frozen=True)
class Round:
    """One broken answer.

    Attributes:
        chunks_before: chunks of text that the client had when the fault came; none is a fault in prefill.
        finished: the client got a finish reason and no error.
        same_text, same_usage: as the undisturbed answer's.
        silence_s: longest wait for a chunk.
        unready_s: from the fault until `/health` counted one replica.
        ready_s: from the fault until it counted two again.
    """

    fault: str
    number: int
    chunks_before: int
    finished: bool
    same_text: bool
    same_usage: bool
    errors: list[str]
    silence_s: float
    unready_s: float
    ready_s: float


def kill_rank(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def kill_replica(pid: int) -> None:
    owner(psutil.Process(pid)).kill()


def kill_container(pid: int) -> None:
    """Everything at once, as the kernel does to a container that is out of memory (memory.oom.group)."""
    for process in group(psutil.Process(pid)):
        process.kill()


def stop_rank(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


FAULTS = (
    Fault("rank killed, decode", SHORT, AT_CHUNK, kill_rank),
    Fault("rank killed, prefill", LONG, None, kill_rank),
    Fault("replica killed, decode", SHORT, AT_CHUNK, kill_replica),
    Fault("replica killed, prefill", LONG, None, kill_replica),
    Fault("rank hangs (SIGSTOP), decode", SHORT, AT_CHUNK, stop_rank),
    Fault("out of memory (whole group killed), decode", SHORT, AT_CHUNK, kill_container),
)


def ask(url: str, prompt: str, at_chunk: Callable[[int], None] | None = None) -> tuple[Streamed, float]:
    """A streamed answer, and the longest wait for a chunk of it in seconds."""
    times = [time.monotonic()]

    def note(num_chunks: int) -> None:
        times.append(time.monotonic())
        if at_chunk is not None:
            at_chunk(num_chunks)

    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": NUM_TOKENS}
    answer = stream(f"{url}/v1/chat/completions", body, note)
    return answer, max(later - earlier for earlier, later in pairwise(times))


def one_round(url: str, fault: Fault, number: int) -> Round:
    """Break one answer, wait until both replicas are ready, and ask for that answer again, undisturbed."""
    struck: list[float] = []
    chunks_before = 0
    # Its beginning is in no replica's prefix cache: not from another round, not from another fault of this one.
    prompt = f"{number} {fault.name}. {fault.prompt}"

    unready: list[float] = []

    def watch() -> None:
        wait_until_ready(url, 1, 120)
        unready.append(time.monotonic() - struck[0])

    watcher = threading.Thread(target=watch)

    def strike() -> None:
        fault.strike(busy_rank().pid)
        struck.append(time.monotonic())
        watcher.start()

    def at_chunk(num_chunks: int) -> None:
        nonlocal chunks_before
        chunks_before = chunks_before if struck else num_chunks
        if fault.at_chunk is not None and num_chunks >= fault.at_chunk and not struck:
            strike()

    # Finding the busy rank takes the rest of the half second.
    timer = threading.Timer(0.1, strike)
    if fault.at_chunk is None:
        timer.start()
    errors: list[str] = []
    try:
        answer, silence_s = ask(url, prompt, at_chunk)
        errors = [str(error) for error in answer.errors]
    except OSError as error:
        answer, silence_s, errors = Streamed(), 0.0, [str(error)]
    timer.cancel()
    if not struck:
        raise RuntimeError(f"{fault.name}: the answer was complete before the fault; ask for more tokens.")
    watcher.join()
    wait_until_ready(url, 2, 900)
    ready_s = time.monotonic() - struck[0]
    undisturbed = ask(url, prompt)[0]
    return Round(
        fault.name,
        number,
        chunks_before,
        finished=bool(answer.finish_reasons) and not errors,
        same_text=answer.text == undisturbed.text,
        same_usage=answer.usage == undisturbed.usage,
        errors=errors,
        silence_s=round(silence_s, 2),
        unready_s=round(unready[0], 2),
        ready_s=round(ready_s, 1),
    )


def table(rounds: Sequence[Round]) -> str:
    """One row per fault; of what was measured, median (largest)."""
    rows = [
        "| fault | rounds | finished | failed | answers with tokens lost or repeated | chunks before the fault "
        "| longest silence s | readiness drops after s | ready again s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for fault in dict.fromkeys(one.fault for one in rounds):
        mine = [one for one in rounds if one.fault == fault]
        finished = sum(one.finished for one in mine)
        wrong = sum(one.finished and not (one.same_text and one.same_usage) for one in mine)
        names = ("chunks_before", "silence_s", "unready_s", "ready_s")
        times = ([getattr(one, name) for one in mine] for name in names)
        cells = [str(count) for count in (len(mine), finished, len(mine) - finished, wrong)]
        cells += [f"{statistics.median(values):.1f} ({max(values):.1f})" for values in times]
        rows.append(f"| {fault} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def rounds_of(path: Path) -> list[Round]:
    """The rounds that an output file holds; each run that added to it began with a line of provenance."""
    records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return [Round(**record) for record in records if "provenance" not in record]


def start(args: argparse.Namespace) -> str:
    """Cluster and replicas; the URL of the ingress."""
    from ray import serve

    from workers.app import build_app
    from workers.cluster.local import start_local_cluster

    start_local_cluster(num_cpus=8)
    port = free_port()
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    config: dict[str, Any] = {
        "model": args.model,
        "draft": args.draft,
        "served_model_name": "m",
        "dtype": "float32",
        "ddtree": {"budget": 16, "policy": "fixed"},
        "engine_args": {"max_total_tokens": 8192},
        "min_replicas": 2,
        "max_replicas": 2,
        "max_running_requests": 4,
        "health_check_timeout_s": args.health_check_timeout_s,
        "stall_timeout_s": args.stall_timeout_s,
        "restart_budget": 1000,
        # Faults come one after another here; the wait that grows with them is not what is measured.
        "restart_window_s": 60.0,
    }
    serve.run(build_app(config), name="faults", route_prefix="/faults")
    return f"http://127.0.0.1:{port}/faults"


def stop() -> None:
    """End the replicas, then the cluster."""
    import ray
    from ray import serve

    serve.shutdown()
    ray.shutdown()


def run(args: argparse.Namespace) -> list[Round]:
    """Run the rounds that the output file does not hold yet, and write each when it is over; returns all of them."""
    chosen = [fault for fault in FAULTS if not args.faults or any(word in fault.name for word in args.faults)]
    with step("starting a Ray and two replicas"):
        url = start(args)
        wait_until_ready(url, 2, 900)
    rounds = rounds_of(args.output)
    done = {(one.fault, one.number) for one in rounds}
    # By number first: a run that is broken off has seen all faults about as often.
    missing = [(n, fault) for n in range(args.rounds) for fault in chosen if (fault.name, n) not in done]
    with args.output.open("a") as output:
        output.write(json.dumps({"provenance": collect_provenance(), "tokens": NUM_TOKENS}) + "\n")
        for place, (number, fault) in enumerate(missing, 1):
            with step(f"round {place} of {len(missing)}: {fault.name}"):
                rounds.append(one_round(url, fault, number))
            output.write(json.dumps(asdict(rounds[-1])) + "\n")
            output.flush()
            say(str(rounds[-1]))
    return rounds


def main(argv: Sequence[str]) -> int:
    """All rounds; exit status 1 if an answer failed or differs, 130 after Ctrl-C or SIGTERM."""
    args = parse_args(argv)
    end_on_sigterm()
    try:
        rounds = run(args)
    except KeyboardInterrupt:
        return 130
    finally:
        stop()
    say(table(rounds))
    args.output.with_suffix(".md").write_text(table(rounds) + "\n")
    return int(any(not (one.finished and one.same_text and one.same_usage) for one in rounds))


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model")
    parser.add_argument("--draft")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--faults", nargs="*", help="words that the names of the faults to run contain")
    parser.add_argument("--health-check-timeout-s", type=float, default=30.0)
    parser.add_argument("--stall-timeout-s", type=float, default=15.0)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    parser.add_argument("--output", type=Path, default=REPO / f"benchmarks/results/faults-{stamp}.jsonl")
    args = parser.parse_args(argv)
    if args.model is None:
        from ddtree_sglang.demo.drafter import shipped_drafter
        from ddtree_sglang.demo.prepare import prepare_model

        args.model, args.draft = str(prepare_model()), str(shipped_drafter())
    return args
