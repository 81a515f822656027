"""Ask both servers all shapes and keep what they answered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from deploy.local.divergence import NEAR_TIE
from tests.e2e.conformance.comparing import Comparison, Difference, field_paths, without_forbidden
from tests.e2e.conformance.factors import USER
from tests.e2e.conformance.sending import Answer, send
from tests.e2e.conformance.shapes import Shape

AT_ONCE = 16


@dataclass(frozen=True)
class Asked:
    """A shape and each server's answers: "whole", and "streamed" where it asks for a stream."""

    shape: Shape
    plain: Mapping[str, Answer]
    ddtree: Mapping[str, Answer]

    def differences(self, comparison: Comparison) -> Iterator[Difference]:
        """What differs, each path led by "whole" or "streamed"."""
        for turn, plain in self.plain.items():
            ddtree = self.ddtree[turn]
            if plain.status != ddtree.status:
                yield Difference(f"{turn} status", (plain.status, plain.body), (ddtree.status, ddtree.body))
            elif self.shape.is_drawn:
                comparison.num_values += 1
                for path in sorted(without_ends(plain.body) ^ without_ends(ddtree.body)):
                    yield Difference(f"{turn}{path}", path in field_paths(plain.body), path in field_paths(ddtree.body))
            else:
                yield from comparison.differences(without_forbidden(plain.body), without_forbidden(ddtree.body), turn)


def without_ends(body: Any) -> frozenset[str]:
    """The fields of a body that do not hang on which tokens were drawn: neither ends nor the tokens that are names.

    A response of no text has no output.
    """
    drawn = ("finish_reason.", "top_logprobs[].")
    paths = (path for path in field_paths(body) if not path.startswith(".output[]"))
    return frozenset(path for path in paths if not any(part in path for part in drawn))


def ask_shapes(url: str, shapes: Sequence[Shape]) -> list[dict[str, Answer]]:
    """All answers of one server, in order. A shape's own requests follow one another, and what prompts of different
    shapes share is cached before the first, so that an answer's cache hits are its own shape's."""
    begins = [list(text.encode()[:2]) for shape in shapes for text in (shape.subject.text, shape.subject.other)]
    known = {"input_ids": [*begins, *([USER, *one] for one in begins)], "sampling_params": {"max_new_tokens": 1}}
    send(url, "/generate", known)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(lambda shape: ask_shape(url, shape), shapes))


def ask_shape(url: str, shape: Shape) -> dict[str, Answer]:
    """One server's answers to one shape."""
    answers = {"whole": send(url, shape.endpoint.path, shape.body("whole", streamed=False))}
    if shape.is_streamed:
        answers["streamed"] = send(url, shape.endpoint.path, shape.body("streamed", streamed=True))
    return answers


_TOP_TWO: Mapping[str, dict[str, Any]] = {
    "/generate": {"return_logprob": True, "top_logprobs_num": 2, "logprob_start_len": -1},
    "/v1/completions": {"logprobs": 2},
    "/v1/chat/completions": {"logprobs": True, "top_logprobs": 2},
}


def is_near_tie(url: str, shape: Shape) -> bool:
    """True when the plain server finds the two best tokens of some step of this answer equally probable.

    Log-probabilities are those after penalties and grammars, so that the tie is that of the request itself.
    """
    if shape.endpoint.path not in _TOP_TWO:
        return False
    body = shape.body("tie", streamed=False) | _TOP_TWO[shape.endpoint.path]
    answer = send(url, shape.endpoint.path, body).body
    return any(abs(first - second) <= NEAR_TIE for first, second, *_ in _best(answer))


def _best(body: Any) -> Iterator[list[float]]:
    """The log-probabilities of each step that has two or more, the highest first."""
    for one in body if isinstance(body, list) else [body]:
        steps = [[entry[0] for entry in step] for step in one.get("meta_info", {}).get("output_top_logprobs") or []]
        for choice in one.get("choices", []):
            logprobs = choice.get("logprobs") or {}
            steps += [[entry["logprob"] for entry in step["top_logprobs"]] for step in logprobs.get("content") or []]
            steps += [list((step or {}).values()) for step in logprobs.get("top_logprobs") or []]
        for step in steps:
            known = sorted((value for value in step if value is not None), reverse=True)
            if len(known) > 1:
                yield known


def said(body: Any) -> Any:
    """What a body says, laid out alike for a stream and a whole answer: texts, ends, tool calls, log-probabilities.

    A stream of an OpenAI endpoint leaves out fields that are null in a whole answer, and says the rest in other
    places. The second request of a shape finds more of its prompt in the cache.
    """
    if isinstance(body, list):
        return [said(one) for one in body]
    if "choices" not in body and "output" not in body and "meta_info" not in body:
        return body  # an error
    if "meta_info" in body:
        meta = {name: value for name, value in body["meta_info"].items() if not name.startswith("cached_tokens")}
        return {"text": body["text"], "output_ids": body["output_ids"], "meta_info": meta}
    if "output" in body:
        return {name: body[name] for name in ("output", "status", "incomplete_details", "error")}
    choices = []
    for choice in body["choices"]:
        message = choice.get("message") or {}
        calls = [call["function"] for call in message.get("tool_calls") or []]
        choices.append(
            {
                "index": choice["index"],
                "text": choice.get("text") or message.get("content") or "",
                "reasoning": message.get("reasoning_content") or "",
                "calls": [(call["name"], call["arguments"]) for call in calls],
                "finish_reason": choice["finish_reason"],
                "matched_stop": choice.get("matched_stop"),
                "logprobs": choice.get("logprobs"),
            }
        )
    return choices
