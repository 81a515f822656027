"""A request under a grammar ends where plain decoding ends it, whatever its runs, with its grammar in that state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from tests.engine.decoding import Decoding, batch_of, result_of

if TYPE_CHECKING:
    from tests.e2e.servers import Pair

pytestmark = pytest.mark.sglang

BACKENDS = ("xgrammar", "llguidance")
PATTERN = "[0-9]{3}"


@pytest.fixture
def decoding(monkeypatch: pytest.MonkeyPatch) -> Decoding:
    return Decoding(monkeypatch)


@pytest.fixture(scope="module")
def tokenizer(pair: Pair) -> Any:
    from sglang.srt.utils.hf_transformers.common import attach_additional_stop_token_ids
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(pair.model)
    attach_additional_stop_token_ids(tokenizer)
    return tokenizer


@pytest.fixture(scope="module")
def grammars(tokenizer: Any) -> dict[str, Any]:
    from sglang.srt.constrained.llguidance_backend import GuidanceBackend
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend

    size, ends = len(tokenizer), [tokenizer.eos_token_id]
    backends = (
        XGrammarGrammarBackend(tokenizer, vocab_size=size, model_eos_token_ids=ends),
        GuidanceBackend(tokenizer, n_vocab=size, eos_token_ids=ends),
    )
    return {name: one.dispatch_regex(PATTERN) for name, one in zip(BACKENDS, backends, strict=True)}


def state_of(grammar: Any, size: int) -> list[int]:
    mask = grammar.allocate_vocab_mask(vocab_size=size, batch_size=1, device="cpu")
    if not grammar.is_terminated():
        grammar.fill_vocab_mask(mask, 0)
    return [int(grammar.is_terminated()), *mask[0].tolist()]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("runs", [[8], [1], [2], [3], [4], [2, 1, 3]])
@pytest.mark.parametrize("max_new_tokens", [2, 4, 5, 9])
@pytest.mark.parametrize("ignore_eos", [True, False])
def test_runs_end_where_steps_do(
    ignore_eos: bool,
    max_new_tokens: int,
    runs: list[int],
    backend: str,
    decoding: Decoding,
    grammars: dict[str, Any],
    tokenizer: Any,
) -> None:
    digits = tokenizer.convert_tokens_to_ids(["1", "2", "3"])
    # Behind an end token that is ignored xgrammar allows anything, llguidance the end token again.
    behind = [tokenizer.convert_tokens_to_ids("a")] if backend == "xgrammar" else []
    script = [*digits, tokenizer.eos_token_id, *behind, *[tokenizer.eos_token_id] * 12]
    ended, states = [], []
    for how in (runs, None):
        req = decoding.request(tokenizer, max_new_tokens=max_new_tokens, ignore_eos=ignore_eos)
        req.grammar = grammars[backend].copy()
        req.grammar.accept_token(script[0])
        ended.append(decoding.decode(req, script, how))
        states.append(state_of(req.grammar, len(tokenizer)))
    assert ended[0] == ended[1]
    if ended[0].finish_reason["type"] == "length":
        assert states[0] == states[1]


def test_backends_differ_behind_an_ignored_end(decoding: Decoding, grammars: dict[str, Any], tokenizer: Any) -> None:
    """What the runs above have to agree with: one token more, and end tokens up to the limit."""
    end, other = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("a")
    digits = tokenizer.convert_tokens_to_ids(["1", "2", "3"])
    found = []
    for backend, script in (("xgrammar", [*digits, end, other, other]), ("llguidance", [*digits, *[end] * 9])):
        req = decoding.request(tokenizer, max_new_tokens=8, ignore_eos=True)
        req.grammar = grammars[backend].copy()
        req.grammar.accept_token(script[0])
        ended = decoding.decode(req, script, None)
        found.append((ended.token_ids[3:], ended.finish_reason["type"]))
    assert found == [([end, other], "stop"), ([end] * 5, "length")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_token_that_the_grammar_does_not_take_aborts_the_request(
    backend: str, decoding: Decoding, grammars: dict[str, Any], tokenizer: Any
) -> None:
    one, letter = tokenizer.convert_tokens_to_ids(["1", "a"])
    req = decoding.request(tokenizer, max_new_tokens=20, ignore_eos=True)
    req.grammar = grammars[backend].copy()
    decoding.decode(req, [one, one, letter, one, *[one] * 20], [4])
    assert req.finished_reason.to_json()["type"] == "abort"
    assert list(req.output_ids) == [one, one]


def test_under_overlap_a_first_token_that_ends_the_grammar_ends_nothing(
    decoding: Decoding, grammars: dict[str, Any], tokenizer: Any
) -> None:
    """The barrier advances the grammar over the prefill's token before the request is asked whether it has ended."""
    from types import SimpleNamespace

    req = decoding.request(tokenizer, max_new_tokens=20, ignore_eos=True)
    req.grammar = grammars["xgrammar"].copy()
    for digit in tokenizer.convert_tokens_to_ids(["1", "2", "3"]):
        req.grammar.accept_token(digit)
    batch = batch_of(req, SimpleNamespace(is_none=lambda: False))
    batch.forward_mode = SimpleNamespace(is_decode=lambda: False, is_extend=lambda: True)
    req.inflight_middle_chunks = 0
    result = result_of([tokenizer.eos_token_id], 0, is_run=False)
    decoding.processor().advance_grammar_fsm(result, batch)
    assert req.grammar.is_terminated()
    req.output_ids.append(tokenizer.eos_token_id)
    req.update_finish_state()
    assert not req.finished()
    req.output_ids.append(5)
    req.update_finish_state()
    assert req.finished_reason.to_json() == {"type": "stop", "matched": 5}
    assert isinstance(result.next_token_ids, torch.Tensor)


@pytest.mark.parametrize(("backend", "is_kept"), [("xgrammar", True), ("llguidance", False)])
def test_a_request_that_comes_back_to_a_decoding_server(
    backend: str, is_kept: bool, grammars: dict[str, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Why llguidance is refused there: SGLang hands it the last token of a request that was retracted once more."""
    from types import SimpleNamespace

    from sglang.srt.disaggregation import decode_schedule_batch_mixin as module

    monkeypatch.setattr(module, "checkpoint_kv_cache", lambda req, cache: None)
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: SimpleNamespace(speculative_algorithm="DDTREE"))
    digits = tokenizer.convert_tokens_to_ids(["1", "2"])
    grammar = grammars[backend].copy()
    for digit in digits:
        grammar.accept_token(digit)
    before = state_of(grammar, len(tokenizer))
    req = SimpleNamespace(output_ids=digits, grammar=grammar, swa_branching_seqlen=None, finished=lambda: False)
    algorithm = SimpleNamespace(build_disagg_draft_input=lambda *one: object())
    back = SimpleNamespace(reqs=[req], tree_cache=None, device="cpu", spec_algorithm=algorithm)
    module.ScheduleBatchDisaggregationDecodeMixin.process_prebuilt(back, None)
    assert (state_of(grammar, len(tokenizer)) == before) == is_kept
