"""A request that is given runs of tokens ends as one that is given them one by one, whatever ends it.

Each named mistake is one of SGLang's, which judges a run at once: its test shows the stock answer beside ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.run_ends import judge, prefill_only_at_no_tokens
from tests.e2e.servers import Pair
from tests.engine.decoding import RUN_LEN, THINK_END, Decoding, Ended, batch_of, result_of

pytestmark = pytest.mark.sglang

TEXT = (
    "The tree of drafts is checked in one pass. It has 17 nodes, and the target keeps 4 of them; the rest is thrown "
    "away. Then the next tree starts at the last token, and so on until a stop string, an end token or the limit."
)


@pytest.fixture(scope="module")
def tokenizer(pair: Pair) -> Any:
    from sglang.srt.utils.hf_transformers.tokenizer import get_tokenizer

    return get_tokenizer(pair.model)


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    return Decoding(monkeypatch)


def both(decoding: Decoding, tokenizer: Any, script: Sequence[int], runs: Sequence[int], **asked: Any) -> list[Ended]:
    """By runs, and token by token."""
    return [decoding.decode(decoding.request(tokenizer, **asked), script, how) for how in (runs, None)]


def script_of(tokenizer: Any, text: str = TEXT) -> list[int]:
    """Its tokens, and more than any limit here."""
    return [*tokenizer.encode(text), *range(1000, 1100)]


def random_case(rng: random.Random, ids: Sequence[int]) -> dict[str, Any]:
    """Sampling parameters that end `TEXT` somewhere, most by several causes that lie close together."""
    asked: dict[str, Any] = {"max_new_tokens": rng.choice([1, 2, 7, 20, 40, 60])}
    near = rng.randrange(3, 40)

    def piece() -> str:
        start = max(0, near * 4 + rng.randrange(-12, 12))
        return TEXT[start : start + rng.randint(1, 10)] or "x"

    if rng.random() < 0.6:
        asked["stop"] = [piece() for _ in range(rng.randint(1, 3))]
    if rng.random() < 0.4:
        asked["stop_regex"] = rng.sample(["[0-9]+", "[a-z]{4}$", "t[a-z]e", "[A-Z]", "; ?", "s\\b"], rng.randint(1, 2))
    if rng.random() < 0.5:
        asked["stop_token_ids"] = {ids[max(0, near + rng.randrange(-4, 5))] for _ in range(rng.randint(1, 2))}
    if rng.random() < 0.3:
        asked["eos_token_ids"] = {ids[max(0, near + rng.randrange(-4, 5))]}
    asked["ignore_eos"], asked["think_end"] = rng.random() < 0.15, rng.random() < 0.3
    return asked


@pytest.mark.parametrize("seed", range(6))
def test_runs_of_any_lengths_end_as_single_tokens_do(seed: int, decoding: Decoding, tokenizer: Any) -> None:
    rng = random.Random(seed)
    ids = script_of(tokenizer)
    kinds = set()
    for _ in range(50):
        asked = random_case(rng, ids)
        runs = [rng.randint(1, RUN_LEN) for _ in range(7)]
        mine, reference = both(decoding, tokenizer, ids, runs, **asked)
        assert mine == reference, (asked, runs)
        kinds.add(str(reference.finish_reason.get("matched") or reference.finish_reason["type"])[:1])
    assert len(kinds) > 3


def stock_differs(decoding: Decoding, tokenizer: Any, **asked: Any) -> tuple[Ended, Ended, Ended]:
    """The named shape by runs of eight: ours, plain decoding's, and what SGLang makes of a run by itself."""
    script = script_of(tokenizer)
    mine, reference = both(decoding, tokenizer, script, [RUN_LEN], **asked)
    decoding.stock()
    stock = decoding.decode(decoding.request(tokenizer, **asked), script, [RUN_LEN])
    return mine, reference, stock


