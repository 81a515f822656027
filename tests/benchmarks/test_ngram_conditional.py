"""The law of a request's own n-grams: counts of the past alone, conditionals that are a law, candidates that differ."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import ngram_conditional as bench
from benchmarks.harness.drafted_answers import DraftedAnswer
from benchmarks.harness.request_ngrams import Bonus, lookup
from ddtree_sglang.core import DraftTree, build_draft_tree
from ddtree_sglang.core.request_ngrams import Floats, Ints, Mixture, RequestText, pair_table
from deploy.local.pair import Pair

VOCABULARY = 40
LAWS = (
    Mixture((2.0,)),
    Mixture((4.0, 2.0, 1.0), first=4.0, sure=0.5, inject=3),
    Mixture((0.01, 0.01, 0.01), inject=9),
    Mixture((1.0, math.inf), depths=1, inject=2),
    Bonus((1.0,), bonus=2.0),
)


def text_of(*tokens: int, order: int = 3) -> RequestText:
    text = RequestText(order)
    text.extend(tokens)
    return text


def block(generator: np.random.Generator, depth: int = 5, k: int = 6) -> tuple[Ints, Floats]:
    """Candidates of random distributions over the whole vocabulary, best first."""
    logits = generator.normal(size=(depth, VOCABULARY)) * 2
    logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    order = np.argsort(-logprobs, axis=-1)[:, :k]
    return order.astype(np.int64), np.take_along_axis(logprobs, order, -1).astype(np.float32)


def made_up_answer(seed: int, kind: str = "one", length: int = 24) -> DraftedAnswer:
    """A text that repeats itself, and a drafter that knows nothing of it."""
    generator = np.random.default_rng(seed)
    tokens = np.tile(generator.integers(0, VOCABULARY, size=9), 6)[:length]
    start = 8
    blocks = [block(generator) for _ in range(length - start - 1)]
    ids, logprobs = (np.stack(part) for part in zip(*blocks, strict=True))
    return DraftedAnswer(kind, tokens, start, ids, logprobs)


def tree_of(ids: Ints, logprobs: Floats, table: Floats | None, num_nodes: int, root: int = 0) -> DraftTree:
    pairs = None if table is None else torch.from_numpy(table)[None]
    return build_draft_tree(
        torch.from_numpy(ids)[None], torch.from_numpy(logprobs)[None], torch.tensor([root]), num_nodes, pairs
    )


def test_counts_are_of_what_followed_each_context() -> None:
    text = text_of(1, 2, 1, 2, 3, 1, 2)
    assert text.tail == (3, 1, 2)
    assert text.after((2,)) == [{1: 1, 3: 1}]
    assert text.after((1,)) == [{2: 3}]
    # The longest context first occurs at the text's end, where nothing has followed it.
    assert text.after(text.tail) == [{1: 1, 3: 1}, {1: 1, 3: 1}]
    assert text.after((2, 1, 2)) == [{1: 1, 3: 1}, {1: 1, 3: 1}, {3: 1}]
    assert text.after((7,)) == []


def test_counts_do_not_depend_on_how_the_text_came() -> None:
    tokens = np.random.default_rng(0).integers(0, 4, size=60).tolist()
    at_once, one_by_one = text_of(*tokens), RequestText(3)
    for token in tokens:
        one_by_one.extend([token])
    for context in np.random.default_rng(1).integers(0, 4, size=(50, 3)).tolist():
        assert at_once.after(context) == one_by_one.after(context)


def test_each_order_takes_the_shorter_contexts_word_for_so_many_counts() -> None:
    text = text_of(5, 1, 2, 8, 9, 2, 7, 1, 2, order=2)
    ids, logprobs = np.array([[8, 7, 3]]), np.log(np.array([[0.5, 0.3, 0.1]], dtype=np.float32))
    # After 2 came 8 and 7; after 1, 2 came 8.
    table = pair_table(ids, logprobs, text, Mixture((2.0, 3.0))).logprobs
    last = [(2 * 0.5 + 1) / 4, (2 * 0.3 + 1) / 4, 2 * 0.1 / 4]
    np.testing.assert_allclose(
        np.exp(table[0, 0]), [(3 * last[0] + 1) / 4, 3 * last[1] / 4, 3 * last[2] / 4], rtol=1e-5
    )
    table = pair_table(ids, logprobs, text, Mixture((2.0, math.inf), first=5.0)).logprobs
    np.testing.assert_allclose(np.exp(table[0, 0]), [(10 * 0.5 + 1) / 12, (10 * 0.3 + 1) / 12, 1 / 12], rtol=1e-5)


def test_depth_two_knows_the_root_beside_each_parent() -> None:
    text = text_of(1, 6, 3, 2, 6, 4, 2, order=2)
    ids, logprobs = np.array([[5, 6], [3, 4]]), np.log(np.array([[0.6, 0.3], [0.5, 0.4]], dtype=np.float32))
    after = np.exp(pair_table(ids, logprobs, text, Mixture((math.inf, 1.0))).logprobs[1])
    np.testing.assert_allclose(after[0], [0.5, 0.4], rtol=1e-6)  # after 2, 5 nothing came
    np.testing.assert_allclose(after[1], [0.25, 0.7], rtol=1e-6)  # after 2, 6 came 4, and not 3


def test_without_evidence_the_law_is_the_drafters() -> None:
    ids, logprobs = block(np.random.default_rng(0))
    for law in LAWS:
        table = pair_table(ids, logprobs, text_of(100, 101, 102, order=law.order), law)
        np.testing.assert_allclose(table.logprobs, np.broadcast_to(logprobs[:, None], table.logprobs.shape), atol=1e-5)
        mine, its = tree_of(*table[:1], logprobs, table.logprobs, 12), tree_of(ids, logprobs, None, 12)
        assert torch.equal(mine.token_ids, its.token_ids)
        assert torch.equal(mine.parents, its.parents)


@pytest.mark.parametrize("law", LAWS)
def test_conditionals_are_a_law_over_candidates_that_differ(law: Mixture) -> None:
    generator = np.random.default_rng(3)
    for _ in range(40):
        text = text_of(*generator.integers(0, VOCABULARY // 4, size=50).tolist(), order=law.order)
        ids, logprobs = block(generator)
        found = pair_table(ids, logprobs, text, law)
        sums = np.exp(found.logprobs.astype(np.float64)).sum(-1)
        assert (sums <= 1 + 1e-5).all()
        if isinstance(law, Bonus):
            np.testing.assert_allclose(sums, np.repeat(np.exp(logprobs).sum(-1)[:, None], 6, axis=1), rtol=1e-4)
        assert all(len(set(row)) == len(row) for row in found.topk_ids.tolist())
        tree = tree_of(found.topk_ids, logprobs, found.logprobs, 20, int(text.tail[-1]))
        tree.check_invariants()
        parents = tree.parents.clamp(min=0)
        assert bool((tree.logprobs <= tree.logprobs.gather(1, parents) + 1e-6)[:, 1:].all())


def test_a_follower_that_is_no_candidate_takes_the_last_ones_place() -> None:
    text = text_of(1, 30, 2, 1, 30, 4, 1)
    ids, logprobs = np.array([[5, 6, 7], [8, 9, 2]]), np.log(np.full((2, 3), 0.2, dtype=np.float32))
    found = pair_table(ids, logprobs, text, Mixture((1.0, math.inf, math.inf), inject=1))
    assert found.topk_ids.tolist() == [[5, 6, 30], [8, 9, 4]]  # at depth 2 the place was that of 2, a follower itself
    np.testing.assert_allclose(np.exp(found.logprobs[0, 0]), [0.2 / 3, 0.2 / 3, 2 / 3], rtol=1e-5)
    np.testing.assert_allclose(np.exp(found.logprobs[1, 2]), [0.2 / 3, 0.2 / 3, 1 / 3], rtol=1e-5)
    # After other parents the drafter's word of what was put in is not known.
    assert (found.logprobs[1, :2, 2] == -np.inf).all()
    assert (ids == [[5, 6, 7], [8, 9, 2]]).all()


def test_a_follower_on_a_worse_path_takes_no_place() -> None:
    text = text_of(6, 30, 1)
    ids = np.array([[5, 6], [8, 9]])
    logprobs = np.log(np.array([[0.98, 0.01], [0.5, 0.4]], dtype=np.float32))
    assert pair_table(ids, logprobs, text, Mixture((1.0,), inject=1)).topk_ids.tolist() == [[5, 6], [8, 9]]
    logprobs[0] = np.log([0.5, 0.49])
    logprobs[1] = np.log([0.9, 0.01])
    assert pair_table(ids, logprobs, text, Mixture((1.0,), inject=1)).topk_ids.tolist() == [[5, 6], [8, 30]]


def test_no_table_reads_what_comes_after_its_root() -> None:
    answer = made_up_answer(0)
    anchors = np.arange(answer.num_anchors)
    law = Mixture((1.0, 1.0, 1.0), inject=2)
    tables = list(bench._tables(answer, law, anchors))
    changed = 0
    for anchor in anchors.tolist():
        other = answer.tokens.copy()
        other[answer.start + anchor + 1 :] = VOCABULARY + np.arange(answer.num_anchors - anchor)
        its = DraftedAnswer(answer.kind, other, answer.start, answer.topk_ids, answer.topk_logprobs)
        assert its.known(anchor).tolist() == answer.known(anchor).tolist()
        again = list(bench._tables(its, law, anchors[: anchor + 1]))[-1]
        assert np.array_equal(again.topk_ids, tables[anchor].topk_ids)
        assert np.array_equal(again.logprobs, tables[anchor].logprobs)
        # The root itself is read: its own counts are what depth 1 is about.
        changed += not np.allclose(tables[anchor].logprobs[0, 0], answer.topk_logprobs[anchor, 0])
    assert changed > len(anchors) // 2


def test_an_answer_repeats_where_a_run_of_eight_stands_twice() -> None:
    assert not bench.repeats([*range(8), *range(7), 99])
    assert bench.repeats([*range(8), 99, *range(8)])
    assert bench.repeats([1] * 9)
    assert not bench.repeats([1, 2])


def test_lookup_proposes_what_followed_the_longest_suffix() -> None:
    assert lookup([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 16, 2) == (3, [9, 2])
    assert lookup([2, 3, 9, 2, 3, 8, 2, 3], 16, 3) == (2, [8, 2, 3])  # of equals the latest
    assert lookup([1, 2, 3, 9, 2, 3, 8, 1, 2, 3], 2, 1) == (2, [8])
    assert lookup([1, 1, 1], 16, 5) == (2, [1])
    assert lookup([1, 2, 3], 16, 5) == (0, [])


def test_accepted_tokens_are_the_answers() -> None:
    """A drafter that spreads itself over the answer's tokens, and a text that repeats: the text chooses the next."""
    period = np.arange(6)
    tokens = np.tile(period, 6)
    start, depth = 12, 4
    count = len(tokens) - start - 1
    ids = np.tile(period, (count, depth, 1))
    logprobs = np.full(ids.shape, np.log(1 / 6), dtype=np.float32)
    answer = DraftedAnswer("one", tokens, start, ids, logprobs)
    accepted = bench.accepted_of_law(answer, Mixture((0.1,)), (2, 4))
    left = np.minimum(np.arange(count, 0, -1), depth)
    assert accepted[4].tolist() == left.tolist()
    assert accepted[2].tolist() == np.minimum(left, 2).tolist()
    assert bench.accepted_of_law(answer, Mixture((math.inf,)), (2,))[2].sum() < accepted[2].sum() // 2
    by_lookup, lengths = bench.accepted_of_lookup(answer, (2, 16))
    assert by_lookup[16].tolist() == np.minimum(np.arange(count, 0, -1), 6).tolist()
    assert lengths.tolist() == np.minimum(np.arange(count) + 7, 16).tolist()
    assert bench.score_of([answer], [accepted[4]]).rounds == (math.ceil(count / (depth + 1)),)


