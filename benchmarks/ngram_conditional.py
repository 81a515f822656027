"""Does a conditional that needs no training pay: the drafter's marginals mixed with the request's own n-grams?

    .venv/bin/python -m benchmarks ngram_conditional [--prompts 20] [--work FOLDER] [--output FILE.jsonl]

Offline: the target's greedy answers are stored, blocks are drafted at each of their positions, and rounds are walked as
`ddtree_sglang.training evaluate` walks them. Trees of positions and trees of pairs have equal nodes; the text that
counts are taken of ends at the root. Constants are fitted on every other prompt of each set and scored on the rest, and
the other way round, so that each prompt is scored with constants of others. No clock is read but for the last line, the
cost of a round's table on the host. What a run computed is kept in `--work`.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness.drafted_answers import DraftedAnswer, drafted_answers
from benchmarks.harness.flags import exit_status
from benchmarks.harness.prompts import DATASETS, HELD_OUT_KINDS, SOURCES, sample_prompts
from benchmarks.harness.provenance import REPO, collect_provenance, portable
from benchmarks.harness.request_ngrams import Bonus, lookup
from benchmarks.harness.results import Lines, new_result, save_lines
from ddtree_sglang.core import DraftTree, build_draft_tree, count_rounds, walk_tree
from ddtree_sglang.core.request_ngrams import LAW, Ints, Mixture, PairTable, RequestText, pair_table
from ddtree_sglang.training.score.evaluation import DraftScore
from deploy.local.pair import prepare_pair
from workers.progress import say, step

BUDGETS = (4, 8, 16, 32, 64)
FIT_BUDGETS = (4, 8, 16)
FIT_STRIDE = 6
"""Of an answer's positions every sixth is fitted on."""
CANDIDATES = 16
"""K of a table of pairs, as the shipped selector has. Trees of positions have as many candidates as nodes."""
TIMED_CANDIDATES, TIMED_NODES = (8, CANDIDATES), (8, 16)
LONGEST_SUFFIX, REPEATED = 16, 8
POSITIONS, LOOKUP, EITHER = "positions", "lookup", "lookup or positions"
STRENGTHS = (float("inf"), 64.0, 16.0, 4.0, 1.0, 0.25, 0.0625)
FACTORS = (1.0, 0.25, 4.0, float("inf"))
"""Of equally good values the first is taken: the one that says the least."""

Accepted = dict[int, list[Ints]]
"""Nodes -> of each answer `[A]` drafted tokens that a round at each anchor has accepted."""


@dataclass(frozen=True)
class Variant:
    """A kind of law: constants that are fitted one after the other, each over its values, from those of `base` on."""

    base: str | None
    start: Mixture
    grid: tuple[tuple[str, tuple[float, ...]], ...]


