"""SGLang's own OpenAI handlers over replicas by script: what a client sees, with losses and without."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.workers.byte_tokenizer import END_ID, decode, encode, encode_bytes
from tests.workers.fake_engine import FakeEngine
from tests.workers.fake_source import Act, ScriptedSource
from tests.workers.openai_client import Answer, ask, http_request, save_model_folder
from workers.answers.protocol import Busy, Refused, WorkerLost
from workers.answers.retry import RetryingGenerator, RetryPolicy
from workers.http.frontend import Frontend, publish_ingress

pytestmark = [
    pytest.mark.sglang,
    # Of SGLang's own classes.
    pytest.mark.filterwarnings("ignore:ORJSONResponse is deprecated"),
]

TEXT = "the tree 你好 🌳, STOP here"
TOKENS = (*encode_bytes(TEXT), END_ID)
DIED = WorkerLost("the replica died")
MESSAGES = [{"role": "user", "content": "the tree"}]
CHAT = {"messages": MESSAGES, "temperature": 0, "max_tokens": 60}
COMPLETION = {"prompt": "the tree", "temperature": 0, "max_tokens": 60}
# For what takes milliseconds once SGLang is imported, on a machine that is busy with other things.
PATIENCE_S = 300
ENDPOINTS = pytest.mark.parametrize("fields", [CHAT, COMPLETION], ids=["chat", "completion"])


@pytest.fixture(scope="module")
def server_args(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from sglang.srt.runtime_context import restore_context, snapshot_context
    from sglang.srt.server_args import ServerArgs

    before = snapshot_context()
    folder = save_model_folder(tmp_path_factory.mktemp("model"))
    args = ServerArgs(model_path=str(folder), served_model_name="m", device="cpu", enable_cache_report=True)
    publish_ingress(args)
    yield args
    restore_context(before)


@pytest.fixture(scope="module")
def tokenizer(server_args: Any) -> Any:
    from sglang.srt.utils.hf_transformers_utils import get_tokenizer

    return get_tokenizer(server_args.model_path)


class Service:
    """Handlers over one script."""

    def __init__(self, server_args: Any, tokenizer: Any) -> None:
        self._server_args = server_args
        self._tokenizer = tokenizer
        self.source = ScriptedSource([])

    def serving(self, script: list[Act], tokens: tuple[int, ...] = TOKENS, **policy: Any) -> Frontend:
        self.source = ScriptedSource(script, FakeEngine(tokens))
        generator = RetryingGenerator(self.source, RetryPolicy(first_backoff_s=0.001, **policy))
        return Frontend(self._server_args, generator, self._tokenizer)

    def ask(self, script: list[Act], tokens: tuple[int, ...] = TOKENS, **fields: Any) -> Answer:
        async def body() -> Answer:
            async with asyncio.timeout(PATIENCE_S):
                return await ask(self.serving(script, tokens), **fields)

        return asyncio.run(body())


async def until_begun(service: Service) -> None:
    """Return once a replica has the request; threads come first, and take as long as the machine lets them."""
    async with asyncio.timeout(PATIENCE_S):
        while not service.source.attempts:
            await asyncio.sleep(0.01)


@pytest.fixture
def service(server_args: Any, tokenizer: Any) -> Service:
    return Service(server_args, tokenizer)


def text_of(answer: Answer, index: int = 0) -> str:
    choice = answer.body["choices"][index]
    return str(choice["message"]["content"] if "message" in choice else choice["text"])


@ENDPOINTS
@pytest.mark.parametrize("script", [[], [Act(3, DIED)], [Act(0, DIED), Act(17, DIED), Act(1, DIED)]])
def test_a_whole_answer_is_the_same_with_losses_and_without(
    service: Service, fields: dict[str, Any], script: list[Act]
) -> None:
    answer = service.ask(script, **fields)
    assert text_of(answer) == TEXT
    choice = answer.body["choices"][0]
    assert (choice["finish_reason"], choice["matched_stop"]) == ("stop", END_ID)
    usage = answer.body["usage"]
    assert usage["completion_tokens"] == len(TOKENS)
    assert usage["prompt_tokens"] == len(service.source.attempts[0].input_ids)
    assert usage["total_tokens"] == usage["prompt_tokens"] + len(TOKENS)
    assert usage["prompt_tokens_details"]["cached_tokens"] <= usage["prompt_tokens"]
    assert len(service.source.attempts) == len(script) + 1


@ENDPOINTS
@pytest.mark.parametrize("script", [[], [Act(3, DIED)], [Act(0, DIED), Act(17, DIED), Act(1, DIED)]])
def test_a_streamed_answer_is_the_same_with_losses_and_without(
    service: Service, fields: dict[str, Any], script: list[Act]
) -> None:
    answer = service.ask(script, stream=True, stream_options={"include_usage": True}, **fields)
    assert (answer.text(), answer.finish_reasons(), answer.done) == (TEXT, [(0, "stop")], True)
    assert not any("\N{REPLACEMENT CHARACTER}" in json.dumps(e, ensure_ascii=False) for e in answer.events)
    assert answer.events[-1]["usage"]["completion_tokens"] == len(TOKENS)
    assert len(service.source.attempts) == len(script) + 1


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_string_across_a_cut_ends_the_answer_and_is_not_shown(
    service: Service, fields: dict[str, Any], stream: bool
) -> None:
    cut = len(encode_bytes(TEXT[: TEXT.index("STOP") + 2]))
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = service.ask([Act(cut, DIED)], stop=["STOP"], stream=stream, **options, **fields)
    assert (answer.text() if stream else text_of(answer)) == TEXT[: TEXT.index("STOP")]
    usage = answer.events[-1]["usage"] if stream else answer.body["usage"]
    assert usage["completion_tokens"] == cut + 2
    # The second replica did not see "STOP" and had to be stopped.
    assert service.source.closed[-1] == 1


@ENDPOINTS
def test_two_samples_are_two_answers_and_one_prompt(service: Service, fields: dict[str, Any]) -> None:
    answer = service.ask([Act(3, DIED)], n=2, **fields)
    assert [text_of(answer, index) for index in (0, 1)] == [TEXT, TEXT]
    # Their replicas could not tell them apart otherwise.
    assert len({attempt.request_id for attempt in service.source.attempts}) == 2
    assert answer.body["usage"]["completion_tokens"] == 2 * len(TOKENS)
    assert answer.body["usage"]["prompt_tokens"] == len(service.source.attempts[0].input_ids)
    streamed = service.ask([Act(3, DIED)], n=2, stream=True, **fields)
    assert [streamed.text(index) for index in (0, 1)] == [TEXT, TEXT]
    assert sorted(streamed.finish_reasons()) == [(0, "stop"), (1, "stop")]


def test_a_list_of_prompts_has_an_answer_each(service: Service) -> None:
    answer = service.ask([], prompt=["the tree", "a tree of"], max_tokens=60)
    assert [text_of(answer, index) for index in (0, 1)] == [TEXT, TEXT]
    lengths = {len(attempt.input_ids) for attempt in service.source.attempts}
    assert answer.body["usage"]["prompt_tokens"] == sum(len(encode(p)) for p in ("the tree", "a tree of"))
    assert lengths == {len(encode(p)) for p in ("the tree", "a tree of")}


def test_token_ids_are_a_prompt_too(service: Service) -> None:
    service.ask([], prompt=[5, 6, 7], max_tokens=60)
    assert service.source.attempts[0].input_ids == (5, 6, 7)


@pytest.mark.parametrize("script", [[], [Act(3, DIED)]])
def test_log_probabilities_of_a_completion_come_in_order_with_their_text(service: Service, script: list[Act]) -> None:
    expected = [decode([token], False) for token in TOKENS]
    answer = service.ask(script, logprobs=1, **COMPLETION)
    logprobs = answer.body["choices"][0]["logprobs"]
    assert logprobs["token_logprobs"] == [-float(i) for i in range(len(TOKENS))]
    # Fragments of characters are shown by their bytes (SGLang's _lossless_token_text).
    assert [t for t, e in zip(logprobs["tokens"], expected, strict=True) if e.isascii()] == [
        e for e in expected if e.isascii()
    ]
    streamed = service.ask(script, logprobs=1, stream=True, **COMPLETION)
    parts = [event["choices"][0]["logprobs"] for event in streamed.events]
    assert [value for part in parts if part for value in part["token_logprobs"]] == logprobs["token_logprobs"]
    assert [row for part in parts if part for row in part["top_logprobs"]] == logprobs["top_logprobs"]


@pytest.mark.parametrize("script", [[], [Act(3, DIED)]])
def test_log_probabilities_of_a_chat_come_in_order(service: Service, script: list[Act]) -> None:
    answer = service.ask(script, logprobs=True, top_logprobs=1, **CHAT)
    content = answer.body["choices"][0]["logprobs"]["content"]
    assert [entry["logprob"] for entry in content] == [-float(i) for i in range(len(TOKENS))]
    assert [entry["top_logprobs"][0]["logprob"] for entry in content] == [-float(i) for i in range(len(TOKENS))]
    assert bytes(byte for entry in content[:-1] for byte in entry["bytes"]).decode() == TEXT
    streamed = service.ask(script, logprobs=True, top_logprobs=1, stream=True, **CHAT)
    parts = [choice.get("logprobs") for event in streamed.events for choice in event["choices"]]
    # The end token has no text, and so no event that could carry its own.
    assert [entry for part in parts if part for entry in part["content"]] == content[:-1]


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
def test_full_replicas_are_429_with_a_time_to_retry(service: Service, fields: dict[str, Any], stream: bool) -> None:
    answer = service.ask([Act(0, Busy("every replica is full", 2.5))], stream=stream, **fields)
    assert (answer.status, answer.headers["retry-after"]) == (429, "3")
    assert (answer.body["type"], answer.body["message"]) == ("overloaded", "every replica is full")


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
def test_workers_lost_before_the_first_token_are_503(service: Service, fields: dict[str, Any], stream: bool) -> None:
    answer = service.ask([Act(0, DIED)] * 4, stream=stream, **fields)
    assert (answer.status, answer.body["type"]) == (503, "worker_lost")
    assert "lose 3 replicas" in answer.body["message"]


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("status", "kind"), [(400, "BadRequest"), (413, "refused"), (999, "refused")])
def test_a_refusal_keeps_its_status(
    service: Service, fields: dict[str, Any], stream: bool, status: int, kind: str
) -> None:
    answer = service.ask([Act(0, Refused("no", status))], stream=stream, **fields)
    assert answer.status == (500 if status == 999 else status)
    assert kind in answer.body["type"]


@ENDPOINTS
@pytest.mark.parametrize(
    ("script", "extra", "reason"),
    [
        ([Act(3, DIED)], {"regex": "a*"}, "regex: the grammar would begin anew"),
        ([Act(3, DIED), *[Act(0, DIED)] * 3], {}, "lose 3 replicas"),
    ],
    ids=["not resumable", "gave up"],
)
def test_a_stream_that_cannot_go_on_ends_with_an_error_event(
    service: Service, fields: dict[str, Any], script: list[Act], extra: dict[str, Any], reason: str
) -> None:
    answer = service.ask(script, stream=True, **extra, **fields)
    assert answer.status == 200
    assert answer.text() == TEXT[:3]
    errors = [event["error"] for event in answer.events if "error" in event]
    assert [(error["type"], error["code"]) for error in errors] == [("worker_lost", 502)]
    assert reason in errors[0]["message"]
    assert (answer.finish_reasons(), answer.done) == ([], True)


@ENDPOINTS
def test_an_answer_that_is_late_is_504_and_its_stream_an_event(service: Service, fields: dict[str, Any]) -> None:
    async def body(stream: bool) -> Answer:
        serving = service.serving([Act(3, hangs=True)], deadline_s=0.3, stall_timeout_s=60.0)
        return await ask(serving, stream=stream, **fields)

    whole, streamed = asyncio.run(body(False)), asyncio.run(body(True))
    assert (whole.status, whole.body["type"]) == (504, "deadline_exceeded")
    errors = [event["error"] for event in streamed.events if "error" in event]
    assert [(error["type"], error["code"]) for error in errors] == [("deadline_exceeded", 504)]
    assert (streamed.text(), streamed.done) == (TEXT[:3], True)


@ENDPOINTS
def test_a_stream_that_something_unforeseen_breaks_says_so_too(service: Service, fields: dict[str, Any]) -> None:
    answer = service.ask([Act(3, KeyError("secret"))], stream=True, **fields)
    assert (answer.status, answer.text()) == (200, TEXT[:3])
    errors = [event["error"] for event in answer.events if "error" in event]
    assert [error["code"] for error in errors] == [500]
    assert "internal_error: KeyError" in errors[0]["message"]
    assert "secret" not in errors[0]["message"]
    assert (answer.finish_reasons(), answer.done) == ([], True)


@ENDPOINTS
def test_a_whole_answer_that_cannot_go_on_is_503_as_nothing_was_sent(service: Service, fields: dict[str, Any]) -> None:
    answer = service.ask([Act(3, DIED)], regex="a*", **fields)
    assert (answer.status, answer.body["type"]) == (503, "worker_lost")


@ENDPOINTS
def test_one_sample_that_cannot_go_on_ends_the_stream_of_all_and_their_replicas(
    service: Service, fields: dict[str, Any]
) -> None:
    script = [Act(3, DIED), Act(20, hangs=True)]
    answer = service.ask(script, n=2, regex="a*", stream=True, **fields)
    assert [event["error"]["type"] for event in answer.events if "error" in event] == ["worker_lost"]
    assert service.source.closed == [0]


@ENDPOINTS
@pytest.mark.parametrize("stream", [False, True])
def test_an_abort_by_the_engine_is_an_error_as_with_an_engine(
    service: Service, fields: dict[str, Any], stream: bool
) -> None:
    from dataclasses import replace

    class Aborting(FakeEngine):
        def run(self, attempt: Any, sizes: Any = (1,)) -> Any:
            reason = {"type": "abort", "message": "out of memory", "status_code": 500, "err_type": None}
            return [
                replace(c, finish_reason=reason if i == 2 else None) for i, c in enumerate(super().run(attempt)[:3])
            ]

    serving = service.serving([])
    service.source.engine = Aborting(TOKENS)
    answer = asyncio.run(ask(serving, stream=stream, **fields))
    if stream:
        assert [(e["error"]["type"], e["error"]["code"]) for e in answer.events if "error" in e] == [
            ("INTERNAL_SERVER_ERROR", 500)
        ]
    else:
        assert (answer.status, answer.body["message"]) == (500, "out of memory")


@ENDPOINTS
@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"max_tokens": 4000}, "fit the context of 256 tokens"),
        ({"temperature": -1.0}, "temperature must be"),
        ({"stop": [str(i) for i in range(40)]}, "at most 32 stop strings"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_bad_request_is_400_and_costs_no_replica(
    service: Service, fields: dict[str, Any], extra: dict[str, Any], message: str, stream: bool
) -> None:
    answer = service.ask([], stream=stream, **{**fields, **extra})
    assert answer.status == 400
    assert message in answer.body["message"]
    assert service.source.attempts == []


def test_what_the_replica_needs_is_passed_on(service: Service) -> None:
    service.ask([Act(3, DIED)], **COMPLETION, seed=7, session_id="s", lora_path="l", priority=3, logit_bias={"5": 1.0})
    for attempt in service.source.attempts:
        assert attempt.sampling["sampling_seed"] == 7
        assert attempt.sampling["logit_bias"] == {"5": 1.0}
        assert attempt.sampling["n"] == 1
        assert attempt.extra["session_id"] == "s"
        assert (attempt.extra["lora_path"], attempt.extra["priority"]) == ("l", 3)
    assert [attempt.sampling["max_new_tokens"] for attempt in service.source.attempts] == [60, 57]


def test_counters_of_speculation_reach_the_client(service: Service) -> None:
    answer = service.ask([], return_spec_tokens_details=True, **COMPLETION)
    details = answer.body["sglext"]["spec_tokens_details"]
    assert details["spec_verify_ct"] == len(TOKENS)
    assert details["spec_num_proposed_drafts"] == 3 * len(TOKENS)


def test_a_client_that_goes_away_stops_the_replica(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.entrypoints.openai.protocol import CompletionRequest

    monkeypatch.setattr("workers.http.tokenizer_manager.DISCONNECT_POLL_S", 0.05)
    connected = [True]

    async def body() -> None:
        serving = service.serving([Act(3, hangs=True)])
        asked = CompletionRequest(model="m", **COMPLETION)
        task = asyncio.create_task(serving.completion.handle_request(asked, http_request(connected)))
        await until_begun(service)
        assert service.source.closed == []
        connected[0] = False
        response = await task
        assert response.status_code == 400
        assert service.source.closed == [0]

    asyncio.run(body())


@ENDPOINTS
def test_a_stream_that_is_dropped_stops_the_replica(service: Service, fields: dict[str, Any]) -> None:
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

    async def body() -> None:
        serving = service.serving([Act(3, hangs=True)])
        if "messages" in fields:
            asked = ChatCompletionRequest(model="m", stream=True, **fields)
            response = await serving.chat.handle_request(asked, http_request())
        else:
            asked = CompletionRequest(model="m", stream=True, **fields)
            response = await serving.completion.handle_request(asked, http_request())
        await anext(response.body_iterator)
        assert service.source.closed == []
        await response.background()
        assert service.source.closed == [0]

    asyncio.run(body())


def test_a_request_id_is_used_once_at_a_time_and_free_again_after(service: Service) -> None:
    async def body() -> None:
        serving = service.serving([Act(3, hangs=True)])
        first = asyncio.create_task(ask(serving, rid="x", **COMPLETION))
        await until_begun(service)
        again = await ask(serving, rid="x", **COMPLETION)
        assert again.status == 400
        assert "in use only once at a time" in again.body["message"]
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await ask(serving, rid="x", **COMPLETION)).status == 200

    asyncio.run(body())


def test_a_request_for_one_engines_own_things_is_refused(service: Service) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput

    async def body() -> None:
        manager = service.serving([]).manager
        for fields in ({"routed_dp_rank": 1}, {"sampling_params": {"beam_width": 2}}, {"image_data": ["x"]}):
            asked = GenerateReqInput(text="a", **{"sampling_params": {}, **fields})
            with pytest.raises(ValueError, match="not supported here"):
                await anext(manager.generate_request(asked))

    asyncio.run(body())


def test_the_native_requests_dicts_have_the_tokenizer_managers_shape(service: Service) -> None:
    from sglang.srt.managers.io_struct import GenerateReqInput

    async def body() -> None:
        manager = service.serving([]).manager
        asked = GenerateReqInput(text="the tree", sampling_params={"max_new_tokens": 3}, rid="r", return_logprob=True)
        result = await anext(manager.generate_request(asked))
        assert (result["text"], result["output_ids"]) == (TEXT[:3], list(TOKENS[:3]))
        meta = result["meta_info"]
        assert {k: meta[k] for k in ("id", "finish_reason", "prompt_tokens", "completion_tokens", "cached_tokens")} == {
            "id": "r", "finish_reason": {"type": "length", "length": 3}, "prompt_tokens": len(encode("the tree")),
            "completion_tokens": 3, "cached_tokens": 0,
        }  # fmt: skip
        assert meta["output_token_logprobs"] == [(-float(i), TOKENS[i], None) for i in range(3)]
        assert meta["output_token_logprobs_length"] == 3
        assert meta["e2e_latency"] > 0
        assert {"weight_version", "reasoning_tokens", "input_token_logprobs"} <= meta.keys()
        batch = GenerateReqInput(text=["a", "b"], sampling_params={"max_new_tokens": 3}, stream=True)
        parts = [part async for part in manager.generate_request(batch)]
        assert {part["index"] for part in parts} == {0, 1}
        assert {part["meta_info"]["id"] for part in parts} == set(batch.rid)

    asyncio.run(body())
