"""What `deploy/run.sh` does: set up, prepare the model, serve with DDTREE, answer, compare, serve on.

Runs under the system's Python and needs nothing else; the server runs in `.venv`. Exit status: 0 it worked
(also after Ctrl-C once it serves), 1 something failed, 2 a bad flag or a port in use, 130 interrupted before
it served.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from deploy.chat_client import ChatError, stream_chat
from deploy.comparison import Comparison, compare, describe_answer
from deploy.environment import REPO, SERVING_REQUIREMENTS, SetupError, ensure_environment, hide_checkout
from deploy.local.pair import Pair, PairError, has_gpu, prepare_pair
from deploy.local.server_process import ServerError, ServerProcess, ServerSpec, free_port, port_is_free
from workers.progress import say, step

DEFAULT_PORT = 30000
DEFAULT_PROMPT = "Write a short Python function that reverses a string, and explain in one sentence how it works."
LOG_FOLDER = REPO / ".cache/serve"
# With the plain server beside it, each may take this share of a GPU.
SHARED_GPU_FRACTION = "0.35"
# The fastest of 2, 4, 8 and 16 with the shipped drafter, one request at a time on two CPU cores
# (benchmarks/results/decode-20261126T061052Z.md). ddtree_sglang.demo.drafter has the same number; a test compares them.
CPU_BUDGET = 8


class UsageError(Exception):
    """A flag that cannot work here; the message says which and what to do."""


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of `deploy/run.sh`; argparse itself exits with 2 on a bad one."""
    parser = argparse.ArgumentParser(
        prog="bash deploy/run.sh",
        description="Serve a small real model with DDTREE, from a machine that has only Python.",
    )
    parser.add_argument("--once", metavar="PROMPT", help="answer PROMPT, then end instead of serving on")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help=f"port (default {DEFAULT_PORT})")
    parser.add_argument("--model", help="target model folder (default: SmolLM2-135M-Instruct, prepared here)")
    parser.add_argument("--draft", help="DFlash drafter folder for that model (default: the one that ships)")
    parser.add_argument(
        "--budget", type=int, help="draft tree nodes besides the root (default: the plugin's 16; 8 without a GPU)"
    )
    parser.add_argument("--dtype", help="default: float32 without a GPU, bfloat16 with one")
    parser.add_argument("--max-tokens", type=int, default=128, help="length limit of the answer (default 128)")
    parser.add_argument(
        "--baseline",
        action=argparse.BooleanOptionalAction,
        help="measure plain decoding too, in a second server that ends afterwards (default: yes, but no for "
        "a --model of your own on a GPU, where two servers may not fit)",
    )
    return parser.parse_args(argv)


def check_args(args: argparse.Namespace) -> None:
    """Refuse what cannot work before anything is installed or loaded."""
    if not 1 <= args.port <= 65535:
        raise UsageError(f"--port must be between 1 and 65535, got {args.port}.")
    if args.budget is not None and args.budget < 1:
        raise UsageError(f"--budget must be at least 1, got {args.budget}.")
    if args.max_tokens < 1:
        raise UsageError(f"--max-tokens must be at least 1, got {args.max_tokens}.")
    if args.model and not args.draft:
        raise UsageError("--model needs --draft: a drafter is trained for one target and fits no other.")
    for flag, value in (("--model", args.model), ("--draft", args.draft)):
        if value and not (Path(value) / "config.json").is_file():
            raise UsageError(f"{flag} must be a folder with a config.json, got {value}.")
    if not port_is_free(args.host, args.port):
        raise UsageError(f"port {args.port} on {args.host} is in use; stop what listens there or give another --port.")


def serve_and_answer(python: Path, args: argparse.Namespace, pair: Pair) -> None:
    """Start, answer, compare, and serve on until interrupted (not with --once)."""
    gpu = has_gpu()
    dtype = args.dtype or ("bfloat16" if gpu else "float32")
    lossless = dtype == "float32"
    baseline = args.baseline if args.baseline is not None else not (gpu and args.model)
    extra = ("--mem-fraction-static", SHARED_GPU_FRACTION) if gpu and baseline else ()
    plain = ServerSpec(pair.model, free_port(), dtype=dtype, extra=extra)
    budget = args.budget if gpu or args.budget else CPU_BUDGET
    spec = ServerSpec(pair.model, args.port, args.host, "DDTREE", pair.draft, budget, dtype=dtype, extra=extra)
    prompt = args.once or DEFAULT_PROMPT
    server = ServerProcess.from_spec("the DDTREE server", spec, python, LOG_FOLDER / f"ddtree-{args.port}.log")
    with server:
        with step(
            f"starting the DDTREE server ({dtype}; log: {server.log_path.relative_to(REPO)})", server.startup_stage
        ):
            server.wait_ready()
        say(f"\n> {prompt}\n")
        answer = stream_chat(spec.url, [{"role": "user", "content": prompt}], args.max_tokens, _print_piece)
        say(f"\n\n{describe_answer(answer)}")
        if baseline:
            comparison = _compare_with_plain(python, plain, spec, prompt, args.max_tokens)
            say(comparison.report(lossless))
            if lossless and args.once and not comparison.identical:
                raise ServerError("DDTREE's answer is not plain decoding's")
        if args.once is None:
            _serve_on(server, spec)


def _print_piece(piece: str) -> None:
    print(piece, end="", flush=True)


def _compare_with_plain(
    python: Path, plain: ServerSpec, ddtree: ServerSpec, prompt: str, max_tokens: int
) -> Comparison:
    log = LOG_FOLDER / f"plain-{ddtree.port}.log"
    with ServerProcess.from_spec("the plain server", plain, python, log) as server:
        with step("starting a plain server to compare with (same flags, no speculation)", server.startup_stage):
            server.wait_ready()
        with step("measuring both, in turns"):
            return compare(plain.url, ddtree.url, prompt, max_tokens)


def _serve_on(server: ServerProcess, spec: ServerSpec) -> None:
    try:
        say(
            f"\nServing at {spec.url}/v1 until Ctrl-C. Try:\n"
            f"  curl {spec.url}/v1/chat/completions -H 'Content-Type: application/json' \\\n"
            '    -d \'{"model": "default", "messages": [{"role": "user", "content": "Hello!"}]}\''
        )
        while True:
            server.check_alive()
            time.sleep(0.5)
    except KeyboardInterrupt:
        say("\nstopping")


def _terminate(_signum: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(argv: Sequence[str]) -> int:
    """Run the whole demonstration; returns the exit status given in the module's docstring."""
    args = parse_args(argv)
    hide_checkout()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _terminate)
    try:
        check_args(args)
        python = ensure_environment(REPO, [SERVING_REQUIREMENTS])
        serve_and_answer(python, args, prepare_pair(python, args.model, args.draft))
    except UsageError as error:
        return _fail(2, str(error))
    except (SetupError, PairError, ServerError, ChatError) as error:
        return _fail(1, str(error))
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    return 0


def _fail(status: int, message: str) -> int:
    print(f"\nrun.sh: {message}", file=sys.stderr, flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
