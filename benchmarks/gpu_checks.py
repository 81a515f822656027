"""Checks of a GPU server that are no measurement: no round waits for the device, graphs equal eager, widths agree.

    python -m benchmarks gpu_checks no-sync        [--model M --draft D] [--server-flag=...]
    python -m benchmarks gpu_checks graph-equality [--model M --draft D] [--server-flag=...]
    python -m benchmarks gpu_checks width-equality [--model M --draft D] [--server-flag=...]

`no-sync`: CUDA told to raise wherever a decode round waits for the device; the server must answer, and must say that it
ran on CUDA with overlap scheduling. `graph-equality`: the same prompts with CUDA graphs and without, which the servers'
logs must show. `width-equality`: the same prompts with the budget fixed and with policy load, which
verifies fewer nodes and, at eight requests, none. Tokens must be equal, near ties of the target apart (--near-tie),
as in `lossless`. The last line of stdout is one JSON object; exit status 1 when the check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, end_on_sigterm
from benchmarks.harness.prompts import sample_prompts
from benchmarks.harness.systems import Common, System, running
from deploy.local.client import Batch, generate_batch, server_info, target_logprobs
from deploy.local.divergence import NEAR_TIE, Divergence, find_divergence
from deploy.local.pair import PairError, prepare_pair
from deploy.local.server_process import ServerError
from workers.progress import say, step

CONCURRENCY = (1, 8)
# Logged by SGLang at info level (model_executor/model_runner_components/cuda_graph_setup.py).
CAPTURE_MARK = "Capture target verify CUDA graph begin"


@dataclass(frozen=True)
class Answers:
    """What a server answered at each concurrency, what it says of itself, and whether its log shows a capture."""

    batches: list[Batch]
    info: dict[str, Any]
    captured_graphs: bool

    @property
    def tokens(self) -> list[tuple[int, ...]]:
        """Token ids of every prompt at every concurrency, one after the other."""
        return [one.output_ids for batch in self.batches for one in batch.generations]


def answers(args: argparse.Namespace, ids: list[list[int]], *extra: str) -> Answers:
    """What a DDTREE server with further flags answers, at each concurrency."""
    common = Common.from_args(args, max(CONCURRENCY), *extra)
    with running([System(f"ddtree-{args.budget}", "DDTREE", args.budget)], common, trace=False) as (server,):
        batches = []
        for at_once in CONCURRENCY:
            with step(f"{len(ids)} prompts, {at_once} at once"):
                batches.append(generate_batch(server.url, ids, args.max_new_tokens, at_once, args.client_timeout))
        log = server.server.log_path.read_text(encoding="utf-8", errors="replace")
        return Answers(batches, server_info(server.url, args.client_timeout), CAPTURE_MARK in log)


def no_sync(args: argparse.Namespace, ids: list[list[int]]) -> dict[str, object]:
    """A wait for the device inside a round would have ended the server, and with it the requests."""
    found = answers(args, ids, "--speculative-ddtree-check-sync")
    rounds = sum(batch.num_rounds for batch in found.batches)
    # On another device nothing is watched, and without overlap the scheduler waits between rounds anyway.
    device, overlap = found.info.get("device"), found.info.get("disable_overlap_schedule") is False
    passed = rounds > 0 and device == "cuda" and overlap and found.captured_graphs
    of_server = {"device": device, "overlap": overlap, "captured_graphs": found.captured_graphs}
    return {"check": "no-sync", "passed": passed, "rounds": rounds, **of_server}


def equality(args: argparse.Namespace, ids: list[list[int]], *other: str) -> dict[str, object]:
    """Whether a server with further flags and one without give the same tokens for `ids`, near ties apart."""
    usual, changed = answers(args, ids), answers(args, ids, *other)
    pairs = list(zip(ids * len(CONCURRENCY), usual.tokens, changed.tokens, strict=True))
    unequal = [pair for pair in pairs if pair[1] != pair[2]]
    divergences = compare(args, unequal) if unequal else []
    different = [one for one in divergences if not one.is_near_tie]
    for one in divergences:
        kind = "near tie" if one.is_near_tie else "DIFFERENT"
        say(f"{kind}: token {one.position}: {one.plain_token}, {one.other_token}, margin {one.margin}")
    graphs = [usual.captured_graphs, changed.captured_graphs]
    expected = [True, args.check != "graph-equality"]
    verdict = {"check": args.check, "passed": not different and graphs == expected, "compared": len(pairs)}
    near_ties = len(divergences) - len(different)
    return {**verdict, "different": len(different), "near_ties": near_ties, "captured_graphs": graphs}


def compare(
    args: argparse.Namespace, unequal: Sequence[tuple[list[int], tuple[int, ...], tuple[int, ...]]]
) -> list[Divergence]:
    """Where answers part, with the target's margin there, as a plain server gives it, started for this alone."""
    with running([System("plain", None)], Common.from_args(args, 1), trace=False) as (plain,):
        logprobs = partial(target_logprobs, plain.url)
        found = [find_divergence("", ids, left, right, logprobs, args.near_tie) for ids, left, right in unequal]
    return [one for one in found if one is not None]


EQUAL_WITH = {
    "graph-equality": ("--disable-decode-cuda-graph",),
    "width-equality": ("--speculative-ddtree-policy", "load", "--speculative-ddtree-verify-tokens", "15"),
}


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Which check, and its flags."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("check", choices=("no-sync", *EQUAL_WITH))
    add_common_flags(parser)
    parser.add_argument("--budget", type=int, default=16, help="draft tree nodes besides the root (default 16)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per dataset")
    parser.add_argument("--near-tie", type=float, default=NEAR_TIE, help="as in `lossless`; bfloat16 needs about 0.25")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Run one check; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    end_on_sigterm()
    try:
        pair = prepare_pair(Path(sys.executable), args.model, args.draft)
        args.model, args.draft = pair.model, pair.draft
        encoded = encode(sample_prompts(args.datasets, args.prompts, 0), pair.model)
        ids = [one for dataset in encoded.values() for one in dataset]
        verdict = no_sync(args, ids) if args.check == "no-sync" else equality(args, ids, *EQUAL_WITH[args.check])
    except (ServerError, PairError, ValueError, OSError, RuntimeError) as error:
        print(f"gpu_checks: {error}", file=sys.stderr)
        verdict = {"check": args.check, "passed": False, "error": str(error)}
    except KeyboardInterrupt:
        return 130
    say(json.dumps(verdict))
    return 0 if verdict["passed"] else 1
