"""Are answers under a JSON schema or penalties plain decoding's, token for token? A hundred requests of each kind.

    .venv/bin/python -m benchmarks request_suites [--suites grammars penalties] [--cases 100] [--budget 16]
    .venv/bin/python -m benchmarks request_suites --urls http://PLAIN:1 http://DDTREE:2     servers that run already

Every request is sent to a plain server and to a DDTREE server, greedy. An answer is equal when its tokens are. Where
two answers part at a token that the plain server found as probable as its own choice, penalties and mask included,
it is a near tie. Answers to schemas are checked with `jsonschema`. Exit status 1 when one is invalid or unequal.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.flags import add_common_flags, exit_status
from benchmarks.harness.provenance import collect_provenance, portable
from benchmarks.harness.request_cases import RequestCase, grammar_cases, penalty_cases, spread
from benchmarks.harness.results import new_result
from benchmarks.harness.systems import Common, System, running
from ddtree_sglang.core.acceptance_stats import accept_length
from ddtree_sglang.whole_file import replace_text
from deploy.local.client import TIMEOUT_S, post
from deploy.local.divergence import NEAR_TIE
from deploy.local.pair import prepare_pair
from workers.progress import say, step

SUITES = ("grammars", "penalties")
SERVER_FLAGS = ("--constrained-json-disable-any-whitespace",)
"""Of both servers: a small model likes blank lines, and a grammar that allows them would never end."""

IN_ONE_ORDER = "benchmarks.harness.penalty_order"
"""Both servers are SGLang's with penalties in one order: else two plain servers differ, too."""

NO_TEXT = "\ufffd"
"""Stands for bytes that are no UTF-8. A model of bytes may write them within a string; then nothing is checked."""


@dataclass(frozen=True)
class Verdict:
    """One request's two answers. `is_valid` is None where nothing was checked.

    `margin`: by how much the plain server preferred its own token where they part, in nats; None where they do not, or
    where the other token was not its second choice.
    """

    name: str
    plain: str
    ddtree: str
    is_equal: bool
    margin: float | None
    is_valid: bool | None
    num_tokens: int
    num_rounds: int

    @property
    def is_near_tie(self) -> bool:
        """True where the answers part at two tokens of the same probability."""
        return self.margin is not None and self.margin <= NEAR_TIE

    @property
    def is_fault(self) -> bool:
        """True for an answer that is invalid, or unequal by more than a near tie."""
        return self.is_valid is False or not (self.is_equal or self.is_near_tie)


@dataclass(frozen=True)
class Outcome:
    """All of one suite."""

    suite: str
    verdicts: tuple[Verdict, ...]

    def count(self, of: Callable[[Verdict], bool]) -> int:
        """How many verdicts are so."""
        return sum(map(of, self.verdicts))

    @property
    def accept_length(self) -> float:
        """Tokens per round over the whole suite."""
        tokens, rounds = (sum(getattr(one, name) for one in self.verdicts) for name in ("num_tokens", "num_rounds"))
        return accept_length(tokens, rounds) or 1.0


