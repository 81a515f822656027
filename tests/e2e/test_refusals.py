"""What one client sends ends no server: it gets a 400 with a reason, streamed or not, and others are served."""

from __future__ import annotations

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

import openai
import pytest

from tests.e2e.asking import ask
from tests.e2e.servers import Server

NO_TOKEN = 10_000_000
CHAT = {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}


def send(server: Server, path: str, body: bytes) -> tuple[int, str]:
    """Status and body of a POST, whatever they are."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=120)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.fixture(params=["plain", "ddtree"])
def server(request: pytest.FixtureRequest) -> Any:
    """Each of the two, and it answers as before when the test is over."""
    asked: Server = request.getfixturevalue(request.param)
    before = ask(asked.url, "The quick brown fox", 4)["output_ids"]
    yield asked
    assert ask(asked.url, "The quick brown fox", 4)["output_ids"] == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("token", [NO_TOKEN, -1])
def test_a_token_that_the_model_does_not_have_is_refused(server: Server, stream: bool, token: int) -> None:
    """The scheduler would index the embedding with it."""
    body = {"input_ids": [504, token], "sampling_params": {"max_new_tokens": 4}, "stream": stream}
    status, answer = send(server, "/generate", json.dumps(body).encode())
    assert status == 400
    assert f"got {token}" in json.loads(answer).get("message", answer)
    two = {**body, "input_ids": [[504], [504, token]]}
    assert send(server, "/generate", json.dumps(two).encode())[0] == 400


@pytest.mark.parametrize("stream", [False, True])
def test_the_openai_client_raises_bad_request(server: Server, stream: bool) -> None:
    client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0)
    with client, pytest.raises(openai.BadRequestError, match=f"got {NO_TOKEN}"):
        client.completions.create(model="default", prompt=[504, NO_TOKEN], max_tokens=4, stream=stream)


@pytest.mark.parametrize(
    ("sampling", "named"),
    [
        ({"temperature": "hot"}, "str"),
        ({"top_k": 2**31, "temperature": 1.0}, "top_k"),
        ({"n": 10**9}, "n must give"),
        ({"no_such_field": 1}, "no_such_field"),
    ],
)
def test_a_value_that_cannot_be_is_refused(server: Server, sampling: dict[str, Any], named: str) -> None:
    """Some would end the scheduler, others the memory; for the rest stock answers 500 without a reason."""
    with pytest.raises(RuntimeError, match=f"answered 400.*({named})"):
        ask(server.url, "Hello", **{"max_new_tokens": 4, **sampling})


@pytest.mark.parametrize("body", [b"[]", b"null", json.dumps({**CHAT, "response_format": 1}).encode()])
def test_a_body_of_another_kind_is_a_400_with_a_reason(server: Server, body: bytes) -> None:
    status, answer = send(server, "/v1/chat/completions", body)
    assert status == 400
    assert "has no attribute" in json.loads(answer)["message"]


@pytest.mark.parametrize("path", ["/release_memory_occupation", "/resume_memory_occupation"])
def test_memory_is_not_released_on_a_cpu(server: Server, path: str) -> None:
    status, answer = send(server, path, b"{}")
    assert status == 400
    assert "CPU platform" in answer
