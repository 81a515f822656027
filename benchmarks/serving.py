"""Open-loop serving by SGLang's own client: plain, stock DFLASH, DDTREE at rates of requests, with TTFT and TPOT.

    .venv/bin/python -m benchmarks serving [--model M --draft D] [--rates 0.25 0.5 1] [--budgets 8]

Requests arrive at random times, whether or not earlier ones are answered (`python -m sglang.bench_serving`, Poisson
arrivals). The systems are up together and take turns; in one turn all get the same prompts at the same times. Tokens
are compared with plain decoding's before anything is timed. Prompts are this project's (`--kind custom`) or random
token ids, which no drafter can foresee. The client's own start is not in its numbers, its work is: it shares the
machine.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.decode import chat_text, count_mismatches, encode
from benchmarks.harness.flags import add_adaptive_flag, add_common_flags, exit_status
from benchmarks.harness.prompts import Prompt, sample_prompts
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.results import new_result, save_lines
from benchmarks.harness.systems import Common, RunningSystem, groups_for, running, servers_that_fit
from benchmarks.serving_report import Turn, result_lines, table
from deploy.local.pair import prepare_pair
from deploy.local.server_process import ServerError, die_with_parent, log_tail
from workers.progress import say, step

CLIENT = "sglang.bench_serving"
AT_ONCE_IN_CHECK = 4


def rate(text: str) -> float:
    """A request rate of the command line; endless rates are no open loop."""
    value = float(text)
    if not math.isfinite(value) or value <= 0:
        raise argparse.ArgumentTypeError(f"a rate must be a number of requests per second above 0, got {text}")
    return value


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags of a run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--kind", choices=("custom", "random-ids"), default="custom", help="of SGLang's data sets")
    parser.add_argument("--rates", type=rate, nargs="+", default=[0.25, 0.5, 1.0], help="requests per second")
    parser.add_argument("--num-prompts", type=int, default=30, help="requests of one turn (default 30)")
    parser.add_argument("--random-input-len", type=int, default=128, help="of --kind random-ids, tokens")
    parser.add_argument("--budgets", type=int, nargs="+", default=[8], help="DDTREE tree budgets")
    add_adaptive_flag(parser)
    parser.add_argument("--repeats", type=int, default=3, help="turns, each with arrivals of its own (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="of prompts and arrivals")
    parser.add_argument("--max-running-requests", type=int, default=32)
    parser.add_argument("--allow-mismatch", action="store_true", help="measure although tokens differ")
    parser.add_argument("--servers-at-once", type=int, help="default: as many as memory holds")
    parser.add_argument("--turn-timeout", type=float, default=3600.0, help="seconds that one turn may take")
    parser.add_argument("--output", type=Path, help="JSONL file (default: benchmarks/results/serving-DATE.jsonl)")
    parser.set_defaults(max_total_tokens=16384)
    args = parser.parse_args(argv)
    args.batch_sizes = [AT_ONCE_IN_CHECK]
    return args


def served_texts(prompts: Sequence[Prompt], model: str, thinking: bool) -> list[str]:
    """The prompts in the model's chat template, as texts that the server gives the same tokens as `encode` does.

    SGLang's client has a template flag of its own, which takes every `bos_token` out of the text: where that token also
    begins a turn (SmolLM2), no turn would have a beginning.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [without_second_bos(chat_text(one, tokenizer, thinking), tokenizer) for one in prompts]


def without_second_bos(text: str, tokenizer: Any) -> str:
    """The text without the first token that the template wrote, if the tokenizer begins every text with it itself."""
    bos = tokenizer.bos_token
    if bos and text.startswith(bos) and tokenizer(text)["input_ids"][:2] == [tokenizer.bos_token_id] * 2:
        return text.removeprefix(bos)
    return text


def write_prompts(texts: Sequence[str], path: Path) -> None:
    """The file of SGLang's `custom` data set; the answer in it is not used, because the length is given."""
    turns = [[{"content": text}, {"content": "The answer is not used."}] for text in texts]
    path.write_text("".join(json.dumps({"conversations": one}) + "\n" for one in turns), encoding="utf-8")


