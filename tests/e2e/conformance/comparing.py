"""Compare two bodies field by field: everything but what is named, floats within a tolerance."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

FLOAT_TOLERANCE = 5e-4
"""Of log-probabilities, in nats, or 2e-5 of them: a batch's shape decides in which order float32 sums are added."""

NOT_COMPARED = {
    "id": "drawn anew for each request",
    "rid": "drawn anew for each request",
    "request_id": "drawn anew for each request",
    "call_id": "drawn anew for each tool call",
    "item_id": "drawn anew for each item of a response",
    "created": "the time",
    "created_at": "the time",
    "completed_at": "the time",
    "modified_at": "the time",
    "e2e_latency": "a duration",
    "total_duration": "a duration",
    "request_received_ts": "the time",
    "response_sent_to_client_ts": "the time",
    "cached_tokens": "hangs on which requests are prefilled beside one another; tests/e2e/test_ends.py asks one by one",
    "cached_tokens_details": "as above",
    "spec_": "what speculation did; plain decoding has none of it",
}
"""Names of fields, or the beginnings of names that end with `_`, with the reason."""
_PREFIXES = tuple(name for name in NOT_COMPARED if name.endswith("_"))


@dataclass(frozen=True)
class Difference:
    """One value that differs; `path` without indices, so that it names a field."""

    path: str
    plain: Any
    ddtree: Any

    def __str__(self) -> str:
        return f"{self.path}: {str(self.plain)[:120]!r} became {str(self.ddtree)[:120]!r}"


@dataclass
class Comparison:
    """What was compared so far."""

    num_values: int = 0

    def differences(self, plain: Any, ddtree: Any, path: str = "") -> Iterator[Difference]:
        """Every difference of two decoded bodies."""
        if isinstance(plain, Mapping) and isinstance(ddtree, Mapping):
            for name in sorted(plain.keys() | ddtree.keys()):
                if is_compared(name):
                    yield from self.differences(
                        plain.get(name, "no such field"), ddtree.get(name, "no such field"), f"{path}.{name}"
                    )
        elif isinstance(plain, list) and isinstance(ddtree, list):
            self.num_values += 1
            if len(plain) != len(ddtree):
                yield Difference(path + "[]", f"{len(plain)} entries", f"{len(ddtree)} entries")
            for one, other in zip(plain, ddtree, strict=False):
                yield from self.differences(one, other, path if path.endswith("[]") else path + "[]")
        else:
            self.num_values += 1
            if not _same(plain, ddtree):
                yield Difference(path, plain, ddtree)


FORBIDDEN = -1e38
"""SGLang gives tokens that may not follow the lowest float as their log-probability (layers/sampler.py)."""


def without_forbidden(body: Any) -> Any:
    """The body, but which forbidden tokens fill the last ranks of the best tokens: that is left open.

    Such an entry keeps its log-probability, and loses its token.
    """
    if isinstance(body, Mapping):
        if _is_forbidden(body.get("logprob")):
            return {"logprob": body["logprob"]}
        kept = {name: without_forbidden(value) for name, value in body.items() if not _is_forbidden(value)}
        kept |= _flat_without_forbidden(body)
        return kept
    if isinstance(body, list):
        if body and _is_forbidden(body[0]) and not all(isinstance(value, float) for value in body):
            return body[:1]
        return [without_forbidden(entry) for entry in body]
    return body


def _flat_without_forbidden(body: Mapping[str, Any]) -> dict[str, Any]:
    values, name = body.get("output_top_logprobs_val_flat"), "output_top_logprobs_idx_flat"
    if not values:
        return {}
    return {name: [None if _is_forbidden(value) else at for value, at in zip(values, body[name], strict=True)]}


def _is_forbidden(value: Any) -> bool:
    return isinstance(value, float) and value <= FORBIDDEN


def is_compared(name: str) -> bool:
    """False for the names above."""
    return name not in NOT_COMPARED and not name.startswith(_PREFIXES)


def _same(plain: Any, ddtree: Any) -> bool:
    if isinstance(plain, float) and isinstance(ddtree, (float, int)) and not isinstance(ddtree, bool):
        return math.isclose(plain, ddtree, rel_tol=2e-5, abs_tol=FLOAT_TOLERANCE)
    return bool(plain == ddtree) and type(plain) is type(ddtree)


def field_paths(body: Any, path: str = "") -> frozenset[str]:
    """The fields that a body has, at any depth, without those that are not compared."""
    if isinstance(body, Mapping):
        parts = [field_paths(value, f"{path}.{name}") for name, value in body.items() if is_compared(name)]
        return frozenset({path}).union(*parts)
    if isinstance(body, list):
        return frozenset({path}).union(*(field_paths(entry, path + "[]") for entry in body))
    return frozenset({path})


def inconsistencies(body: Any) -> list[str]:
    """What an answer of `/generate` says of its length in one place and not in another."""
    if isinstance(body, list):
        return [found for one in body for found in inconsistencies(one)]
    meta, found = body["meta_info"], []
    count = meta["completion_tokens"]
    rows = ("output_token_logprobs", "output_top_logprobs", "output_token_ids_logprobs")
    lengths = {"output_ids": len(body["output_ids"])} | {name: len(meta[name]) for name in rows if meta.get(name)}
    for name, length in lengths.items():
        if length != count:
            found.append(f"{name} has {length} entries, completion_tokens is {count}")
    if "reasoning_tokens" in meta and meta["reasoning_tokens"] > count:
        found.append(f"reasoning_tokens {meta['reasoning_tokens']} is above completion_tokens {count}")
    return found
