"""What the records of `gpu_record` prove: tokens, acceptance, the context limit, the law of sampling. Pure comparison.

Every function takes records and returns a `Finding`; it passes only when something was compared. A record of a server
that failed passes nowhere.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.gpu_cases import BLOCK_SIZE, LIMIT_CONTEXT_LEN, Case
from benchmarks.harness.gpu_machine import Machine
from deploy.local.divergence import NEAR_TIE

Record = Mapping[str, Any]
Answer = Mapping[str, Any]

HALF_TIE = 0.25
"""Log-probability that bfloat16 may turn over. Where a mask is ignored, answers differ by more."""
MOST_TIES = 0.5
"""Share of the answers that may part at a tie; beyond it the ties are no accident."""
ACCEPTANCE_TOLERANCE = 0.02
FEWEST_ROUNDS = 40
"""Below it one round more is more than the tolerance."""
LEAST_TINY_ACCEPTANCE = 1.5
"""Tokens a round that the tiny drafter reaches easily, and that one with a garbled context does not."""
STOCK_ROOM = 6
"""Tokens that SGLang itself keeps free at the end of the context, and one for rounding."""


@dataclass(frozen=True)
class Finding:
    """Whether it holds, and the numbers that say so."""

    passed: bool
    reason: str


def all_of(*findings: Finding) -> Finding:
    """Passes when every one does; the reason tells the failing ones first."""
    ordered = sorted(findings, key=lambda one: one.passed)
    return Finding(all(one.passed for one in findings), "; ".join(one.reason for one in ordered if one.reason))


def answered(record: Record) -> Finding:
    """The server started and answered every question."""
    if record["error"]:
        return Finding(False, f"{record['case']}: {' '.join(record['error'].split())[:600]}")
    empty = [one["key"] for wave in record["waves"].values() for one in wave if not one["ids"]]
    if empty or not record["waves"]:
        return Finding(False, f"{record['case']}: no token for {', '.join(empty[:5]) or 'anything'}")
    return Finding(True, "")


def served_as_asked(record: Record, case: Case, machine: Machine) -> Finding:
    """The device, backend, overlap and graphs of the server are those that the case is about."""
    server, wrong = record.get("server", {}), []
    expected: dict[str, str] = {"device": machine.kind}
    if machine.kind == "cuda":
        expected |= {"attention_backend": case.backend}
        graphs = (record["captured_graphs"], record["captured_prefill"])
        if server.get("disable_overlap_schedule") is not (not case.overlap):
            wrong.append(f"overlap scheduling is {'off' if case.overlap else 'on'}")
        if graphs != (case.decode_graphs, case.prefill_graphs):
            wrong.append(
                f"graphs of decode and prefill are {graphs}, {(case.decode_graphs, case.prefill_graphs)} asked"
            )
    wrong += [f"{name} is {server.get(name)}" for name, value in expected.items() if server.get(name) != value]
    return Finding(not wrong, ", ".join(wrong))


def same_tokens(record: Record, plain: Record, tolerance: float) -> Finding:
    """Every greedy answer is plain decoding's, but where the plain server was undecided by at most `tolerance`."""
    expected = _by_key(plain)
    pairs = [(one, expected[one["key"]]) for one in _answers(record) if one["key"] in expected]
    parted = [pair for pair in pairs if tuple(pair[0]["ids"]) != tuple(pair[1]["ids"])]
    wrong = [pair for pair in parted if not _is_tie(_margin(*pair), tolerance)]
    ties = len(parted) - len(wrong)
    passed = bool(pairs) and not wrong and ties <= max(1, MOST_TIES * len(pairs))
    told = f"{len(pairs)} answers, {len(wrong)} different, {ties} near ties"
    return Finding(passed, f"{told}, {_difference(*wrong[0])}" if wrong else told)


def _is_tie(margin: float | None, tolerance: float) -> bool:
    return margin is not None and margin <= tolerance