def test_a_stop_token_before_a_stop_string_of_the_same_run(decoding: Decoding, tokenizer: Any) -> None:
    ids = script_of(tokenizer)
    asked = {"stop": [tokenizer.decode(ids[6:7])], "stop_token_ids": {ids[4]}}
    mine, reference, stock = stock_differs(decoding, tokenizer, **asked)
    assert mine == reference
    assert (mine.finish_reason["matched"], mine.completion_tokens) == (ids[4], 5)
    assert stock.completion_tokens > 5


def test_of_several_stop_strings_the_earliest_matches_not_the_first_listed(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, stop=["checked", "drafts"])
    assert mine == reference
    assert mine.finish_reason["matched"] == "drafts"
    assert stock.finish_reason["matched"] == "checked"


def test_of_several_patterns_the_earliest_matches_not_the_first_listed(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, stop_regex=["che[a-z]+d", "dra[a-z]+s"])
    assert mine == reference
    assert mine.finish_reason["matched"] == "dra[a-z]+s"
    assert stock != reference


def test_a_pattern_at_the_texts_end_matches_at_its_token(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, stop_regex="of$")
    assert mine == reference != stock
    assert mine.finish_reason["matched"] == "of$"


def test_log_probabilities_are_as_many_as_tokens(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, stop="drafts")
    assert mine.logprobs == reference.logprobs
    assert len(mine.logprobs) == len(mine.top_logprobs) == mine.completion_tokens == len(mine.token_ids)
    assert len(stock.logprobs) > stock.completion_tokens


def test_hidden_states_are_as_many_as_tokens(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, stop="drafts")
    assert mine.hidden_rows == reference.hidden_rows
    assert len(stock.hidden_rows) > len(reference.hidden_rows)


INVALID = 2


def with_supports(
    decoding: Decoding, tokenizer: Any, statuses: Sequence[int], runs: Sequence[int] | None, **asked: Any
) -> Ended:
    req = decoding.request(tokenizer, supported=True, **asked)
    return decoding.decode(req, script_of(tokenizer), runs, statuses)


def test_a_support_past_the_end_takes_nothing_from_the_run(decoding: Decoding, tokenizer: Any) -> None:
    """`stop` ends the request in the same run as, and before, a token without a usable support."""
    ids = script_of(tokenizer)
    end = next(place for place in range(len(ids)) if "drafts" in tokenizer.decode(ids[: place + 1]))
    runs = [end - 2, RUN_LEN]
    statuses = [0] * (end + 1) + [INVALID] * 40
    mine = with_supports(decoding, tokenizer, statuses, runs, stop="drafts")
    assert mine == with_supports(decoding, tokenizer, statuses, None, stop="drafts")
    assert mine.finish_reason["matched"] == "drafts"
    assert len(mine.supports) == mine.completion_tokens - 1 == end
    decoding.stock()
    assert with_supports(decoding, tokenizer, statuses, runs, stop="drafts") != mine


@pytest.mark.parametrize("good", range(1, 12))
def test_the_tokens_before_an_unusable_support_are_given(good: int, decoding: Decoding, tokenizer: Any) -> None:
    """At every place of a run; as in plain decoding the token itself is left out and nothing is cached."""
    statuses = [0] * good + [INVALID] + [0] * 40
    mine = with_supports(decoding, tokenizer, statuses, [5, RUN_LEN], max_new_tokens=30)
    reference = with_supports(decoding, tokenizer, statuses, None, max_new_tokens=30)
    # Nothing is cached, so the key's length is nobody's.
    assert replace(mine, kv_key_len=0) == replace(reference, kv_key_len=0)
    assert mine.completion_tokens == good
    assert mine.finish_reason["type"] == "abort"
    assert not mine.is_cached


def test_reasoning_tokens_are_never_more_than_tokens(decoding: Decoding, tokenizer: Any) -> None:
    assert THINK_END not in script_of(tokenizer)
    mine, reference, stock = stock_differs(decoding, tokenizer, think_end=True, stop="drafts")
    assert mine.reasoning_tokens == reference.reasoning_tokens == mine.completion_tokens
    assert stock.reasoning_tokens > stock.completion_tokens