def _strengths(order: int) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The strengths of all contexts, the longest first, and that of the shortest once more."""
    return tuple((f"strength {length}", STRENGTHS) for length in (*range(order, 0, -1), 1))


VARIANTS: Mapping[str, Variant] = {
    "bonus": Variant(None, Bonus((1.0,)), (("bonus", (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)),)),
    "last token": Variant(None, Mixture((4.0,)), _strengths(1)[:1]),
    "three tokens": Variant(None, Mixture((16.0, 4.0, 1.0)), _strengths(3)),
    "three, injected": Variant(None, Mixture((16.0, 4.0, 1.0), inject=4), _strengths(3)),
    "three, gated": Variant("three, injected", Mixture(()), (("first", FACTORS), ("sure", FACTORS))),
    "five, injected": Variant(None, Mixture((16.0, 4.0, 1.0, 1.0, 1.0), inject=4), _strengths(5)),
    "five, depth 1": Variant("five, injected", Mixture(()), (("depths", (1,)),)),
}
TIMED = LAW
"""The law whose table is timed, on one answer in four: that of servers."""


def with_constant(law: Mixture, name: str, value: float) -> Mixture:
    """The law with one constant replaced; `strength 2` is that of contexts of two tokens."""
    if not name.startswith("strength"):
        changes: dict[str, Any] = {name: value}
        return replace(law, **changes)
    place = int(name.split()[1]) - 1
    return replace(law, strengths=(*law.strengths[:place], value, *law.strengths[place + 1 :]))


def accepted_of_law(
    answer: DraftedAnswer, law: Mixture | None, budgets: Sequence[int], stride: int = 1
) -> dict[int, Ints]:
    """Nodes -> drafted tokens accepted at every `stride`-th anchor by the best tree of the law; None: of positions."""
    anchors = np.arange(0, answer.num_anchors, stride)
    if law is None:
        ids, logprobs = (part[anchors, :, : max(budgets)] for part in (answer.topk_ids, answer.topk_logprobs))
        pairs = None
    else:
        tables = list(_tables(answer, law, anchors))
        ids, logprobs = np.stack([one.topk_ids for one in tables]), answer.topk_logprobs[anchors, :, :CANDIDATES]
        pairs = torch.from_numpy(np.stack([one.logprobs for one in tables]))
    roots = torch.from_numpy(answer.tokens[answer.start + anchors])
    block = [torch.from_numpy(np.ascontiguousarray(part)) for part in (ids, logprobs)]
    tree = build_draft_tree(block[0], block[1], roots, max(budgets) + 1, pairs)
    labels = torch.from_numpy(answer.labels()[anchors])
    return {budget: walked(tree.first_nodes(budget + 1), labels) for budget in budgets}


def _tables(answer: DraftedAnswer, law: Mixture, anchors: Ints) -> Iterator[PairTable]:
    """The table of pairs at each anchor, from the text up to there."""
    text, read = RequestText(law.order), 0
    for anchor in anchors.tolist():
        known = answer.known(anchor)
        text.extend(known[read:].tolist())
        read = len(known)
        ids, logprobs = answer.topk_ids[anchor, :, :CANDIDATES], answer.topk_logprobs[anchor, :, :CANDIDATES]
        yield pair_table(ids, logprobs, text, law)


def walked(tree: DraftTree, labels: torch.Tensor) -> Ints:
    """`[A]` correct drafts of trees, where the target's tokens are `labels` [A, D], -1 where there is none."""
    # What the target says after a node of depth d is the answer's token d + 1 past the root, on its path.
    target_ids = labels.gather(1, tree.depths.clamp(max=labels.shape[1] - 1))
    correct: Ints = walk_tree(tree, target_ids, labels.shape[1] + 1).num_correct_drafts.numpy()
    return correct


def accepted_of_lookup(answer: DraftedAnswer, budgets: Sequence[int]) -> tuple[dict[int, Ints], Ints]:
    """Nodes -> `[A]` drafted tokens accepted of a chain by prompt lookup; and the suffix's length at each anchor."""
    right, lengths = [], []
    for anchor in range(answer.num_anchors):
        length, proposed = lookup(answer.known(anchor).tolist(), LONGEST_SUFFIX, max(budgets))
        agree = [mine == its for mine, its in zip(proposed, answer.following(anchor).tolist(), strict=False)]
        right.append(agree.index(False) if False in agree else len(agree))
        lengths.append(length)
    return {budget: np.minimum(right, budget) for budget in budgets}, np.array(lengths)


def fitted(name: str, answers: Sequence[DraftedAnswer], known: Mapping[str, Mixture]) -> Mixture:
    """The variant's law with the constants by which these answers accept the most, one constant after the other."""
    variant = VARIANTS[name]
    law = variant.start if variant.base is None else known[variant.base]
    for constant, values in variant.grid:
        tried = [with_constant(law, constant, value) for value in values]
        law = max(tried, key=lambda one: fit_score(one, answers)) if len(tried) > 1 else tried[0]
    return law


def fit_score(law: Mixture, answers: Sequence[DraftedAnswer]) -> float:
    """Drafted tokens accepted at the answers' positions, of all budgets that are fitted on."""
    of_each = (accepted_of_law(answer, law, FIT_BUDGETS, FIT_STRIDE) for answer in answers)
    return float(sum(right.sum() for accepted in of_each for right in accepted.values()))


