"""Record what the replay simulator replays: at every position of each answer the tree that would be drafted there.

    python -m benchmarks record_replay [--output FILE.jsonl.gz]

A traced server drafts one tree a round, so a trace has trees only where its own rounds ended, and another budget's
rounds end elsewhere. Here each recorded request has budget 0, so it commits one token a round, while a
companion in the same batch wants all nodes: every request's tree is drafted whole and traced, at each of its positions.
What any narrower tree would have had accepted there is then known exactly.
"""

from __future__ import annotations

import argparse
import gzip
import json
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

from benchmarks.decode import encode
from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.prompts import sample_prompts
from benchmarks.harness.provenance import collect_provenance
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, System, running, with_texts
from benchmarks.stage_times import TraceReader
from ddtree_sglang.engine.stages.request_texts import MOST_REQUESTS
from deploy.local.client import post
from deploy.local.pair import prepare_pair
from deploy.local.server_process import ServerError
from workers.progress import step

COMPANION = "companion"
COMPANION_S = 60.0
"""Its first round is waited for so long."""
KEPT = (
    "round",
    "batch_size",
    "num_nodes",
    "total_ms",
    "request_ids",
    "prefix_lens",
    "node_limits",
    "commit_lens",
    "accept_index",
    "emitted_ids",
    "token_ids",
    "parents",
    "path_probs",
)
"""Fields of a trace's line that a replay reads; values per request are kept of the recorded requests alone."""


class Recorded(Protocol):
    """A server that writes a trace."""

    @property
    def url(self) -> str:
        """Where it listens."""

    @property
    def trace_path(self) -> Path | None:
        """None: it writes none."""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; the defaults take some minutes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--budget", type=int, default=16, help="nodes of the recorded trees (default 16)")
    parser.add_argument("--prompts", type=int, default=8, help="prompts per dataset (default 8)")
    parser.add_argument("--at-once", type=int, default=8, help="recorded requests in a batch (default 8)")
    parser.add_argument(
        "--ngrams",
        action="store_true",
        help=f"trees also know the request's own text, as those of a server that adapts; at most {MOST_REQUESTS - 1} "
        "at once",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/replay-DATE.jsonl.gz")
    return parser.parse_args(argv)


def record_wave(server: Recorded, names: Sequence[str], prompts: Sequence[Sequence[int]], max_new_tokens: int) -> None:
    """Answer some prompts beside a companion that lives as long as they do.

    Raises:
        ServerError: the companion had no round.
    """
    url = server.url
    assert server.trace_path is not None
    rounds = TraceReader(server.trace_path)
    rounds.mark()
    with ThreadPoolExecutor(1) as pool:
        companion = pool.submit(post, url, "/generate", _asked(COMPANION, prompts[0], 8 * max_new_tokens, None))
        # Without it nobody has trees drafted, and a server may take its time for its first request.
        deadline = time.monotonic() + COMPANION_S
        while not any(COMPANION in one["request_ids"] for one in rounds.since_mark()):
            if companion.done() or time.monotonic() > deadline:
                post(url, "/abort_request", {"rid": COMPANION})
                raise ServerError(
                    f"a companion must be served within {COMPANION_S:g} s, got none of its rounds traced."
                )
            time.sleep(0.05)
        body = [_asked(name, ids, max_new_tokens, 0) for name, ids in zip(names, prompts, strict=True)]
        joined = {key: [one[key] for one in body] for key in body[0]}
        try:
            post(url, "/generate", joined)
        finally:
            post(url, "/abort_request", {"rid": COMPANION})
            companion.exception()


def _asked(name: str, ids: Sequence[int], max_new_tokens: int, budget: int | None) -> dict[str, Any]:
    params: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": max_new_tokens, "ignore_eos": budget is None}
    if budget is not None:
        params["custom_params"] = {"ddtree": {"budget": budget}}
    return {"rid": name, "input_ids": list(ids), "sampling_params": params}


def kept_rounds(lines: Iterable[dict[str, Any]], names: frozenset[str], num_nodes: int) -> list[dict[str, Any]]:
    """Rounds with whole trees, cut to what a replay reads and to the recorded requests."""
    found = []
    for line in lines:
        rows = [row for row, name in enumerate(line["request_ids"]) if name in names]
        if not rows or line["num_nodes"] != num_nodes:
            continue
        cut = {key: line[key] for key in KEPT}
        per_request = [key for key in KEPT if isinstance(cut[key], list)]
        cut |= {key: [cut[key][row] for row in rows] for key in per_request} | {"batch_size": len(rows)}
        cut["path_probs"] = [[float(f"{one:.4g}") for one in row] for row in cut["path_probs"]]
        found.append(cut)
    return found


def run(args: argparse.Namespace) -> int:
    """Serve, record, write.

    Raises:
        ServerError: no server knows the texts of so many requests.
    """
    if args.ngrams and args.at_once >= MOST_REQUESTS:
        raise ServerError(
            f"with --ngrams at most {MOST_REQUESTS - 1} requests are recorded at once, got {args.at_once}, as servers "
            f"know the texts of {MOST_REQUESTS} requests and one is a companion; lower --at-once."
        )
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    encoded = encode(sample_prompts(args.datasets, args.prompts, args.seed), pair.model)
    asked = {f"{dataset}-{n}": ids for dataset, prompts in encoded.items() for n, ids in enumerate(prompts)}
    system = System.of_budget(args.budget)
    system = with_texts(system) if args.ngrams else system
    common = Common.from_args(args, args.at_once + 1)
    with running([system], common) as (server,):
        assert server.trace_path is not None
        reader = TraceReader(server.trace_path)
        names = list(asked)
        for first in range(0, len(names), args.at_once):
            some = names[first : first + args.at_once]
            with step(f"recording {some[0]} to {some[-1]}"):
                record_wave(server, some, [asked[name] for name in some], args.max_new_tokens)
        rounds = kept_rounds(reader.since_mark(), frozenset(asked), args.budget + 1)
    output = args.output or new_result("replay", ".jsonl.gz")
    save(rounds, output)
    print(json.dumps({"output": output.name, "requests": len(asked), "rounds": len(rounds)}))
    return 0 if rounds else 1


def save(rounds: Sequence[dict[str, Any]], output: Path) -> None:
    """Lines of a trace, compressed; the first one says of what they are."""
    first = {**rounds[0], "server": collect_provenance()} if rounds else {}
    text = "".join(json.dumps(one) + "\n" for one in ([first, *rounds[1:]] if rounds else []))
    partial = output.with_name(output.name + ".partial")
    partial.write_bytes(gzip.compress(text.encode(), mtime=0))
    partial.replace(output)


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    args = parse_args(argv)
    return exit_status("record_replay", lambda: run(args))
