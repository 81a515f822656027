"""Checks of a GPU server that are no measurement: no round waits for the device, graphs equal eager.

    python benchmarks/gpu_checks.py no-sync        [--model M --draft D] [--server-flag=...]
    python benchmarks/gpu_checks.py graph-equality [--model M --draft D] [--server-flag=...]
    python benchmarks/gpu_checks.py width-equality [--model M --draft D] [--server-flag=...]

`no-sync`: overlap scheduling on, CUDA told to raise wherever a decode round waits for the device; the server must
answer. `graph-equality`: the same prompts with CUDA graphs and without; tokens must be equal. `width-equality`: the
same with the budget fixed and with policy load, which uses other widths, and none at eight requests.
The last line of stdout is one JSON object; exit status 1 when the check fails.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench_decode import encode
from client import Batch, generate_batch
from flags import add_common_flags
from prompts import sample_prompts
from server import REPO, Common, System, running

sys.path.insert(0, str(REPO / "deploy"))
from environment import SetupError
from progress import say
from serve_demo import prepare_pair
from server_process import ServerError

CONCURRENCY = (1, 8)


def answers(args: argparse.Namespace, ids: list[list[int]], *extra: str) -> list[Batch]:
    """What a DDTREE server with further flags answers, at each concurrency."""
    common = Common.from_args(args, max(CONCURRENCY), *extra)
    with running([System(f"ddtree-{args.budget}", "DDTREE", args.budget)], common, trace=False) as (server,):
        return [generate_batch(server.url, ids, args.max_new_tokens, at_once) for at_once in CONCURRENCY]


def tokens(batches: Sequence[Batch]) -> list[list[tuple[int, ...]]]:
    """Token ids per concurrency and prompt."""
    return [[one.output_ids for one in batch.generations] for batch in batches]


def no_sync(args: argparse.Namespace, ids: list[list[int]]) -> dict[str, object]:
    """A wait for the device inside a round would have ended the server, and with it the requests."""
    batches = answers(args, ids, "--speculative-ddtree-check-sync")
    rounds = sum(one.num_rounds for batch in batches for one in batch.generations)
    return {"check": "no-sync", "passed": rounds > 0, "rounds": rounds}


def equality(args: argparse.Namespace, ids: list[list[int]], *other: str) -> dict[str, object]:
    """The same prompts with further flags and without must give the same tokens."""
    usual, changed = tokens(answers(args, ids)), tokens(answers(args, ids, *other))
    pairs = [pair for both in zip(usual, changed, strict=True) for pair in zip(*both, strict=True)]
    different = sum(left != right for left, right in pairs)
    return {"check": args.check, "passed": different == 0, "compared": len(pairs), "different": different}


EQUAL_WITH = {
    "graph-equality": ("--disable-cuda-graph",),
    "width-equality": ("--speculative-ddtree-policy", "load", "--speculative-ddtree-verify-tokens", "15"),
}


def main(argv: Sequence[str]) -> int:
    """Run one check; what a user can fix is one line on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("check", choices=("no-sync", *EQUAL_WITH))
    add_common_flags(parser)
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=8, help="prompts per dataset")
    args = parser.parse_args(argv)
    try:
        pair = prepare_pair(Path(sys.executable), args)
        args.model, args.draft = pair.model, pair.draft
        encoded = encode(sample_prompts(args.datasets, args.prompts, 0), pair.model)
        ids = [one for dataset in encoded.values() for one in dataset]
        verdict = no_sync(args, ids) if args.check == "no-sync" else equality(args, ids, *EQUAL_WITH[args.check])
    except (ServerError, SetupError, ValueError, OSError, RuntimeError) as error:
        print(f"gpu_checks: {error}", file=sys.stderr)
        verdict = {"check": args.check, "passed": False, "error": str(error)[:300]}
    say(json.dumps(verdict))
    print(json.dumps(verdict))
    return 0 if verdict["passed"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
