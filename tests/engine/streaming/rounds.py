"""Requests whose tokens come in rounds, and SGLang's own streamer that sends them; tokens are pieces of text."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from inspect import unwrap
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.streaming import token_outputs


@dataclass
class Pieces:
    """A tokenizer whose tokens are pieces of text, numbered in order of appearance."""

    known: list[str] = field(default_factory=list)
    eos_token_id: int = -5
    additional_stop_token_ids: None = None

    def encode(self, pieces: Sequence[str], add_special_tokens: bool = False) -> list[int]:
        if isinstance(pieces, str):  # a stop string, of which the engine wants to know how many tokens it may be
            return list(range(len(pieces)))
        self.known += [piece for piece in dict.fromkeys(pieces) if piece not in self.known]
        return [self.known.index(piece) for piece in pieces]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self.known[token] for token in ids)


FIELDS = (
    "rids",
    "finished_reasons",
    "decode_ids",
    "read_offsets",
    "output_ids",
    "completion_tokens",
    "reasoning_tokens",
    "prompt_tokens",
    "output_token_logprobs_val",
    "output_token_logprobs_idx",
    "output_top_logprobs_val",
    "output_hidden_states",
)


@dataclass
class Sent:
    """What the detokenizer's process would receive."""

    payloads: list[Any] = field(default_factory=list)

    def send_output(self, payload: Any) -> None:
        # What is sent is what it is now, as through a socket; the request's lists go on growing.
        self.payloads.append({name: deepcopy(getattr(payload, name)) for name in FIELDS})

    def outputs(self) -> list[dict[str, Any]]:
        """One for each request of each message, with what plain decoding sends as well."""
        return [
            {name: values[row] for name, values in payload.items() if values is not None}
            for payload in self.payloads
            for row in range(len(payload["rids"]))
        ]

    def texts(self, tokenizer: Pieces) -> list[str]:
        return [tokenizer.decode(output["output_ids"]) for output in self.outputs()]


Stream = Callable[..., None]


@contextmanager
def streamer_under(
    algorithm: str, monkeypatch: pytest.MonkeyPatch, *, hooked: bool, stream_interval: int = 1, **serving: Any
) -> Iterator[tuple[Stream, Sent]]:
    """`stream(reqs)` of SGLang's streamer in a server of that algorithm, and what it sends."""
    import sglang.srt.runtime_context as context
    from sglang.srt.managers.scheduler_components import output_streamer

    flags = {"tool_call_parser": None, "reasoning_parser": None, "weight_version": "v", **serving}
    values = {
        "get_serving": SimpleNamespace(stream_interval=stream_interval, **flags),
        "get_spec": SimpleNamespace(speculative_algorithm=algorithm),
        "get_parallel": SimpleNamespace(dp_rank=0, attn_tp_rank=0),
        "get_observability": SimpleNamespace(enable_request_time_stats_logging=False),
    }
    for name, value in values.items():
        for module in (context, output_streamer):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda value=value: value)
    sent = Sent()
    made = output_streamer.SchedulerOutputStreamer.__new__(output_streamer.SchedulerOutputStreamer)
    made.is_generation, made.rust_server, made.send_to_detokenizer = True, None, sent
    made.spec_algorithm = SimpleNamespace(is_none=lambda: False)
    made.disaggregation_mode = made.tree_cache = None
    made.enable_hicache_storage = lambda: False
    # Without what another test of this process may have wrapped it in.
    original = unwrap(output_streamer.SchedulerOutputStreamer.stream_output)
    token_outputs._is_asked_for_all.cache_clear()

    def stream(reqs: Sequence[Any], return_logprob: bool = False, skip_req: Any = None) -> None:
        if hooked:
            token_outputs.output_token_by_token(original, made, reqs, return_logprob, skip_req)
        else:
            original(made, reqs, return_logprob, skip_req)

    yield stream, sent
    token_outputs._is_asked_for_all.cache_clear()


def request(rid: str, tokenizer: Pieces, *, stream: bool = True, logprobs: bool = False, **sampling: Any) -> Any:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    fields = {key: sampling.pop(key) for key in ("return_hidden_states", "require_reasoning") if key in sampling}
    params = SamplingParams(temperature=0.0, max_new_tokens=1000, **sampling)
    params.normalize(tokenizer)
    prompt = array("q", tokenizer.encode(["the ", "prompt "]))
    req = Req(rid, "", prompt, params, stream=stream, return_logprob=logprobs, vocab_size=10**6, **fields)
    req.tokenizer = tokenizer
    if logprobs:
        req.logprob.output_token_logprobs_val, req.logprob.output_token_logprobs_idx = [], []
        req.logprob.output_top_logprobs_val, req.logprob.output_top_logprobs_idx = [], []
    return req


def commit(req: Any, tokens: Sequence[int], think_end: int | None = None) -> None:
    """What the scheduler does with a round's tokens before it streams."""
    for token in tokens:
        req.output_ids.append(token)
        if req.return_logprob:
            req.logprob.output_token_logprobs_val.append(-float(token))
            req.logprob.output_token_logprobs_idx.append(token)
            req.logprob.output_top_logprobs_val.append([-float(token)])
            req.logprob.output_top_logprobs_idx.append([token])
        if req.return_hidden_states == "last":
            req.hidden_states[:] = [[float(token)]]
        elif req.return_hidden_states:
            req.hidden_states.append([float(token)])
        if req.require_reasoning and not req.finished():
            req.update_reasoning_tokens(token, [think_end])
    req.update_finish_state(len(tokens))


def in_runs(tokens: Sequence[Any], lengths: Sequence[int]) -> list[Sequence[Any]]:
    """The tokens in rounds of these lengths, over and over."""
    runs, at, turn = [], 0, 0
    while at < len(tokens):
        length = lengths[turn % len(lengths)]
        runs.append(tokens[at : at + length])
        at, turn = at + length, turn + 1
    return runs
