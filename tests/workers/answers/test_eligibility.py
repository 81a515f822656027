"""Which requests may go on from their tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.workers.byte_tokenizer import END_ID, byte_tokenizer, decode, encode_bytes
from tests.workers.fake_engine import request
from workers.answers.eligibility import STATEFUL_FIELDS, STATEFUL_SAMPLING, why_not_resumable


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.1, "sampling_seed": 7},
        {"min_new_tokens": 4, "max_new_tokens": None, "stop": ["x"], "logit_bias": {"1": 2.0}},
        {
            "presence_penalty": 0.0,
            "frequency_penalty": None,
            "repetition_penalty": 1.0,
            "regex": None,
            "stop_regex": [],
        },
        {"custom_params": {"a": 1}, "ignore_eos": True, "no_stop_trim": True, "skip_special_tokens": False},
    ],
)
def test_greedy_and_sampled_requests_may_go_on(sampling: dict[str, Any]) -> None:
    assert why_not_resumable(request(**sampling)) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("json_schema", "{}"),
        ("regex", "a*"),
        ("ebnf", "root ::= x"),
        ("structural_tag", "{}"),
        ("presence_penalty", 0.5),
        ("frequency_penalty", -0.5),
        ("repetition_penalty", 1.05),
        ("stop_regex", "a+"),
        ("beam_width", 2),
        ("watermark", {"key": "k"}),
    ],
)
def test_a_sampling_parameter_with_state_says_so(name: str, value: object) -> None:
    reason = why_not_resumable(request(**{name: value}))
    assert reason is not None
    assert reason.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("custom_logit_processor", "pickled"),
        ("return_hidden_states", True),
        ("return_hidden_states", "last"),
        ("token_ids_logprob", [1]),
        ("return_sampling_mask", True),
        ("return_routed_experts", True),
        ("return_indexer_topk", True),
        ("session_params", {"id": "s"}),
        ("max_thinking_tokens", 8),
        ("watermark", {"key": "k"}),
    ],
)
def test_a_field_with_state_says_so(name: str, value: object) -> None:
    reason = why_not_resumable(replace(request(), extra={name: value}))
    assert reason is not None
    assert reason.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("return_logprob", "start", "resumable"), [(True, 0, False), (True, -1, True), (False, 0, True)]
)
def test_the_prompts_log_probabilities_bind_a_request_to_its_worker(
    return_logprob: bool, start: int, resumable: bool
) -> None:
    asked = replace(request(), return_logprob=return_logprob, extra={"logprob_start_len": start})
    assert (why_not_resumable(asked) is None) is resumable


def test_a_thinking_budget_binds_a_request_to_its_worker() -> None:
    assert why_not_resumable(request(custom_params={"thinking_budget": 5})) is not None


def test_a_neutral_value_of_every_field_leaves_a_request_free() -> None:
    for name, (neutral, _) in STATEFUL_SAMPLING.items():
        for value in neutral:
            assert why_not_resumable(request(**{name: value})) is None
    for name, (neutral, _) in STATEFUL_FIELDS.items():
        for value in neutral:
            assert why_not_resumable(replace(request(), extra={name: value})) is None


# What goes wrong where such a request goes on all the same, in SGLang's own code: an attempt has the answer so far in
# its prompt, and no token of it among its outputs.


@pytest.mark.sglang
def test_a_grammar_begun_anew_allows_other_tokens() -> None:
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer(), eos_token="<|end|>")
    backend = XGrammarGrammarBackend(tokenizer, vocab_size=len(tokenizer), model_eos_token_ids=[END_ID])
    whole, anew = backend.dispatch_regex("ab"), backend.dispatch_regex("ab")
    whole.accept_token(*encode_bytes("a"))
    allowed = []
    for grammar in (whole, anew):
        mask = grammar.allocate_vocab_mask(vocab_size=len(tokenizer), batch_size=1, device="cpu")
        grammar.fill_vocab_mask(mask, 0)
        allowed.append(mask)
    assert not torch.equal(*allowed)


@dataclass
class Batch:
    """Which SGLang's penalties refer to weakly."""

    reqs: list[Any]
    device: str = "cpu"


@pytest.mark.sglang
@pytest.mark.parametrize("name", ["presence_penalty", "frequency_penalty", "repetition_penalty"])
def test_a_penalty_leaves_what_is_in_the_prompt_alone(name: str) -> None:
    from sglang.srt.sampling import penaltylib

    neutral = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
    req = SimpleNamespace(sampling_params=SimpleNamespace(**{**neutral, name: 1.5}), origin_input_ids=[3])
    batch = Batch([req])
    kind = getattr(penaltylib, f"Batched{name.removesuffix('_penalty').capitalize()}Penalizer")
    penalties = penaltylib.BatchedPenalizerOrchestrator(5, batch, {kind})
    anew, whole = torch.ones(1, 5), torch.ones(1, 5)
    penalties.apply(anew)
    penalties.cumulate_output_tokens(torch.tensor([3]))
    penalties.apply(whole)
    assert bool((anew == 1).all())
    assert (whole != 1).nonzero().tolist() == [[0, 3]]


@pytest.mark.sglang
@pytest.mark.parametrize(("outputs", "ends"), [("xab", True), ("b", False)])
def test_a_match_of_which_the_prompt_has_a_part_ends_nothing(outputs: str, ends: bool) -> None:
    from sglang.srt.managers.schedule_batch import Req

    req = object.__new__(Req)
    req.sampling_params = SimpleNamespace(
        stop_strs=[], stop_regex_strs=["ab"], stop_str_max_len=0, stop_regex_max_len=2
    )
    req.tokenizer, req.output_ids = SimpleNamespace(decode=decode), encode_bytes(outputs)
    assert req._check_str_based_finish() == ends


@pytest.mark.sglang
def test_a_thinking_budget_counts_outputs_alone() -> None:
    from sglang.srt.constrained.reasoner_grammar_backend import ReasonerGrammarObject

    def allowed(outputs: list[int]) -> list[int]:
        """The tokens that may come next, where not every one may."""
        found: list[int] = []
        thoughts = ReasonerGrammarObject(
            None,
            think_end_ids=[9],
            max_think_tokens=2,
            enable_token_filter=True,
            token_filter_fn=lambda _mask, tokens, *_, **__: found.extend(tokens),
        )
        thoughts.maybe_init_reasoning(True)
        for token in outputs:
            thoughts.accept_token(token)
        thoughts.fill_vocab_mask(torch.zeros(1, 1), 0)
        return found

    assert allowed([1, 2]) == [9]
    assert allowed([]) == []
