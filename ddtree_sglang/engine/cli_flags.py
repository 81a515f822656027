"""The `--speculative-ddtree-*` flags: added to SGLang's own parser, translated into its own fields.

SGLang's `ServerArgs` takes no new fields, so a flag either becomes one that exists (the budget is
`speculative_num_draft_tokens - 1`) or travels in `DDTREE_CONFIG` (see `ddtree_sglang.config`). The translation
runs before resolution, because the memory and CUDA-graph rules read the raw arguments.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ddtree_sglang.config import (
    CONFIG_ENV,
    DEFAULT_BUDGET,
    DEFAULT_MEASURE_SECONDS,
    DEFAULT_TRACE_EVERY,
    DEFAULT_TRACE_MIB,
    DEFAULT_VERIFY_TOKENS,
    DDTreeConfig,
    load_config,
)
from ddtree_sglang.engine.spec import ALGORITHM, TREE_TOPK, is_ddtree
from ddtree_sglang.exceptions import DDTreeConfigError

_PREFIX = "speculative_ddtree_"


def add_ddtree_flags(_result: None, parser: argparse.ArgumentParser) -> None:
    """AFTER hook on `ServerArgs.add_cli_args`: SGLang's parser learns our flags."""
    group = parser.add_argument_group("DDTREE speculative decoding (ddtree_sglang)")
    group.add_argument(
        "--speculative-ddtree-budget",
        type=int,
        help=f"Nodes of the draft tree besides the root (default {DEFAULT_BUDGET}). The same as "
        "--speculative-num-draft-tokens minus one.",
    )
    group.add_argument(
        "--speculative-ddtree-top-k",
        type=int,
        help="Candidates per depth. Default: the budget, which never loses a node; less is faster and approximate.",
    )
    group.add_argument(
        "--speculative-ddtree-policy",
        type=str,
        help="How the budget follows the load: fixed; load: less per request the more there are; adaptive: what "
        "measured costs and acceptance say is fastest, down to no draft. Default: adaptive without a GPU, else fixed.",
    )
    group.add_argument(
        "--speculative-ddtree-verify-tokens",
        type=int,
        help=f"With policy load, most nodes of all requests in one verify (default {DEFAULT_VERIFY_TOKENS}).",
    )
    group.add_argument(
        "--speculative-ddtree-measure-seconds",
        type=int,
        help="With policy adaptive, most seconds at start in which rounds are measured that no file knows (default "
        f"{DEFAULT_MEASURE_SECONDS}; 0: none, they are while serving).",
    )
    group.add_argument(
        "--speculative-ddtree-trace",
        type=str,
        help="File that gets one JSON line per round. `ddtree trace FILE` shows it.",
    )
    group.add_argument(
        "--speculative-ddtree-trace-every",
        type=int,
        help=f"With a trace, every how many rounds one is written (default {DEFAULT_TRACE_EVERY}, each). The others "
        "are not timed either.",
    )
    group.add_argument(
        "--speculative-ddtree-trace-mib",
        type=int,
        help=f"With a trace, most MiB of it on disk (default {DEFAULT_TRACE_MIB}): at half of that FILE becomes "
        "FILE.1, in place of an older one.",
    )
    group.add_argument(
        "--speculative-ddtree-check-ranks",
        action="store_const",
        const=True,
        help="Debugging: stop when tensor-parallel ranks build different trees. Slow.",
    )
    group.add_argument(
        "--speculative-ddtree-check-sync",
        action="store_const",
        const=True,
        help="Debugging, NVIDIA GPUs: a decode round that waits for the device ends the server with the place.",
    )
    group.add_argument(
        "--speculative-ddtree-stream-tokens",
        action="store_const",
        const=True,
        help="Deliver streams token by token, as plain decoding does. Default: so where a parser of tool calls or "
        "reasoning reads them, else a round's tokens together.",
    )
    group.add_argument(
        "--speculative-ddtree-ngrams",
        action=argparse.BooleanOptionalAction,
        help="On the CPU platform: rank nodes also by which token followed which in the request's own text. Default: "
        "with policy adaptive, unless the candidates per depth are set or the drafter scores pairs itself.",
    )
    group.add_argument(
        "--speculative-ddtree-untested-engine",
        action="store_const",
        const=True,
        help="Start on a release of SGLang that was not tested, if it has every name that DDTREE relies on.",
    )
    group.add_argument(
        "--speculative-ddtree-config",
        type=str,
        help="JSON file with any of budget, top_k, policy, verify_tokens, measure_seconds, trace, trace_every, "
        "trace_mib, check_ranks, check_sync, stream_tokens, ngrams, untested_engine; flags win over it. Also in the "
        f"environment: {CONFIG_ENV}.",
    )


def translate_ddtree_flags(original: Callable[..., Any], cls: type, args: argparse.Namespace) -> Any:
    """AROUND hook on `ServerArgs.from_cli_args`: our flags become SGLang's fields and `DDTREE_CONFIG`."""
    given = {
        name.removeprefix(_PREFIX): value
        for name, value in vars(args).items()
        if name.startswith(_PREFIX) and value is not None
    }
    if is_ddtree(getattr(args, "speculative_algorithm", None)):
        config = _merge_with_file(given)
        # Also where every knob is at its default: the variable may hold others, and flags win.
        os.environ[CONFIG_ENV] = config.to_json()
        apply_config(args, config)
    elif given:
        raise DDTreeConfigError(
            f"--speculative-ddtree-* belongs to --speculative-algorithm {ALGORITHM}, got "
            f"{getattr(args, 'speculative_algorithm', None)!r}; add the algorithm or remove {sorted(given)}."
        )
    return original(cls, args)


def _merge_with_file(given: dict[str, Any]) -> DDTreeConfig:
    path = given.pop("config", None)
    base = load_config(path) if path is not None else DDTreeConfig.from_env()
    config = replace(base, **given)
    if config.trace is None:
        return config
    # A scheduler process may run in another folder.
    return replace(config, trace=str(Path(config.trace).expanduser().absolute()))


def apply_config(args: Any, config: DDTreeConfig) -> None:
    """Write the tree's size into SGLang's fields of `args` (a namespace, or the stand-in that a plugin gets).

    Raises:
        DDTreeConfigError: the budget and `--speculative-num-draft-tokens` disagree, or the tree flag was taken.
    """
    tokens = args.speculative_num_draft_tokens
    budget = config.budget
    if budget is None:
        budget = DEFAULT_BUDGET if tokens is None else int(tokens) - 1
    elif tokens is not None and int(tokens) != budget + 1:
        raise DDTreeConfigError(
            f"--speculative-num-draft-tokens counts the root and must be the tree budget plus one, got {tokens} with "
            f"--speculative-ddtree-budget {budget}; give only the budget."
        )
    # Validates a budget that came in through --speculative-num-draft-tokens.
    DDTreeConfig(budget=budget)
    if args.speculative_eagle_topk not in (None, TREE_TOPK):
        raise DDTreeConfigError(
            f"--speculative-eagle-topk is not a knob of {ALGORITHM}, got {args.speculative_eagle_topk}; remove it and "
            "use --speculative-ddtree-top-k for the candidates per depth."
        )
    args.speculative_num_draft_tokens = budget + 1
    args.speculative_eagle_topk = TREE_TOPK
