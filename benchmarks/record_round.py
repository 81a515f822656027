"""Record one round of a real server, tree and accepted path, for `python -m benchmarks plot_round` to draw.

Starts a DDTREE server with a trace, asks it one prompt greedily, checks that the trace's tokens are the answer's, and
writes one round as JSON: the one in which the tree gained most tokens over the chain of first choices; among equals
the one that emitted most, then the earliest.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.provenance import collect_provenance
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, System, running
from benchmarks.stage_times import TraceReader
from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.acceptance_stats import accept_length, chain_commit_lens
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.whole_file import replace_text
from deploy.local.client import generate
from deploy.local.pair import prepare_pair
from deploy.local.server_process import ServerError
from deploy.serve_demo import DEFAULT_PROMPT
from workers.progress import step

Decode = Callable[[list[int]], str]


def chain_length(line: dict[str, Any]) -> int:
    """Tokens that the chain of first choices would have emitted in this round of one request, bonus included."""
    token_ids, parents, depths, index, emitted_ids, commit_lens = (
        torch.tensor(line[name])
        for name in ("token_ids", "parents", "depths", "accept_index", "emitted_ids", "commit_lens")
    )
    tree = DraftTree(token_ids, parents, depths, torch.tensor(line["path_probs"]).log())
    bonus = emitted_ids.gather(1, (commit_lens - 1).unsqueeze(1)).squeeze(1)
    return int(chain_commit_lens(tree, AcceptedPath(index, commit_lens - 1, commit_lens, emitted_ids, bonus)))


def mean_per_round(commit_lens: Sequence[int]) -> float | None:
    """Accept length of an answer's rounds to three digits; None without one."""
    length = accept_length(sum(commit_lens), len(commit_lens))
    return None if length is None else round(length, 3)


def choose_round(lines: Sequence[dict[str, Any]]) -> int:
    """Index of the round to draw; the module's docstring has the rule."""
    gains = [line["commit_lens"][0] - chain_length(line) for line in lines]
    return max(range(len(lines)), key=lambda n: (gains[n], lines[n]["commit_lens"][0], -n))


def emitted(line: dict[str, Any]) -> list[int]:
    """Tokens that the round's one request got."""
    return list(line["emitted_ids"][0][: line["commit_lens"][0]])


def round_record(
    lines: Sequence[dict[str, Any]], first_token: int, chosen: int, decode: Decode, prompt: str
) -> dict[str, Any]:
    """What the picture needs of round `chosen`, tokens as text; `lines` are all rounds of one answer.

    `first_token` is the answer's first, which the prefill chose.
    """
    line = lines[chosen]
    before = [first_token, *(token for earlier in lines[:chosen] for token in emitted(earlier))]
    rows = zip(line["token_ids"][0], line["parents"][0], line["path_probs"][0], strict=True)
    return {
        "prompt": prompt,
        "answer_before": decode(before[:-1]),
        "round": chosen + 1,
        "num_rounds": len(lines),
        "answer_accept_length": mean_per_round([one["commit_lens"][0] for one in lines]),
        "answer_chain_accept_length": mean_per_round([chain_length(one) for one in lines]),
        "commit_len": line["commit_lens"][0],
        "chain_commit_len": chain_length(line),
        "path": [node for node in line["accept_index"][0] if node >= 0],
        "bonus_token": decode(emitted(line)[-1:]),
        "nodes": [
            {"token": decode([token]), "parent": parent, "path_prob": prob}
            for node, (token, parent, prob) in enumerate(rows)
            if node == 0 or parent >= 0
        ],
    }


def record(args: argparse.Namespace) -> dict[str, Any]:
    """Serve, ask, choose.

    Raises:
        ServerError: the trace's tokens are not the answer's.
    """
    from transformers import AutoTokenizer

    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    tokenizer = AutoTokenizer.from_pretrained(pair.model)
    chat = [{"role": "user", "content": args.prompt}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    input_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    with running([System.of_budget(args.budget)], Common.from_args(args, 1)) as (server,):
        assert server.trace_path is not None
        trace = TraceReader(server.trace_path)
        trace.mark()
        with step(f"answering {args.prompt!r}"):
            answer = generate(server.url, input_ids, args.max_new_tokens, args.client_timeout)
        lines = trace.since_mark()
    traced = [token for line in lines for token in emitted(line)]
    # The last round may emit more than the answer's limit takes.
    if list(answer.output_ids[1:]) != traced[: len(answer.output_ids) - 1]:
        raise ServerError(f"the trace must hold the answer's tokens, got {traced} for {list(answer.output_ids[1:])}")
    decode: Decode = tokenizer.decode
    return round_record(lines, answer.output_ids[0], choose_round(lines), decode, args.prompt)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """The flags, with the demo's prompt and budget by default."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--prompt", default=DEFAULT_PROMPT, help="default: the demo's")
    parser.add_argument("--budget", type=int, default=8, help="tree nodes besides the root (default 8)")
    parser.add_argument("--output", type=Path, help="default: benchmarks/results/round-<time>.json")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    """Write the record and print its path."""
    output = args.output or new_result("round", ".json")
    found = {**record(args), "provenance": collect_provenance()}
    replace_text(output, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    print(output)
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("record_round", lambda: run(args))
