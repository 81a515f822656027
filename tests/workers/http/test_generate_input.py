"""What a request of SGLang's becomes for a replica, and what of it would not reach one."""

from __future__ import annotations

import pytest

from tests.workers.byte_tokenizer import encode
from workers.http import generate_input
from workers.http.generate_input import UNSUPPORTED, PromptRules, token_request

pytestmark = pytest.mark.sglang


@pytest.mark.parametrize("name", [*UNSUPPORTED, "image_data"])
def test_what_is_refused_would_be_left_out_of_the_request(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica gets tokens and `PASSED_ON`, and would answer as if nothing more had been asked."""
    from sglang.srt.managers.io_struct import GenerateReqInput

    monkeypatch.setattr(generate_input, "_require_supported", lambda _obj: None)
    rules = PromptRules(encode=encode, tokenizer=None, context_len=100, vocab_size=400, preferred_sampling={})
    plain, asked = (GenerateReqInput(text="a", sampling_params={"stop": None}, rid="r") for _ in range(2))
    setattr(asked, name, ["something"])
    assert token_request(asked, rules) == token_request(plain, rules)