def test_the_limit_ends_a_run_whatever_stands_behind_it(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, think_end=True, stop="checked", max_new_tokens=4)
    assert mine == reference != stock
    assert mine.finish_reason == {"type": "length", "length": 4}


def test_the_key_of_the_prefix_cache_ends_where_plain_decodings_does(decoding: Decoding, tokenizer: Any) -> None:
    mine, reference, stock = stock_differs(decoding, tokenizer, stop="drafts")
    assert mine.kv_key_len == reference.kv_key_len
    assert stock.kv_key_len != reference.kv_key_len


def test_an_abort_ends_a_run_at_its_first_token(decoding: Decoding, tokenizer: Any) -> None:
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    ended = []
    for how in ([RUN_LEN], None):
        req = decoding.request(tokenizer, max_new_tokens=50)
        req.update_finish_state = _aborting(req, FINISH_ABORT("the client left"))
        ended.append(decoding.decode(req, script_of(tokenizer), how))
    assert ended[0] == ended[1]
    assert ended[0].completion_tokens == 2


def _aborting(req: Any, abort: Any) -> Any:
    """The request's own method; the client leaves once the first token is there."""
    original = type(req).update_finish_state

    def update(new_accepted_len: int = 1) -> None:
        original(req, new_accepted_len)
        if len(req.output_ids) == 1:
            req.to_finish = abort

    return update


class Grammar(SimpleNamespace):
    """Ends at a token, and takes in any."""

    def accept_token(self, token: int) -> None:
        self.ended = self.ended or token == self.last

    def is_terminated(self) -> bool:
        return bool(self.ended)


@pytest.mark.parametrize("last", [1, 4, 7, 8, 9])
@pytest.mark.parametrize("runs", [[8], [3, 5], [1], [2, 7]])
@pytest.mark.parametrize("extra", [{}, {"stop": "checked"}, {"max_new_tokens": 8}])
def test_a_grammar_ends_its_request_at_the_token_after(
    last: int, runs: list[int], extra: dict[str, Any], decoding: Decoding, tokenizer: Any
) -> None:
    """Plain decoding looks at a grammar before it takes the token in; seen where its last token ends no request."""
    ids = script_of(tokenizer)
    ended = []
    for how in (runs, None):
        req = decoding.request(tokenizer, **{"max_new_tokens": 50, **extra})
        req.grammar = Grammar(last=ids[last], ended=False, finished=False)
        ended.append(decoding.decode(req, ids, how))
    assert ended[0] == ended[1]


def test_a_run_is_judged_once_though_the_grammar_asks_before(decoding: Decoding, tokenizer: Any) -> None:
    """Overlap scheduling advances grammars while the next round is on its way, a round before it reads the run."""

    ids = script_of(tokenizer)
    req = decoding.request(tokenizer, max_new_tokens=50, stop="drafts")
    req.grammar = Grammar(last=ids[20], ended=False, finished=False)
    processor = decoding.processor()
    req.output_ids.append(ids[0])
    result = result_of(ids[1 : 1 + RUN_LEN], 1, is_run=True)
    batch = batch_of(req, SimpleNamespace(is_none=lambda: False))
    processor.advance_grammar_fsm(result, batch)
    assert list(req.output_ids) == ids[:1]
    processor.advance_grammar_fsm(result, batch)
    req.logprob.output_token_logprobs_val = []
    processor.process_batch_result_decode(batch, result)
    assert req.finished_reason.to_json()["matched"] == "drafts"
    assert tokenizer.decode(list(req.output_ids)).endswith("drafts")


