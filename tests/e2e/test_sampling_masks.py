"""What each token was drawn from: the support that a plain server describes after the same tokens."""

from __future__ import annotations

import pytest

from tests.e2e.asking import ask
from tests.e2e.servers import Server

PROMPT = [504, 3575, 282, 4649, 314]
SUPPORT = {"return_sampling_mask": True, "sampling_logprobs_mode": "support"}


def test_drawn_tokens_supports_are_plain_decodings(plain: Server, ddtree: Server) -> None:
    """A plain server draws the next token after each prefix: its draw may differ, its support not."""
    sampling = {"temperature": 0.9, "top_k": 6, "top_p": 0.9, "min_p": 0.02}
    answer = ask(ddtree.url, PROMPT, 12, body=SUPPORT, **sampling)
    tokens, meta = answer["output_ids"], answer["meta_info"]
    masks, logprobs = meta["output_token_sampling_mask"], meta["output_token_sampling_logprobs"]
    assert len(masks) == len(logprobs) == len(tokens)
    for index, (token, mask, values) in enumerate(zip(tokens, masks, logprobs, strict=True)):
        assert token in mask
        other = ask(plain.url, [*PROMPT, *tokens[:index]], 1, body=SUPPORT, **sampling)["meta_info"]
        expected = zip(other["output_token_sampling_mask"][0], other["output_token_sampling_logprobs"][0], strict=True)
        assert dict(zip(mask, values, strict=True)) == pytest.approx(dict(expected), abs=1e-3), index
    assert any(len(mask) > 1 for mask in masks)


def test_a_greedy_token_is_its_own_support(plain: Server, ddtree: Server) -> None:
    body = {"return_sampling_mask": True}
    mine, reference = (ask(server.url, PROMPT, 10, body=body) for server in (ddtree, plain))
    for name in ("output_token_sampling_mask", "output_token_sampling_logprobs"):
        assert mine["meta_info"][name] == reference["meta_info"][name]
    assert mine["meta_info"]["output_token_sampling_mask"] == [[token] for token in mine["output_ids"]]