def folds_of(answers: Sequence[DraftedAnswer]) -> list[int]:
    """Of each answer 0 or 1: every other one of each set."""
    seen: dict[str, int] = {}
    folds = []
    for answer in answers:
        folds.append(seen.get(answer.kind, 0) % 2)
        seen[answer.kind] = seen.get(answer.kind, 0) + 1
    return folds


def score_of(answers: Sequence[DraftedAnswer], accepted: Sequence[Ints]) -> DraftScore:
    """Tokens and rounds of each answer, where a round at an anchor has so many drafted tokens accepted."""
    rounds = [count_rounds((right + 1).tolist()) for right in accepted]
    return DraftScore(tuple(answer.num_anchors for answer in answers), tuple(rounds))


def compare(
    answers: Sequence[DraftedAnswer], budgets: Sequence[int]
) -> tuple[dict[str, Accepted], list[dict[str, Any]]]:
    """Accepted drafts by law, each answer's with constants of the other fold; and the constants."""
    folds = folds_of(answers)
    found: dict[str, Accepted] = {}
    with step("trees of positions, and lookup"):
        _add(found, POSITIONS, [accepted_of_law(answer, None, budgets) for answer in answers])
        looked_up = [accepted_of_lookup(answer, budgets) for answer in answers]
        _add(found, LOOKUP, [accepted for accepted, _ in looked_up])
    lengths = [length for _, length in looked_up]
    least = [_fitted_length(found, lengths, [fold != other for other in folds]) for fold in (0, 1)]
    _add(found, EITHER, _either(found, lengths, [least[fold] for fold in folds], budgets))
    lines = [{"kind": "constants", "law": EITHER, "fold": fold, "least suffix": least[fold]} for fold in (0, 1)]
    known: list[dict[str, Mixture]] = [{}, {}]
    for name in VARIANTS:
        with step(name):
            for fold in (0, 1):
                others = [answer for answer, own in zip(answers, folds, strict=True) if own != fold]
                known[fold][name] = fitted(name, others, known[fold])
                lines.append({"kind": "constants", "law": name, "fold": fold, **_printable(known[fold][name])})
            laws = [known[fold][name] for fold in folds]
            _add(found, name, [accepted_of_law(a, law, budgets) for a, law in zip(answers, laws, strict=True)])
    return found, lines


def _add(found: dict[str, Accepted], name: str, of_each: Sequence[dict[int, Ints]]) -> None:
    found[name] = {budget: [accepted[budget] for accepted in of_each] for budget in of_each[0]}


def _either(
    found: Mapping[str, Accepted], lengths: Sequence[Ints], least: Sequence[int], budgets: Sequence[int]
) -> list[dict[int, Ints]]:
    """A round is a lookup's chain where the suffix is at least so long, else a tree of positions."""
    return [
        {
            budget: np.where(long >= shortest, found[LOOKUP][budget][i], found[POSITIONS][budget][i])
            for budget in budgets
        }
        for i, (long, shortest) in enumerate(zip(lengths, least, strict=True))
    ]


def _fitted_length(found: Mapping[str, Accepted], lengths: Sequence[Ints], chosen: Sequence[bool]) -> int:
    """The least suffix's length by which the chosen answers accept the most; one more than the longest: never."""

    def total(least: int) -> float:
        budgets = [budget for budget in found[LOOKUP] if budget in FIT_BUDGETS]
        of_each = _either(found, lengths, [least] * len(lengths), budgets)
        return float(sum(r.sum() for one, use in zip(of_each, chosen, strict=True) if use for r in one.values()))

    return max(range(1, LONGEST_SUFFIX + 2), key=total)


