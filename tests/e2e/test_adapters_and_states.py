"""LoRA adapters on the target, and hidden states of the answer: a plain server's, from one pair of servers for both.

The pair is tiny and random, with adapters that each change the answer from its first tokens on (tests/device_lane).
Requests are chosen so that rounding cannot change them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from deploy.local.client import flush_cache, post
from tests.device_lane.adapters import flags_of, make_adapters
from tests.device_lane.pairs import make_pair, one_thread, random_prompts
from tests.device_lane.references import Asked, Reference, histogram
from tests.e2e.asking import chunks
from tests.e2e.servers import Pair, Server
from tests.e2e.serving import Serve

NUM_NODES = 17
BASE, FIRST, SECOND, LATER = "", "first", "second", "later"
MODELS = (BASE, FIRST, SECOND)
CHUNK = 8
FLAGS = (
    *("--enable-return-hidden-states", "--max-loras-per-batch", "3", "--max-lora-rank", "8"),
    *("--chunked-prefill-size", str(CHUNK), "--enable-mixed-chunk"),
)
STATE_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Setting:
    """A pair, its adapters, plain torch's answers, and both servers."""

    reference: Reference
    plain: Server
    ddtree: Server

    @property
    def servers(self) -> tuple[Server, Server]:
        """Plain decoding first."""
        return self.plain, self.ddtree

    def clear(self, model: str, count: int, max_new_tokens: int = 14, shortest: int = 3) -> list[Asked]:
        """Requests that rounding cannot change, always the same ones."""
        prompts = (tuple(random_prompts(1, shortest + seed % 10, seed)[0].tolist()) for seed in range(200))
        requests = (Asked(prompt, max_new_tokens, adapter=model) for prompt in prompts)
        clear = (asked for asked in requests if self.is_clear(asked))
        return [next(clear) for _ in range(count)]

    def is_clear(self, asked: Asked) -> bool:
        """Whether rounding can change neither its tokens nor what its rounds accept, wherever they begin."""
        with one_thread():
            return self.reference.is_clear(asked, (NUM_NODES,), anywhere=True)


