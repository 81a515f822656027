"""Flags and exit statuses that the benchmarks with real servers have in common."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from benchmarks.harness.prompts import DATASETS, SOURCES, PromptsMissingError
from ddtree_sglang.config import DEFAULT_BUDGET
from ddtree_sglang.exceptions import DDTreeError
from deploy.local.client import TIMEOUT_S, ClientError
from deploy.local.pair import PairError
from deploy.local.server_process import ServerError

FIXABLE = (ClientError, ServerError, PairError, PromptsMissingError, DDTreeError, ValueError)
"""What a user can do something about; the message alone tells what."""


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Model pair, prompts, and what every server gets."""
    parser.add_argument("--model", help="target model folder (default: the embedded one)")
    parser.add_argument("--draft", help="DFlash drafter folder (default: the one that ships)")
    parser.add_argument("--datasets", nargs="+", default=list(SOURCES), choices=list(DATASETS))
    parser.add_argument("--data-folder", type=Path, help="folder with files of the paper's data sets, see the README")
    parser.add_argument("--no-thinking", action="store_true", help="tell the chat template not to think (Qwen3)")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-total-tokens", type=int, default=8192, help="KV pool of each server")
    parser.add_argument("--server-flag", action="append", default=[], help="further flag for every server")
    parser.add_argument("--server-logs", type=Path, help="folder of the servers' logs (default: below .cache)")
    parser.add_argument("--start-timeout", type=float, help="seconds that a server may take to start (default: 1800)")
    parser.add_argument(
        "--client-timeout",
        type=float,
        default=TIMEOUT_S,
        help=f"seconds without a byte from a server after which a request has failed (default {TIMEOUT_S:.0f})",
    )


def add_adaptive_flag(parser: argparse.ArgumentParser) -> None:
    """The column of the policy that is the default without a GPU; comparisons have it unless told otherwise."""
    parser.add_argument(
        "--adaptive",
        type=int,
        default=DEFAULT_BUDGET,
        metavar="BUDGET",
        help=f"policy adaptive, at most so many nodes (default {DEFAULT_BUDGET}; 0: leave that column out)",
    )


def exit_status(name: str, run: Callable[[], int], failed: int = 1) -> int:
    """What `run` returns; `failed` for what a user can fix, with one line on stderr; 130 after Ctrl-C or SIGTERM."""
    end_on_sigterm()
    try:
        return run()
    except FIXABLE as error:
        print(f"{name}: {error}", file=sys.stderr)
        return failed
    except KeyboardInterrupt:
        return 130


def end_on_sigterm() -> None:
    """Make a SIGTERM, as `timeout` sends one, end the run as Ctrl-C does: servers are stopped, results stay."""

    def interrupt(_signum: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