def ask(url: str, case: RequestCase, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """One greedy answer of `/generate`, with the two best log-probabilities of each step."""
    answer: dict[str, Any] = post(
        url,
        "/generate",
        {
            "text": case.prompt,
            "sampling_params": {"temperature": 0.0, **case.sampling},
            "return_logprob": True,
            "top_logprobs_num": 2,
        },
        timeout_s,
    )
    return answer


def judge(case: RequestCase, plain: dict[str, Any], ddtree: dict[str, Any]) -> Verdict:
    """Compare two answers."""
    meta = ddtree["meta_info"]
    return Verdict(
        name=case.name,
        plain=plain["text"],
        ddtree=ddtree["text"],
        is_equal=plain["output_ids"] == ddtree["output_ids"] and _end(plain) == _end(ddtree),
        margin=_margin(plain, ddtree),
        is_valid=None if case.check is None or NO_TEXT in ddtree["text"] else case.check(ddtree["text"]),
        num_tokens=int(meta["completion_tokens"]),
        num_rounds=int(meta.get("spec_verify_ct", 0)),
    )


def _end(answer: dict[str, Any]) -> Any:
    return answer["meta_info"]["finish_reason"]


def _margin(plain: dict[str, Any], ddtree: dict[str, Any]) -> float | None:
    """Of the first differing token, when it was plain's second choice."""
    pairs = zip(plain["output_ids"], ddtree["output_ids"], plain["meta_info"]["output_top_logprobs"], strict=False)
    for mine, theirs, top in pairs:
        if mine != theirs:
            return abs(top[0][0] - top[1][0]) if theirs == top[1][1] else None
    return None


def compare(suite: str, cases: Sequence[RequestCase], plain_url: str, ddtree_url: str, at_once: int) -> Outcome:
    """Ask both servers everything, one server after the other."""
    with ThreadPoolExecutor(at_once) as pool:
        plain, ddtree = (list(pool.map(lambda case, url=url: ask(url, case), cases)) for url in (plain_url, ddtree_url))
    return Outcome(suite, tuple(map(judge, cases, plain, ddtree)))


def report(outcomes: Sequence[Outcome]) -> str:
    """Markdown: one row per suite, then every fault."""
    rows = [
        "| suite | requests | equal | near ties | checked | valid | tokens | tokens per round |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in outcomes:
        tokens = sum(verdict.num_tokens for verdict in one.verdicts)
        rows.append(
            f"| {one.suite} | {len(one.verdicts)} | {one.count(lambda v: v.is_equal)} "
            f"| {one.count(lambda v: v.is_near_tie)} | {one.count(lambda v: v.is_valid is not None)} "
            f"| {one.count(lambda v: v.is_valid is True)} | {tokens} | {one.accept_length:.2f} |"
        )
    for one in outcomes:
        for verdict in one.verdicts:
            if verdict.is_fault:
                rows.append(
                    f"\nFAULT: {one.suite}, {verdict.name}, margin {verdict.margin}: plain {verdict.plain!r}, "
                    f"DDTREE {verdict.ddtree!r}"
                )
    return "\n".join(rows)


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; by default all of both suites at budget 16, eight requests at once."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add_common_flags(parser)
    parser.add_argument("--suites", nargs="+", default=list(SUITES), choices=SUITES)
    parser.add_argument("--urls", nargs=2, metavar=("PLAIN", "DDTREE"), help="servers that run already, of any model")
    parser.add_argument(
        "--likely-end",
        default="2:6",
        metavar="TOKEN:BIAS",
        help="the model's end token and a bias that makes it likely; minimum lengths hold it back (default 2:6)",
    )
    parser.add_argument("--cases", type=int, default=1000, help="requests per suite at most (default: all)")
    parser.add_argument("--budget", type=int, default=16)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--output", type=Path, help="JSON file (default: benchmarks/results/request-suites-DATE.json)")
    return parser.parse_args(argv)


def cases_of(suite: str, args: argparse.Namespace) -> list[RequestCase]:
    """The requests that the flags ask for."""
    token, bias = str(args.likely_end).split(":")
    cases = grammar_cases() if suite == "grammars" else penalty_cases(likely_end={token: float(bias)})
    return spread(cases, args.cases)


@contextmanager
def servers(args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    """Addresses of the plain server and the DDTREE server: those that run already, or ones of the embedded pair."""
    if args.urls:
        yield args.urls[0], args.urls[1]
        return
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    args.model, args.draft = pair.model, pair.draft
    common = replace(Common.from_args(args, args.concurrency, *SERVER_FLAGS), module=IN_ONE_ORDER)
    systems = [System("plain", None), System.of_budget(args.budget)]
    with running(systems, common, trace=False) as (plain, ddtree):
        yield plain.url, ddtree.url


def run(args: argparse.Namespace) -> int:
    """All suites; returns the exit status."""
    output = args.output or new_result("request-suites", ".json")
    outcomes: list[Outcome] = []
    with servers(args) as (plain, ddtree):
        for suite in args.suites:
            cases = cases_of(suite, args)
            with step(f"{suite}: {len(cases)} requests"):
                outcomes.append(compare(suite, cases, plain, ddtree, args.concurrency))
            save(outcomes, args, output)
    say(report(outcomes))
    faults = sum(one.count(lambda verdict: verdict.is_fault) for one in outcomes)
    print(json.dumps({"output": output.name, "compared": sum(len(one.verdicts) for one in outcomes), "faults": faults}))
    return 1 if faults else 0


def save(outcomes: Sequence[Outcome], args: argparse.Namespace, output: Path) -> None:
    """JSON and Markdown of the suites so far to the results folder."""
    result = {
        "provenance": collect_provenance(),
        "settings": {key: portable(value) for key, value in vars(args).items()},
        "is_complete": len(outcomes) == len(args.suites),
        "suites": [_record(one) for one in outcomes],
    }
    replace_text(output, json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    replace_text(output.with_suffix(".md"), report(outcomes) + "\n")


def _record(outcome: Outcome) -> dict[str, Any]:
    verdicts = [{**asdict(one), "is_near_tie": one.is_near_tie} for one in outcome.verdicts]
    return {"suite": outcome.suite, "verdicts": verdicts, "accept_length": outcome.accept_length}


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    args = parse_args(argv)
    return exit_status("request_suites", lambda: run(args), failed=2)