@pytest.fixture(scope="module")
def setting(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    folder = tmp_path_factory.mktemp("adapters")
    pair = make_pair(folder, "qwen3", block_size=4, intermediate_size=64)
    adapters = make_adapters(pair, folder, {FIRST: 4, SECOND: 8, LATER: 2})
    at_start = flags_of({name: adapters[name] for name in (FIRST, SECOND)})
    models = Pair(pair.model, pair.draft)
    with serve.both(NUM_NODES - 1, *FLAGS, *at_start, pair=models) as (plain, ddtree):
        yield Setting(Reference(pair, adapters), plain, ddtree)


def ask(server: Server, asked: Asked, **body: Any) -> dict[str, Any]:
    answer: dict[str, Any] = post(server.url, "/generate", {**asked.body(), **body})
    return answer


def check_answers(setting: Setting, server: Server, requests: list[Asked], at_once: int) -> int:
    """Tokens and rounds are plain torch's; how many requests took part in prefills of others by a token or more."""
    mixed = 0
    with ThreadPoolExecutor(at_once) as pool:
        answers = list(pool.map(lambda asked: ask(server, asked), requests))
    for asked, answer in zip(requests, answers, strict=True):
        assert answer["output_ids"] == list(setting.reference.expect(asked).output_ids), asked
        if server is setting.ddtree:
            found = answer["meta_info"]["spec_correct_drafts_histogram"]
            is_mixed = found != histogram(setting.reference.rounds(asked, NUM_NODES))
            assert not is_mixed or at_once > 1, asked
            assert tuple(found) in setting.reference.with_steps_of_one_token(asked, NUM_NODES), asked
            mixed += is_mixed
    return mixed


def test_adapters_change_answers(setting: Setting) -> None:
    """What follows could not tell adapters apart otherwise."""
    (asked,) = setting.clear(BASE, 1)
    models = (BASE, FIRST, SECOND, LATER)
    assert len({setting.reference.expect(replace(asked, adapter=model)).output_ids[:4] for model in models}) == 4


@pytest.mark.parametrize("model", MODELS)
def test_one_at_a_time(model: str, setting: Setting) -> None:
    requests = setting.clear(model, 3)
    for server in setting.servers:
        check_answers(setting, server, requests, at_once=1)


def test_base_model_and_adapters_in_one_batch(setting: Setting) -> None:
    """And the same prompts of each in turn, so that a prefix of another adapter would be a hit; in chunks, mixed."""
    requests = [asked for model in MODELS for asked in setting.clear(model, 4)]
    prompts = [replace(asked, adapter=model) for asked in requests for model in MODELS if model != asked.adapter]
    requests += [asked for asked in prompts if setting.is_clear(asked)]
    assert len(requests) >= 20
    mixed = [check_answers(setting, server, requests, at_once=6) for server in setting.servers]
    assert mixed[1] > 2, "next to nothing was mixed"


def test_an_adapter_is_loaded_and_unloaded_while_others_are_served(setting: Setting) -> None:
    server, adapter = setting.ddtree, setting.reference.adapters[LATER]
    others = [asked for model in (BASE, FIRST) for asked in setting.clear(model, 3)]
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(check_answers, setting, server, others * 2, 3)
        for _ in range(2):
            loaded = post(server.url, "/load_lora_adapter", {"lora_name": LATER, "lora_path": adapter.path})
            assert loaded["success"]
            check_answers(setting, server, setting.clear(LATER, 2), at_once=2)
            assert post(server.url, "/unload_lora_adapter", {"lora_name": LATER})["success"]
        running.result()
    # Another adapter under the name of one that was there before, whose prefixes are still in the cache.
    other = {"lora_name": LATER, "lora_path": setting.reference.adapters[SECOND].path}
    assert post(server.url, "/load_lora_adapter", other)["success"]
    for asked in setting.clear(SECOND, 2):
        answer = ask(server, replace(asked, adapter=LATER))
        assert answer["output_ids"] == list(setting.reference.expect(asked).output_ids)
    assert post(server.url, "/unload_lora_adapter", {"lora_name": LATER})["success"]


def test_the_openai_api_names_an_adapter_behind_the_model_and_streams_its_answer(setting: Setting) -> None:
    (asked,) = setting.clear(FIRST, 1)
    body = {
        "model": f"default:{FIRST}",
        "prompt": list(asked.prompt),
        "max_tokens": asked.max_new_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "skip_special_tokens": False,
    }
    whole, plain = (
        post(server.url, "/v1/completions", body)["choices"][0]["text"] for server in (setting.ddtree, setting.plain)
    )
    expected = " ".join(f"w{token}" for token in setting.reference.expect(asked).output_ids)
    assert (whole.strip(), plain.strip()) == (expected, expected)
    events = chunks(setting.ddtree.url, "/v1/completions", body)
    assert "".join(event["choices"][0]["text"] for event in events) == whole


def states_of(answer: dict[str, Any]) -> list[torch.Tensor]:
    """One tensor per entry of the response: `[T, H]` of the prompt, then `[H]` per further token.

    What plain decoding gives while it takes part in another request's prefill is a list of one row.
    """
    prompt, *further = (torch.tensor(entry) for entry in answer["meta_info"]["hidden_states"])
    return [prompt, *(row.view(-1) for row in further)]


def check_states(mine: list[torch.Tensor], plain: list[torch.Tensor]) -> None:
    """Row by row the same; of the prompt those of its last chunk, which neighbours make shorter or longer."""
    assert [one.shape for one in mine[1:]] == [one.shape for one in plain[1:]]
    rows = min(len(mine[0]), len(plain[0]))
    assert rows > 0
    for ours, theirs in zip((mine[0][-rows:], *mine[1:]), (plain[0][-rows:], *plain[1:]), strict=True):
        assert torch.allclose(ours, theirs, atol=STATE_TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_hidden_states_of_a_prompt_alone_have_plain_decodings_rows(model: str, setting: Setting) -> None:
    (asked,) = setting.clear(model, 1)
    for _ in range(2):
        answers = [ask(server, asked, return_hidden_states=True) for server in setting.servers]
        plain, mine = map(states_of, answers)
        assert [one.shape for one in mine] == [one.shape for one in plain]
        check_states(mine, plain)


@pytest.mark.parametrize("model", [BASE, FIRST])
def test_hidden_states_are_plain_decodings(model: str, setting: Setting) -> None:
    """Asked beside requests that ask for none, twice, so that the second time the prompt is in the prefix cache."""
    asked, *others = setting.clear(model, 4)
    for server in setting.servers:
        flush_cache(server.url)
    for cached in (False, True):
        answers = []
        for server in setting.servers:
            with ThreadPoolExecutor(3) as pool:
                beside = [pool.submit(ask, server, other) for other in others]
                answers.append(ask(server, asked, return_hidden_states=True))
                assert not any(one.result()["meta_info"].get("hidden_states") for one in beside)
        plain, mine = map(states_of, answers)
        found = {answer["meta_info"]["cached_tokens"] for answer in answers}
        assert found == {len(asked.prompt) - 1 if cached else 0}
        check_states(mine, plain)
        expected = setting.reference.states(asked)[-asked.max_new_tokens + 1 :]
        assert torch.allclose(torch.stack(mine[1:]), expected, atol=10 * STATE_TOLERANCE)


@pytest.mark.parametrize("model", MODELS)
def test_hidden_states_of_a_prompt_in_chunks_are_plain_decodings(model: str, setting: Setting) -> None:
    """Beside others that are in chunks as well, and whose states nobody asks for."""
    (asked,) = setting.clear(model, 1, shortest=2 * CHUNK + 1)
    others = setting.clear(BASE, 2, shortest=CHUNK + 1)
    answers = []
    for server in setting.servers:
        flush_cache(server.url)
        with ThreadPoolExecutor(2) as pool:
            beside = [pool.submit(ask, server, other) for other in others]
            answers.append(ask(server, asked, return_hidden_states=True))
            for one, other in zip(beside, others, strict=True):
                assert one.result()["output_ids"] == list(setting.reference.expect(other).output_ids)
    assert [answer["output_ids"] for answer in answers] == [list(setting.reference.expect(asked).output_ids)] * 2
    plain, mine = map(states_of, answers)
    check_states(mine, plain)
    expected = setting.reference.states(asked)[-asked.max_new_tokens + 1 :]
    assert torch.allclose(torch.stack(mine[1:]), expected, atol=10 * STATE_TOLERANCE)


@pytest.mark.parametrize("mode", [True, "last"])
def test_hidden_states_of_the_openai_api(mode: Any, setting: Setting) -> None:
    """One row in both modes, that of the last token but one; SGLang's own endpoint takes `last` here alone."""
    (asked,) = setting.clear(SECOND, 1)
    body = {
        **{"model": f"default:{SECOND}", "prompt": list(asked.prompt), "max_tokens": asked.max_new_tokens},
        **{"temperature": 0, "ignore_eos": True, "return_hidden_states": mode},
    }
    plain, mine = (
        torch.tensor(post(server.url, "/v1/completions", body)["choices"][0]["hidden_states"])
        for server in setting.servers
    )
    assert mine.shape == plain.shape
    assert torch.allclose(mine, plain, atol=STATE_TOLERANCE)
    expected = setting.reference.states(asked)[-1]
    assert torch.allclose(mine.view(-1), expected, atol=10 * STATE_TOLERANCE)


def test_hidden_states_end_where_the_answer_does(setting: Setting) -> None:
    """An answer that ends inside an accepted path has no rows past its end; a streamed one has the same ones."""
    (asked,) = setting.clear(BASE, 1)
    token = setting.reference.expect(asked).output_ids[6]
    body = asked.body()
    body["sampling_params"] |= {"ignore_eos": False, "stop_token_ids": [token]}
    answers = [post(server.url, "/generate", {**body, "return_hidden_states": True}) for server in setting.servers]
    plain, mine = map(states_of, answers)
    assert len(mine) == len(plain) == answers[1]["meta_info"]["completion_tokens"] <= 7
    assert torch.allclose(torch.stack(mine[1:]), torch.stack(plain[1:]), atol=STATE_TOLERANCE)