def _margin(one: Answer, plain: Answer) -> float | None:
    """How much more probable plain's token is where the answers part; None when an answer ended or is far away."""
    position = _parting(one["ids"], plain["ids"])
    if position >= min(len(one["ids"]), len(plain["ids"])) or "top" not in plain:
        return None
    top = {token: value for value, token in plain["top"][position]}
    mine, theirs = top.get(plain["ids"][position]), top.get(one["ids"][position])
    return None if mine is None or theirs is None else abs(mine - theirs)


def _parting(left: Sequence[int], right: Sequence[int]) -> int:
    shared = min(len(left), len(right))
    return next((i for i in range(shared) if left[i] != right[i]), shared)


def _difference(one: Answer, plain: Answer) -> str:
    margin = _margin(one, plain)
    told = "not among its most probable" if margin is None else f"margin {margin:.3f}"
    return f"first {one['key']} at token {_parting(one['ids'], plain['ids'])}, {told}"


def _answers(record: Record) -> list[Answer]:
    return [one for wave in record["waves"].values() for one in wave]


def _by_key(record: Record) -> dict[str, Answer]:
    """One answer a question: the first, which was asked with the fewest beside it."""
    found: dict[str, Answer] = {}
    for one in _answers(record):
        found.setdefault(one["key"], one)
    return found


def acceptance_of(record: Record) -> float:
    """Tokens a round over all answers, bonus included; 1.0 without rounds."""
    tokens = sum(len(one["ids"]) for one in _answers(record))
    rounds = sum(one["rounds"] for one in _answers(record))
    return tokens / rounds if rounds else 1.0


def accepts(record: Record, least: float) -> Finding:
    """The drafter is accepted for at least `least` tokens a round, of rounds that there were."""
    if not any(one["rounds"] for one in _answers(record)):
        return Finding(False, f"{record['case']} counted no round: nothing was verified")
    found = acceptance_of(record)
    told = f"accept length {found:.3f}"
    return Finding(found >= least, told if found >= least else f"{told}, at least {least} expected")


def same_acceptance(records: Sequence[Record], tolerance: float = ACCEPTANCE_TOLERANCE) -> Finding:
    """The same answers took the same number of rounds on every server, within `tolerance`.

    Answers that differ by a tie go other ways afterwards, so only those with equal tokens count. The first record is
    what the others are compared with.
    """
    first, findings = records[0], []
    for other in records[1:]:
        mine, theirs = _rounds_of_equal_answers(first, other)
        ratio = theirs / mine if mine else 0.0
        told = f"{other['case']} takes {ratio:.3f} times the rounds of {first['case']} ({theirs} and {mine})"
        findings.append(Finding(mine >= FEWEST_ROUNDS and abs(ratio - 1) <= tolerance + 1e-9, told))
    return all_of(*findings) if findings else Finding(False, "only one server to compare")


def _rounds_of_equal_answers(left: Record, right: Record) -> tuple[int, int]:
    mine = theirs = 0
    for name, wave in left["waves"].items():
        for one, other in zip(wave, right["waves"].get(name, ()), strict=False):
            if one["key"] == other["key"] and tuple(one["ids"]) == tuple(other["ids"]):
                mine, theirs = mine + one["rounds"], theirs + other["rounds"]
    return mine, theirs


def ends_at_the_limit(record: Record, plain: Record, tolerance: float) -> Finding:
    """Requests run to the end of the context, DDTREE's at most two blocks before plain's; neighbours answer as alone.

    DDTREE keeps room behind the longest request for a round that is under way when it ends.
    """
    expected = _by_key(plain)
    cut, short, ends = {"waves": {}, "case": record["case"]}, [], 0
    for name, wave in record["waves"].items():
        kept = []
        for one in wave:
            if one["key"].startswith("end-"):
                ends += 1
                length = one["prompt_len"] + len(one["ids"])
                if length < LIMIT_CONTEXT_LEN - 2 * BLOCK_SIZE - STOCK_ROOM or one["finish"] != "length":
                    short.append(f"{one['key']} ended with {one['finish']} at {length} of {LIMIT_CONTEXT_LEN}")
                ids = expected[one["key"]]["ids"] if one["key"] in expected else []
                one = {**one, "ids": [*one["ids"], *ids[len(one["ids"]) :]]}
            kept.append(one)
        cut["waves"][name] = kept
    reached = Finding(ends > 0 and not short, short[0] if short else f"{ends} requests ended at the limit")
    return all_of(same_tokens(cut, plain, tolerance), reached)