def test_an_answers_constants_are_those_of_the_other_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [made_up_answer(seed, kind) for seed, kind in enumerate(["one", "one", "two", "two", "two"])]
    assert bench.folds_of(answers) == [0, 1, 0, 1, 0]
    asked: dict[str, list[set[int]]] = {}

    def fitted(name: str, others: Any, _known: Any) -> Mixture:
        asked.setdefault(name, []).append({id(one) for one in others})
        return Mixture((float(len(others)),))

    used: list[tuple[int, Mixture | None]] = []

    def accepted_of_law(answer: DraftedAnswer, law: Mixture | None, budgets: Any) -> Any:
        used.append((id(answer), law))
        return {budget: np.zeros(answer.num_anchors, dtype=np.int64) for budget in budgets}

    monkeypatch.setattr(bench, "fitted", fitted)
    monkeypatch.setattr(bench, "accepted_of_law", accepted_of_law)
    bench.compare(answers, (4,))
    first, second = ({id(answers[i]) for i in fold} for fold in ((1, 3), (0, 2, 4)))
    assert all(sets == [first, second] for sets in asked.values())
    of_law = {(answer, law.strengths[0]) for answer, law in used if law is not None}
    assert of_law == {(one, 2.0) for one in second} | {(one, 3.0) for one in first}


