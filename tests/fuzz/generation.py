"""Bodies of the endpoints that generate: valid ones with what a client may ask for, as a base for strange ones."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

from tests.fuzz.values import mutated, number, strange, text

Body = dict[str, Any]

SAMPLING: dict[str, Callable[[random.Random], Any]] = {
    "temperature": lambda draw: draw.choice((0, 0.5, 1, 2)),
    "top_p": lambda draw: draw.choice((0.1, 0.9, 1)),
    "top_k": lambda draw: draw.choice((-1, 1, 5, 100000)),
    "min_p": lambda draw: draw.choice((0, 0.1, 1)),
    "stop": lambda draw: draw.choice(("a", ["b", "cd"], [])),
    "stop_token_ids": lambda draw: [draw.randrange(256)],
    "stop_regex": lambda draw: draw.choice(("[x-z]", ["a.", "b$"])),
    "ignore_eos": lambda draw: True,
    "skip_special_tokens": lambda draw: False,
    "spaces_between_special_tokens": lambda draw: False,
    "no_stop_trim": lambda draw: True,
    "logit_bias": lambda draw: {str(draw.randrange(256)): draw.choice((-100, -1.5, 2, 100))},
    "n": lambda draw: draw.choice((1, 2, 3)),
    "sampling_seed": lambda draw: draw.randrange(1000),
    "stream_interval": lambda draw: draw.choice((1, 3)),
    "custom_params": lambda draw: {"note": text(draw)},
}
STATEFUL: dict[str, Callable[[random.Random], Any]] = {
    "frequency_penalty": lambda draw: round(draw.uniform(-2, 2), 2),
    "presence_penalty": lambda draw: round(draw.uniform(-2, 2), 2),
    "repetition_penalty": lambda draw: round(draw.uniform(0.5, 2), 2),
    "min_new_tokens": lambda draw: draw.randrange(0, 4),
    "json_schema": lambda draw: json.dumps(schema(draw)),
    "regex": lambda draw: draw.choice(("[a-c]{1,4}", "(yes|no)", "\\d+", "a*b")),
    "ebnf": lambda draw: draw.choice(('root ::= "yes" | "no"', "root ::= [a-c]+")),
}
"""What changes the distribution by the tokens before, valid."""
GRAMMARS = ("json_schema", "regex", "ebnf", "structural_tag")
EXTRA: dict[str, Callable[[random.Random], Any]] = {
    "return_logprob": lambda draw: True,
    "logprob_start_len": lambda draw: draw.choice((-1, 0, 2)),
    "top_logprobs_num": lambda draw: draw.randrange(0, 5),
    "token_ids_logprob": lambda draw: [draw.randrange(256)],
    "return_text_in_logprobs": lambda draw: True,
    "stream": lambda draw: True,
    "rid": lambda draw: draw.choice((f"fuzz-{draw.getrandbits(40)}", f"{draw.getrandbits(8):02x}"[:1], "HEALTH")),
    "return_prompt_token_ids": lambda draw: True,
    "session_id": lambda draw: "a session",
    "extra_key": lambda draw: text(draw) or "k",
    "priority": lambda draw: draw.randrange(3),
}


def schema(draw: random.Random) -> Body:
    """A JSON schema whose answers are short."""
    kinds = ({"type": "boolean"}, {"type": "integer", "minimum": 0, "maximum": 9}, {"enum": ["a", "b"]})
    fields = {name: draw.choice(kinds) for name in draw.sample(("x", "y", "z"), draw.randrange(1, 3))}
    return {"type": "object", "properties": fields, "required": sorted(fields), "additionalProperties": False}


def sampling(draw: random.Random, stateful: bool) -> Body:
    """Valid sampling parameters; `stateful`: with a grammar or penalties among them."""
    made: Body = {"max_new_tokens": draw.randrange(1, 12)}
    made.update({name: SAMPLING[name](draw) for name in draw.sample(sorted(SAMPLING), draw.randrange(0, 4))})
    if stateful:
        for name in draw.sample(sorted(STATEFUL), draw.randrange(1, 3)):
            if not (name in GRAMMARS and set(GRAMMARS) & set(made)):
                made[name] = STATEFUL[name](draw)
        made["max_new_tokens"] = max(made["max_new_tokens"], made.get("min_new_tokens", 0))
    return made


def native(draw: random.Random, stateful: bool = False) -> tuple[str, Body]:
    """`/generate`."""
    prompt: Body = draw.choice(
        (
            {"text": "a short story" + text(draw).replace("\ud800", "")},
            {"input_ids": [draw.randrange(256) for _ in range(draw.randrange(1, 30))]},
            {"text": ["one", "two"]},
        )
    )
    body = {**prompt, "sampling_params": sampling(draw, stateful)}
    names = draw.sample(sorted(EXTRA), draw.randrange(0, 3))
    if "text" in prompt and isinstance(prompt["text"], list):
        names = [name for name in names if name not in ("rid", "extra_key")]
    return "/generate", {**body, **{name: EXTRA[name](draw) for name in names}}


def openai(draw: random.Random, stateful: bool = False) -> tuple[str, Body]:
    """Chat, completions and responses."""
    asked = sampling(draw, stateful)
    kept = ("temperature", "top_p", "stop", "logit_bias", "n", "frequency_penalty", "presence_penalty", "regex", "ebnf")
    body: Body = {"model": "default", **{name: value for name, value in asked.items() if name in kept}}
    if draw.random() < 0.3:
        body["stream"] = True
    if "json_schema" in asked:
        wanted = {"name": "answer", "schema": json.loads(asked["json_schema"])}
        body["response_format"] = {"type": "json_schema", "json_schema": wanted}
    kind = draw.randrange(3)
    if kind == 0:
        body |= {"messages": [{"role": "user", "content": "hello"}], "max_tokens": asked["max_new_tokens"]}
        return "/v1/chat/completions", body
    if kind == 1:
        body.pop("response_format", None)
        return "/v1/completions", {**body, "prompt": draw.choice(("hello", ["a", "b"])), "max_tokens": 4}
    # Without a model: this endpoint takes none but the served one's name, which a valid request gets later.
    for name in ("model", "n", "response_format", "stop", "logit_bias", "regex", "ebnf"):
        body.pop(name, None)
    return "/v1/responses", {**body, "input": "hello", "max_output_tokens": 4}


def other(draw: random.Random) -> tuple[str, Body]:
    """Anthropic's, Ollama's and Vertex's."""
    messages = [{"role": "user", "content": "hello"}]
    options = {"num_predict": 4, "temperature": number(draw)}
    return draw.choice(
        (
            (
                "/v1/messages",
                {"model": "default", "messages": messages, "max_tokens": 4, "stream": draw.random() < 0.5},
            ),
            ("/api/chat", {"model": "default", "messages": messages, "options": options}),
            ("/api/generate", {"model": "default", "prompt": "hello", "options": options, "stream": False}),
            ("/vertex_generate", {"instances": [{"text": "hello"}], "parameters": {"sampling_params": {}}}),
        )
    )