def same_at_any_batch(record: Record) -> Finding:
    """The same question has the same answer alone and among seven others: what deterministic inference promises."""
    seen: dict[str, tuple[int, ...]] = {}
    different, compared = set(), 0
    for one in _answers(record):
        compared += one["key"] in seen
        if seen.setdefault(one["key"], tuple(one["ids"])) != tuple(one["ids"]):
            different.add(one["key"])
    return Finding(compared > 0 and not different, f"{len(different)} of {compared} differ between batch sizes")


def same_law(record: Record, plain: Record) -> Finding:
    """First tokens of sampled answers follow plain decoding's: chi-square of two samples, cells below five as one.

    It can tell: always answering plain's most frequent continuation must fail.
    """
    mine, theirs = _paths(record), _paths(plain)
    found, allowed = chi_square(mine, theirs)
    best = Counter({theirs.most_common(1)[0][0]: mine.total()}) if theirs else Counter()
    of_best, allowed_best = chi_square(best, theirs)
    told = f"chi-square {found:.1f} of {mine.total()} and {theirs.total()} samples, {allowed:.0f} allowed"
    if not theirs or of_best <= allowed_best:
        return Finding(False, f"{told}; plain decoding's law is too narrow to tell anything")
    return Finding(found <= allowed, told)


def _paths(record: Record) -> Counter[tuple[int, ...]]:
    return Counter(tuple(one["ids"][:3]) for one in _answers(record) if one["key"].startswith("law-"))


def chi_square(left: Counter[tuple[int, ...]], right: Counter[tuple[int, ...]]) -> tuple[float, float]:
    """Statistic of the hypothesis that both counts are samples of one law, and the largest that accident explains.

    Beyond four standard deviations and six, which few degrees of freedom need: with 2 or with 26 of them, chi-square is
    above it in less than 4 of 10,000 samples.
    """
    total = left.total() + right.total()
    if not left.total() or not right.total():
        return float("inf"), 0.0
    share = left.total() / total
    rare_left = rare_right = cells = 0
    statistic = 0.0
    for path in {*left, *right}:
        both = left[path] + right[path]
        if both * min(share, 1 - share) < 5:
            rare_left, rare_right = rare_left + left[path], rare_right + right[path]
        else:
            statistic, cells = statistic + _cell(left[path], right[path], share), cells + 1
    degrees = max(1, cells + bool(rare_left + rare_right) - 1)
    return statistic + _cell(rare_left, rare_right, share), degrees + 4 * math.sqrt(2 * degrees) + 6


def _cell(left: int, right: int, share: float) -> float:
    both = left + right
    if not both:
        return 0.0
    return (left - share * both) ** 2 / (share * both) + (right - (1 - share) * both) ** 2 / ((1 - share) * both)


def greedy_beside_sampled(record: Record, plain: Record, tolerance: float) -> Finding:
    """Greedy requests in a batch with sampled ones answer as plain decoding does."""
    waves = {name: [one for one in wave if not one["key"].startswith("law-")] for name, wave in record["waves"].items()}
    return same_tokens({"waves": waves, "case": record["case"]}, plain, tolerance)


def tolerance_of(case: Case) -> float:
    """What counts as a tie: rounding of the dtype."""
    return NEAR_TIE if case.dtype == "float32" else HALF_TIE