def _printable(law: Mixture) -> dict[str, Any]:
    """JSON-ready; infinity is null."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(law).items()}
    values["strengths"] = [None if one == float("inf") else one for one in values["strengths"]]
    return {name: None if value == float("inf") else value for name, value in values.items()}


def repeats(answer: Sequence[int]) -> bool:
    """Whether a run of `REPEATED` tokens stands in the answer twice, as where a small model goes in circles."""
    runs = [tuple(answer[i : i + REPEATED]) for i in range(len(answer) - REPEATED + 1)]
    return len(set(runs)) < len(runs)


def _kinds(answers: Sequence[DraftedAnswer]) -> list[str]:
    return list(dict.fromkeys(answer.kind for answer in answers))


def score_lines(answers: Sequence[DraftedAnswer], found: Mapping[str, Accepted]) -> list[dict[str, Any]]:
    """A line per law and set of prompts; the last are those whose answers repeat themselves, the others, and all."""
    sets = {kind: [i for i, one in enumerate(answers) if one.kind == kind] for kind in _kinds(answers)}
    repeating = [repeats(answer.tokens[answer.start :].tolist()) for answer in answers]
    for kind, wanted in (("all that repeat", {True}), ("all that do not", {False}), ("all", {True, False})):
        sets[kind] = [i for i, one in enumerate(repeating) if one in wanted]
    lines = []
    for law, accepted in found.items():
        for kind, chosen in sets.items():
            if not chosen:
                continue
            of_kind = [answers[i] for i in chosen]
            by_budget = {}
            for budget in accepted:
                own, base = (
                    score_of(of_kind, [side[budget][i] for i in chosen]) for side in (accepted, found[POSITIONS])
                )
                gain = own.gain_over(base)
                by_budget[str(budget)] = {
                    "accept_length": round(own.accept_length, 4),
                    "interval_95": [round(end, 4) for end in own.confidence_interval()],
                    "gain": [round(value, 4) for value in gain],
                    "gain_percent": [round(100 * value / base.accept_length, 2) for value in gain],
                    "rounds": list(own.rounds) if kind in _kinds(answers) else sum(own.rounds),
                }
            tokens = [answer.num_anchors for answer in of_kind]
            lines.append(
                {
                    "kind": "score",
                    "law": law,
                    "prompts": kind,
                    "tokens": tokens if kind in _kinds(answers) else sum(tokens),
                    "by_budget": by_budget,
                }
            )
    return lines


class _Watch:
    """Microseconds of calls, by name."""

    def __init__(self) -> None:
        self._taken: dict[str, list[float]] = {}

    def __call__(self, name: str, work: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        result = work(*arguments)
        self._taken.setdefault(name, []).append(1e6 * (time.perf_counter() - started))
        return result

    def summary(self) -> dict[str, dict[str, float]]:
        """Median, 90th percentile and number of calls."""
        return {
            name: {"median": round(float(np.median(us)), 1), "p90": round(float(np.quantile(us, 0.9)), 1), "n": len(us)}
            for name, us in self._taken.items()
        }


def cost_line(answers: Sequence[DraftedAnswer], law: Mixture, accepted: Sequence[Ints]) -> dict[str, Any]:
    """Microseconds of a round of one request on the host: the text's counts, the table, the tree of pairs.

    `accepted`: of each answer drafted tokens accepted at each anchor, which says where its rounds begin.
    """
    watch = _Watch()
    for answer, right in zip(answers, accepted, strict=True):
        text, read, anchor = RequestText(law.order), 0, 0
        while anchor < answer.num_anchors:
            fresh = answer.known(anchor)[read:].tolist()
            watch("prompt into counts" if read == 0 else "tokens into counts", text.extend, fresh)
            read += len(fresh)
            for k in TIMED_CANDIDATES:
                _time_trees(watch, answer, anchor, k, text, law)
            anchor += int(right[anchor]) + 1
    return {"kind": "cost", "law": _printable(law), "microseconds": watch.summary()}


def _time_trees(watch: _Watch, answer: DraftedAnswer, anchor: int, k: int, text: RequestText, law: Mixture) -> None:
    block = [np.ascontiguousarray(part[anchor, :, :k]) for part in (answer.topk_ids, answer.topk_logprobs)]
    found = watch(f"table, K {k}", pair_table, *block, text, law)
    ids, logprobs = (torch.from_numpy(part)[None] for part in block)
    root, pairs = torch.tensor([int(answer.tokens[answer.start + anchor])]), torch.from_numpy(found.logprobs)[None]
    for nodes in TIMED_NODES:
        watch(f"tree of positions, K {k}, {nodes} nodes", build_draft_tree, ids, logprobs, root, nodes + 1)
        watch(f"tree of pairs, K {k}, {nodes} nodes", build_draft_tree, ids, logprobs, root, nodes + 1, pairs)


def table(lines: Lines) -> str:
    """Markdown: by budget the accept length of positions, and what each law adds in percent; then constants, cost."""
    scores = {(line["law"], line["prompts"]): line for line in lines if line["kind"] == "score"}
    laws = list(dict.fromkeys(law for law, _ in scores))
    kinds = list(dict.fromkeys(kind for _, kind in scores))
    blocks = []
    for budget in scores[laws[0], kinds[0]]["by_budget"] if scores else []:
        others = [law for law in laws if law != POSITIONS]
        rows = [
            f"| {budget} nodes: prompts | {POSITIONS}, tokens a round | "
            + " | ".join(f"{law}, % more" for law in others)
            + " |",
            "|---|--:|" + "--:|" * len(others),
        ]
        for kind in kinds:
            gains = [scores[law, kind]["by_budget"][budget]["gain_percent"] for law in others]
            cells = [f"{value:+.1f} ({low:+.1f} to {high:+.1f})" for value, low, high in gains]
            length = scores[POSITIONS, kind]["by_budget"][budget]["accept_length"]
            rows.append(f"| {kind} | {length:.3f} | " + " | ".join(cells) + " |")
        blocks.append("\n".join(rows))
    for line in lines:
        if line["kind"] == "cost":
            rows = ["| on the host, one request, microseconds | median | p90 |", "|---|--:|--:|"]
            rows += [f"| {name} | {one['median']} | {one['p90']} |" for name, one in line["microseconds"].items()]
            blocks.append("\n".join(rows))
    return "\n\n".join(blocks)


def run(args: argparse.Namespace) -> int:
    """Answer, draft, compare, time, write and print."""
    torch.set_num_threads(1)
    pair = prepare_pair(Path(sys.executable), args.model, args.draft)
    prompts = sample_prompts(args.datasets, args.prompts, args.seed)
    with step("answers, features and blocks"):
        top_k = max(args.budgets)
        answers = drafted_answers(Path(pair.model), Path(pair.draft), prompts, args.max_new_tokens, top_k, args.work)
    found, constants = compare(answers, args.budgets)
    lines = [*score_lines(answers, found), *constants]
    origin = {**collect_provenance(), "settings": {name: portable(value) for name, value in vars(args).items()}}
    with step("cost"):
        lines.append(cost_line(answers[::4], TIMED, found[POSITIONS][args.budgets[0]][::4]))
    output = args.output or new_result("ngram-conditional", ".jsonl")
    save_lines([{"kind": "provenance", **origin}, *lines], table, output)
    say("\n" + table(lines))
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry; what a user can fix is one line on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--model", help="target model folder (default: the embedded one)")
    parser.add_argument("--draft", help="DFlash drafter folder (default: the one that ships)")
    parser.add_argument("--datasets", nargs="+", default=[*HELD_OUT_KINDS, *SOURCES], choices=list(DATASETS))
    parser.add_argument("--prompts", type=int, default=20, help="per dataset (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of prompts")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--budgets", type=int, nargs="+", default=list(BUDGETS), help="drafted nodes of a tree")
    parser.add_argument("--work", type=Path, default=REPO / ".cache/benchmarks/ngram_conditional", help="kept work")
    parser.add_argument("--output", type=Path, help="JSONL file (default: a dated one in benchmarks/results)")
    args = parser.parse_args(argv)
    return exit_status("ngram_conditional", lambda: run(args))