def test_a_run_of_a_request_that_was_retracted_since_is_forgotten(decoding: Decoding, tokenizer: Any) -> None:
    from ddtree_sglang.engine import run_ends

    ids = script_of(tokenizer)
    req = decoding.request(tokenizer, max_new_tokens=50, stop="drafts")
    req.output_ids.append(ids[0])
    batch = batch_of(req, SimpleNamespace(is_none=lambda: False))
    run_ends.cut_runs(None, result_of(ids[1 : 1 + RUN_LEN], 1, is_run=True), batch)
    assert req in run_ends._judged
    assert req in run_ends._ended_inside
    req.is_retracted = True
    decoding.processor()._resolve_spec_v2_tokens(result_of(ids[1 : 1 + RUN_LEN], 1, is_run=True), batch)
    assert req not in run_ends._judged
    assert req not in run_ends._ended_inside


@pytest.mark.parametrize(("algorithm", "expected"), [("DDTREE", [True, False]), ("DFLASH", [False, False])])
def test_a_request_for_no_token_is_answered_by_its_prefill(
    algorithm: str, expected: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock samples for it under speculation, and answers with the log-probability of a token that it does not have."""
    from sglang.srt.managers import schedule_batch

    spec = SimpleNamespace(speculative_algorithm=algorithm)
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: spec)
    monkeypatch.setattr(schedule_batch, "get_spec", lambda: spec)
    ours = prefill_only_at_no_tokens(schedule_batch.Req.is_prefill_only)
    asked = [SimpleNamespace(sampling_params=SimpleNamespace(max_new_tokens=count)) for count in (0, 1)]
    assert [ours.fget(req) for req in asked] == expected


@pytest.mark.parametrize("asked", [{}, {"stop": "drafts"}, {"max_new_tokens": 3}, {"abort": "the client left"}])
def test_judging_a_run_leaves_its_request_as_it_was(asked: dict[str, Any], decoding: Decoding, tokenizer: Any) -> None:
    """Custom processors have runs judged that are not appended yet; an abort must still be there afterwards."""
    from sglang.srt.managers.schedule_batch import FINISH_ABORT

    ids = script_of(tokenizer)
    abort = FINISH_ABORT(asked["abort"]) if "abort" in asked else None
    sampling = {key: value for key, value in asked.items() if key != "abort"}
    req = decoding.request(tokenizer, **{"max_new_tokens": 50, **sampling})
    req.output_ids.append(ids[0])
    req.to_finish = abort
    judged = judge(req, ids[1 : 1 + RUN_LEN])
    assert (judged.finished_reason is None) == (not asked)
    assert (list(req.output_ids), req.finished_reason, req.finished_len, req.to_finish) == (ids[:1], None, None, abort)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [({"stop": "drafts"}, False), ({"stop_regex": "d[a-z]+"}, False), ({"max_new_tokens": 5}, True)],
    ids=["stop-string", "pattern", "limit"],
)
def test_the_prefix_cache_takes_no_recurrent_state_of_a_run_that_was_cut(
    asked: dict[str, Any], kept: bool, decoding: Decoding, tokenizer: Any
) -> None:
    """The device has committed the whole run, unless it has cut it itself; SGLang compares lengths that are cut."""
    from ddtree_sglang.engine.run_ends import keep_only_states_of_the_end

    req = decoding.request(tokenizer, **{"max_new_tokens": 50, **asked})
    decoding.decode(req, script_of(tokenizer), [RUN_LEN])

    def may_be_kept(*, has_states: bool = True, stock: bool = True) -> bool:
        processor = SimpleNamespace(tree_cache=SimpleNamespace(supports_mamba=lambda: has_states))
        return keep_only_states_of_the_end(lambda *_: stock, processor, req, None, 0)  # type: ignore[arg-type]

    assert may_be_kept() == kept
    assert not may_be_kept(stock=False)
    assert may_be_kept(has_states=False), "what attends alone is cached up to the cut"
    req.kv.mamba_ping_pong_track_buffer = torch.tensor([1, 2])
    assert may_be_kept(), "copies at fixed lengths are not of the end"