def session(draw: random.Random) -> tuple[str, Body]:
    """Sessions are few, so that requests meet in one: opened, closed, continued, begun anew, cut anywhere."""
    name = draw.choice(("one", "two", "three"))
    if draw.random() < 0.25:
        return "/open_session", {"capacity_of_str_len": 1000, "session_id": name, "streaming": draw.random() < 0.3}
    if draw.random() < 0.05:
        return "/close_session", {"session_id": name}
    _, body = native(draw, draw.random() < 0.3)
    asked: Body = {"id": name}
    fields: dict[str, Callable[[], Any]] = {
        "rid": lambda: draw.choice(("a", "b", "a_0")),
        "offset": lambda: draw.choice((-3, 0, 1, 7, 10**6)),
        "replace": lambda: draw.random() < 0.7,
        "drop_previous_output": lambda: draw.random() < 0.5,
    }
    asked.update({field: fields[field]() for field in draw.sample(sorted(fields), draw.randrange(0, 4))})
    if draw.random() < 0.2:
        asked = {**asked, draw.choice(("id", *fields)): strange(draw)}
    if draw.random() < 0.7:
        body["rid"] = draw.choice(("a", "b", "a_0", "c"))
    return "/generate", {**body, "session_params": asked}


def valid(draw: random.Random) -> tuple[str, Body]:
    """A request with a grammar or penalties that a server which has them answers with 200."""
    return draw.choice((native, openai))(draw, True)


def wrong(draw: random.Random) -> tuple[str, Body]:
    """A valid request with one to three parts of it replaced."""
    path, body = draw.choice((native, native, openai, openai, other))(draw)
    if path == "/generate" and draw.random() < 0.5:
        name = draw.choice(
            sorted({**SAMPLING, **STATEFUL, "max_new_tokens": None, "beam_width": None, "watermark": None})
        )
        body["sampling_params"] = {**body["sampling_params"], name: strange(draw)}
    else:
        for _ in range(draw.randrange(1, 4)):
            made = mutated(draw, body)
            body = made if isinstance(made, dict) else body
    return path, body
