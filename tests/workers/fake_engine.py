"""What a replica would answer, as SGLang does: it knows its own part only, and ends at strings, tokens and length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tests.workers.byte_tokenizer import END_ID, decode
from workers.answers.protocol import Attempt, TokenChunk, TokenRequest
from workers.answers.resume import DEFAULT_MAX_NEW_TOKENS

EOS = frozenset({END_ID})
PROMPT = (40, 41, 42)


def request(**sampling: object) -> TokenRequest:
    """A greedy request with these sampling parameters."""
    return TokenRequest("r", PROMPT, {"temperature": 0.0, **sampling})


@dataclass(frozen=True)
class FakeEngine:
    """Answers every prompt with the same tokens, wherever it has to go on."""

    answer: tuple[int, ...]

    def run(self, attempt: Attempt, sizes: Sequence[int] = (1,)) -> list[TokenChunk]:
        """All chunks of an attempt; `sizes` are their numbers of tokens, over and over."""
        done = attempt.input_ids[len(attempt.input_ids) - attempt.num_emitted :]
        assert done == self.answer[: len(done)], "an attempt must go on from what was emitted"
        own, reason = self._own_part(attempt)
        chunks: list[TokenChunk] = []
        at = 0
        while at < len(own) or not chunks:
            size = sizes[len(chunks) % len(sizes)]
            part = own[at : at + size]
            last = at + size >= len(own)
            chunks.append(self._chunk(attempt, at, part, reason if last else None, len(own)))
            at += size
        return chunks

    def _own_part(self, attempt: Attempt) -> tuple[tuple[int, ...], dict[str, object]]:
        rest, stops = self.answer[attempt.num_emitted :], attempt.sampling.get("stop") or ()
        limit = attempt.sampling.get("max_new_tokens", DEFAULT_MAX_NEW_TOKENS)
        for count in range(1, len(rest) + 1):
            text = decode(rest[:count], skip_special_tokens=False)
            for stop in [stops] if isinstance(stops, str) else stops:
                if stop in text:
                    return rest[:count], {"type": "stop", "matched": stop}
            ends = EOS | frozenset(attempt.sampling.get("stop_token_ids") or ())
            if rest[count - 1] in ends and not attempt.sampling.get("ignore_eos"):
                return rest[:count], {"type": "stop", "matched": rest[count - 1]}
            if limit is not None and count >= limit:
                return rest[:count], {"type": "length", "length": limit}
        return rest, {"type": "length", "length": len(rest)}

    def _chunk(
        self, attempt: Attempt, at: int, part: tuple[int, ...], reason: dict[str, object] | None, total: int
    ) -> TokenChunk:
        first = attempt.num_emitted + at
        meta: dict[str, object] = {
            "id": attempt.engine_request_id,
            "prompt_tokens": len(attempt.input_ids),
            "completion_tokens": at + len(part),
            "cached_tokens": 0 if attempt.number == 0 else len(attempt.input_ids) - 1,
            "finish_reason": reason,
        }
        if reason is not None:
            meta |= {"spec_verify_ct": total, "spec_num_correct_drafts": 0, "spec_num_proposed_drafts": 3 * total}
            meta |= {"spec_correct_drafts_histogram": [total]}
        return TokenChunk(
            attempt=attempt.number,
            first=first,
            token_ids=part,
            logprobs=tuple((-float(first + i), token, None) for i, token in enumerate(part))
            if attempt.return_logprob
            else (),
            top_logprobs=tuple([(-float(first + i), token, None)] for i, token in enumerate(part))
            if attempt.return_logprob and attempt.top_logprobs_num
            else (),
            finish_reason=reason,
            meta=meta,
        )
