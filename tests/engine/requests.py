"""Requests as far as a round asks them: SGLang's `Req` without its scheduler."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any


class FakeRequest(SimpleNamespace):
    """Has an identity and can be referred to weakly, as `Req` is."""

    __hash__ = object.__hash__


def request_of(
    prompt_len: int = 4,
    max_new_tokens: int = 100,
    stop_token_ids: Sequence[int] = (),
    eos_token_ids: Sequence[int] = (2,),
    custom_params: Any = None,
    *,
    ignore_eos: bool = False,
    tokenizer: Any = None,
) -> Any:
    """A request that a batch may hold."""
    return FakeRequest(
        origin_input_ids=array("q", range(prompt_len)),
        output_ids=array("q"),
        eos_token_ids=set(eos_token_ids),
        tokenizer=tokenizer,
        vocab_size=1000,
        sampling_params=SimpleNamespace(
            max_new_tokens=max_new_tokens,
            stop_token_ids=set(stop_token_ids),
            ignore_eos=ignore_eos,
            custom_params=custom_params,
        ),
    )
