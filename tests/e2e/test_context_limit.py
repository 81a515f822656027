"""Requests that reach the context limit, several at once, with a tree far wider than the room that stock leaves.

At page size 1 a row of SGLang's request table has room for one window and four tokens past the context length, and a
round reserves two: without our headroom the writer spills into the next request's row.
"""

from __future__ import annotations

from tests.e2e.asking import ask, ask_all
from tests.e2e.servers import Pair
from tests.e2e.serving import Serve

CONTEXT_LEN = 192
PROMPT_LEN = 150
PROMPTS = [[32 + (13 * i + 31 * j + i * i % 7) % 90 for i in range(PROMPT_LEN)] for j in range(6)]
"""Letters: the pair is the tiny one, whose rows of the table are those of any other model."""


def test_rows_of_neighbours_stay_whole_at_the_context_limit(serve: Serve, tiny_pair: Pair) -> None:
    limit = ("--context-length", str(CONTEXT_LEN))
    # The most that SGLang admits: prompt and answer fill the context to the last token.
    options = {"max_new_tokens": CONTEXT_LEN - PROMPT_LEN, "ignore_eos": True}
    with serve.both(63, *limit, pair=tiny_pair) as (plain, server):
        reference = [ask(plain.url, prompt, **options) for prompt in PROMPTS]
        answers = ask_all(server.url, PROMPTS, 6, **options)
        again = ask_all(server.url, PROMPTS, 6, **options)
    for expected, answer, repeat in zip(reference, answers, again, strict=True):
        assert expected["meta_info"]["finish_reason"]["type"] == "length"
        assert PROMPT_LEN + len(expected["output_ids"]) >= CONTEXT_LEN - 2
        assert answer["output_ids"] == expected["output_ids"]
        assert repeat["output_ids"] == expected["output_ids"]
