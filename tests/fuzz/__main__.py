"""The command: `python -m tests.fuzz`, see the package's first lines."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.local.server_process import ServerProcess, ServerSpec, free_port, start_command
from tests.fuzz.cases import make_case
from tests.fuzz.run import Report, fuzz, settle, what_is_served
from tests.fuzz.sending import fetch, send


@contextmanager
def served(options: argparse.Namespace) -> Iterator[str]:
    """The address of the server that is asked, which is started if none was named."""
    if options.url:
        yield options.url
        return
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    spec = ServerSpec(
        model=options.model,
        port=free_port(),
        algorithm="DDTREE" if options.draft else None,
        draft=options.draft,
        budget=8 if options.draft else None,
        # A seed then makes the same rounds.
        policy="fixed" if options.draft else None,
        # Answers that may be long are over soon.
        extra=("--max-total-tokens", "8192", "--context-length", "512", "--random-seed", "0", *options.flags),
    )
    process = ServerProcess.from_spec("fuzzed", spec, sys.executable, folder / "server.log")
    process.starter = start_command
    process.start()
    try:
        process.wait_ready()
        sys.stdout.write(f"log: {folder / 'server.log'}\n")
        yield spec.url
    finally:
        process.stop(grace_s=0.0)


def main(arguments: list[str]) -> int:
    """Run, print what was found; 1 if something must not be."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--url", help="a server that runs")
    parser.add_argument("--model", help="else: what to serve")
    parser.add_argument("--draft", help="its drafter, for DDTREE")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first request")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="begin no further hundred requests after this time")
    parser.add_argument("--at-once", type=int, default=16)
    parser.add_argument("--valid-share", type=float, default=0.2)
    parser.add_argument("--adapters", nargs="*", default=(), help="names of adapters that the server has loaded")
    parser.add_argument("--only", type=int, help="send the request of this number and print its answer")
    parser.add_argument("--output", type=Path, help="append each hundred as a line of JSON")
    parser.add_argument("flags", nargs="*", help="further flags of the server, after --; with --url, what to note")
    options = parser.parse_args(arguments)
    with served(options) as url:
        if options.only is not None:
            served_there = what_is_served(url, options.adapters)
            case = make_case(options.seed, options.only, served_there, options.valid_share)
            sys.stdout.write(f"{case.described()}\n{case.body.decode()}\n{send(url, case)}\n")
            return 0
        return _run(url, options)


def _run(url: str, options: argparse.Namespace) -> int:
    begun, failed = time.monotonic(), False
    algorithm = fetch(url, "/server_info")["speculative_algorithm"]
    last = options.first + options.requests
    for first in range(options.first, last, 100):
        if options.seconds and time.monotonic() - begun > options.seconds:
            break
        numbers = range(first, min(first + 100, last))
        report = fuzz(url, options.seed, numbers, options.at_once, options.valid_share, adapters=options.adapters)
        settle(url, report)
        _tell(report, numbers, algorithm, options)
        failed = failed or bool(report.failures)
        if any("refused" in failure for failure in report.failures):
            break
    else:
        failed = _empty(url) or failed
    sys.stdout.write(json.dumps({"failed": failed}) + "\n")
    return int(failed)


def _tell(report: Report, numbers: range, algorithm: str | None, options: argparse.Namespace) -> None:
    sys.stdout.write(f"-- {numbers.start} to {numbers.stop - 1}\n")
    sys.stdout.write("".join(f"{line}\n" for line in report.lines()))
    sys.stdout.flush()
    if options.output is not None:
        asked = {"seed": options.seed, "first": numbers.start, "valid_share": options.valid_share}
        line = {"bench": "fuzz", "flags": options.flags, "algorithm": algorithm, **asked}
        with options.output.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **report.record()}) + "\n")


def _empty(url: str) -> bool:
    """Whether slots are missing of a pool whose prefix cache was emptied."""
    report = Report()
    settle(url, report, empty_the_cache=True)
    sys.stdout.write("".join(f"{line}\n" for line in report.lines()))
    return bool(report.failures)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