def client_command(
    url: str, model: str, prompts: Path, per_second: float, seed: int, args: argparse.Namespace
) -> list[str]:
    """SGLang's client for one system and turn; everything but the address is the same for all systems."""
    custom = ["--dataset-path", str(prompts), "--sharegpt-output-len", str(args.max_new_tokens)]
    random = ["--random-input-len", str(args.random_input_len), "--random-output-len", str(args.max_new_tokens)]
    random += ["--random-range-ratio", "1.0"]
    return [
        *(sys.executable, "-P", "-m", CLIENT, "--backend", "sglang", "--base-url", url),
        *("--model", model, "--dataset-name", args.kind, "--num-prompts", str(args.num_prompts)),
        *(custom if args.kind == "custom" else random),
        # Behind the client's own warm-up request, whose prompt is one of the measured ones.
        *("--request-rate", str(per_second), "--seed", str(seed), "--disable-tqdm", "--flush-cache"),
    ]


def ask_client(command: Sequence[str], folder: Path, timeout_s: float) -> dict[str, Any]:
    """The client's result record.

    Raises:
        ServerError: it failed, took too long, or wrote none; the message has the end of its output.
    """
    log, output = folder / "client.log", folder / "client.jsonl"
    output.unlink(missing_ok=True)
    with log.open("wb") as stream:
        try:
            status: int | None = subprocess.run(
                [*command, "--output-file", str(output)],
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=timeout_s,
                env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
                preexec_fn=die_with_parent,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = None
    if status != 0 or not output.exists():
        how = f"did not end within {timeout_s:.0f} s" if status is None else f"ended with status {status}"
        raise ServerError(f"{CLIENT} {how}; the end of what it said:\n{log_tail(log)}")
    record: dict[str, Any] = json.loads(output.read_text(encoding="utf-8").splitlines()[-1])
    return record


def measure(systems: Sequence[RunningSystem], prompts: Path, args: argparse.Namespace) -> Iterator[list[Turn]]:
    """A list for each turn: all systems at one rate, with the same prompts and arrivals; the order rotates."""
    for repeat in range(args.repeats):
        for per_second in args.rates:
            turn, measured = repeat % len(systems), []
            for chosen in [*systems[turn:], *systems[:turn]]:
                name = chosen.system.name
                what = f"repeat {repeat + 1}/{args.repeats}, {per_second:g} requests/s, {name}"
                command = client_command(chosen.url, args.model, prompts, per_second, args.seed + repeat, args)
                with step(what):
                    record = ask_client(command, prompts.parent, args.turn_timeout)
                measured.append(Turn(name, per_second, repeat, args.num_prompts, record))
                say(f"{what}: TPOT {record['median_tpot_ms']:.1f} ms, TTFT {record['median_ttft_ms']:.0f} ms")
            yield measured


def run(args: argparse.Namespace) -> int:
    """Start, check, measure, write. 1 when tokens differ or a request failed."""
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    per_dataset = -(-args.num_prompts // len(args.datasets))
    prompts = sample_prompts(args.datasets, per_dataset, args.seed, args.data_folder)[: args.num_prompts]
    encoded = encode(prompts, pair.model, not args.no_thinking)
    settings = {key: portable(value) for key, value in vars(args).items()}
    output = args.output or new_result("serving", ".jsonl")
    lines: list[dict[str, Any]] = []
    with TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.jsonl"
        write_prompts(served_texts(prompts, pair.model, not args.no_thinking), file)
        for group in groups_for(args.budgets, args.servers_at_once or servers_that_fit(), args.adaptive or None):
            provenance = {**collect_provenance(), "settings": settings}
            with running(group, Common.from_args(args, args.max_running_requests), trace=False) as systems:
                mismatches = count_mismatches(systems, encoded, args)
                say(f"prompts whose tokens differ from plain decoding's: {mismatches}")
                if any(mismatches.values()) and not args.allow_mismatch:
                    say("tokens differ: nothing is timed. The benchmark `lossless` shows where.")
                    return 1
                turns: list[Turn] = []
                of_group: list[dict[str, Any]] = []
                for more in measure(systems, file, args):
                    turns += more
                    of_group = result_lines(turns, mismatches, provenance)
                    save_lines([*lines, *of_group], table, output)
            lines += of_group
    say("\n" + table(lines))
    print(json.dumps({"output": output.name, "failed_requests": sum(line["failed"] for line in lines)}))
    return 1 if any(line["failed"] for line in lines) else 0


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("serving", lambda: run(args))