def test_fitting_takes_the_constant_that_accepts_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = {1: 4.0, 2: 0.25, 3: 64.0}

    def score(law: Mixture, _answers: Any) -> float:
        return -sum(abs(min(value, 99.0) - wanted[place]) for place, value in enumerate(law.strengths, start=1))

    monkeypatch.setattr(bench, "fit_score", score)
    assert bench.fitted("three tokens", [], {}).strengths == (4.0, 0.25, 64.0)
    assert bench.fitted("three, injected", [], {}) == Mixture((4.0, 0.25, 64.0), inject=4)
    base = {"five, injected": Mixture((1.0, 2.0, 3.0), sure=2.0, inject=4)}
    assert bench.fitted("five, depth 1", [], base) == Mixture((1.0, 2.0, 3.0), sure=2.0, inject=4, depths=1)


def test_a_run_writes_scores_constants_cost_and_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [made_up_answer(seed, kind) for seed, kind in enumerate(["one"] * 3 + ["two"] * 3)]
    monkeypatch.setattr(bench, "prepare_pair", lambda *_: Pair("model", "draft"))
    monkeypatch.setattr(bench, "drafted_answers", lambda *_: answers)
    output = tmp_path / "out.jsonl"
    assert bench.main(["--datasets", "held-out", "--prompts", "1", "--budgets", "4", "8", "--output", str(output)]) == 0
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert lines[0]["kind"] == "provenance"
    assert "git_sha" in lines[0]
    scores = {(line["law"], line["prompts"]): line for line in lines if line["kind"] == "score"}
    laws = [bench.POSITIONS, bench.LOOKUP, bench.EITHER, *bench.VARIANTS]
    assert list(scores) == [(law, kind) for law in laws for kind in ("one", "two", "all that do not", "all")]
    assert scores[bench.POSITIONS, "all"]["by_budget"]["8"]["gain"] == [0.0, 0.0, 0.0]
    assert scores["three, injected", "all"]["by_budget"]["8"]["gain"][0] > 0.5
    assert sum(scores["bonus", "one"]["tokens"]) == 3 * answers[0].num_anchors
    assert {(one["law"], one["fold"]) for one in lines if one["kind"] == "constants"} == {
        (law, fold) for law in laws[1:] if law != bench.LOOKUP for fold in (0, 1)
    }
    cost = next(line for line in lines if line["kind"] == "cost")["microseconds"]
    assert cost["prompt into counts"]["n"] == len(answers[::4])
    assert cost["table, K 16"]["median"] > 0
    text = output.with_suffix(".md").read_text()
    assert "| 8 nodes: prompts | positions, tokens a round | lookup, % more |" in text
    assert "| tokens into counts |" in text
