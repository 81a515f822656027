"""Text from tokens, one at a time: only whole characters, and no text that may still become part of a stop string.

The text is kept beside the answer and not in a replica, so that a character or a stop string may straddle the cut
between two replicas. The cost of a token does not grow with the answer.

The rules are SGLang's: `DetokenizerManager.trim_matched_stop` (sglang/srt/managers/detokenizer_manager.py) leaves the
stop token and the stop string out unless `no_stop_trim`; `Req._check_str_based_finish` (managers/schedule_batch.py)
looks for stop strings in the text with special tokens, whether or not the client sees those, and takes the first of the
request's list that it finds. Two differences make this stricter. SGLang looks at the last few tokens only, as many as
the stop string usually has, and misses one that the model spelt in smaller pieces. SGLang holds back whole outputs;
this holds back exactly the text that may begin a stop string.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from workers.answers.protocol import FinishReason

# (token ids, skip_special_tokens) -> their text.
Decode = Callable[[Sequence[int], bool], str]

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A character has at most four bytes, so more than this many tokens without text cannot complete one.
MAX_PENDING = 8


class IncrementalText:
    """Decodes token by token; the pieces add up to what decoding all tokens at once gives.

    Some decoders treat the first token differently, so a token is decoded together with the ones before it whose text
    is out, and the difference is new. A token costs two decodes of a few tokens. (`tokenizers.decoders.DecodeStream`
    works for one kind of tokenizer only, and cannot say what it still holds at the end.)

    Args:
        decode: text of some token ids.
        context: the token ids before the first one (the end of the prompt); their text is not part of the result.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], context: Sequence[int] = ()) -> None:
        self._decode = decode
        self._pending: list[int] = []
        self.held = ""  # text of the pending tokens, whose end may still change
        self._advance(list(context))

    def push(self, token_id: int) -> str:
        """The characters that this token completes, often none."""
        self._pending.append(token_id)
        whole = self._decode(self._context + self._pending)
        new = whole[len(self._context_text) :]
        if new and not new.endswith(REPLACEMENT):
            return self._release(len(self._pending), new)
        self.held = new
        if len(self._pending) <= MAX_PENDING:
            return ""
        if whole == self._context_text:
            # Special tokens that are left out of the text. Forgetting them changes nothing and bounds the cost.
            del self._pending[0]
            return ""
        return self._release_invalid(whole)

    def flush(self) -> str:
        """The text that is still held, incomplete characters as the tokenizer writes them."""
        return self._release(len(self._pending), self.held)

    def _release_invalid(self, whole: str) -> str:
        """Release bytes that cannot become a character any more, apart from the last few tokens."""
        for cut in range(len(self._pending) - 1, len(self._pending) - 5, -1):
            left = self._decode(self._context + self._pending[:cut])
            right = self._decode(self._pending[cut:])
            if left + right == whole:
                text = self._release(cut, left[len(self._context_text) :])
                self.held = right
                return text
        return ""

    def _release(self, num_tokens: int, text: str) -> str:
        done, self._pending = self._pending[:num_tokens], self._pending[num_tokens:]
        if done:
            self._advance(done)
        self.held = ""
        return text

    def _advance(self, context: list[int]) -> None:
        self._context = context
        self._context_text = self._decode(context) if context else ""


def stop_token_ids(sampling: Mapping[str, Any], eos_token_ids: frozenset[int]) -> frozenset[int]:
    """Tokens that end an answer; `ignore_eos` switches off the request's own too (Req._check_token_based_finish)."""
    if sampling.get("ignore_eos"):
        return frozenset()
    return eos_token_ids | frozenset(sampling.get("stop_token_ids") or ())


@dataclass(frozen=True)
class TextRules:
    """What a request asks of its text.

    Attributes:
        stop: strings that end the answer.
        no_stop_trim: keep the stop string or stop token in the text.
        skip_special_tokens: leave special tokens out of the text.
        silent_token_ids: tokens that leave no text if they end the answer.
    """

    stop: tuple[str, ...] = ()
    no_stop_trim: bool = False
    skip_special_tokens: bool = True
    silent_token_ids: frozenset[int] = frozenset()

    @classmethod
    def of(
        cls,
        sampling: Mapping[str, Any],
        eos_token_ids: frozenset[int] = frozenset(),
        spoken_token_ids: frozenset[int] = frozenset(),
    ) -> TextRules:
        """From SGLang's sampling parameters.

        Args:
            sampling: by SGLang's names; a missing or None entry has SGLang's default.
            eos_token_ids: the model's end tokens.
            spoken_token_ids: end tokens that a parser needs to see (`tool_close_token_ids` in SGLang).
        """
        stop = sampling.get("stop") or ()
        no_trim = bool(sampling.get("no_stop_trim"))
        skip = sampling.get("skip_special_tokens")
        return cls(
            # With an empty stop string SGLang ends the answer at its first token, so the replica reports that itself.
            stop=tuple(string for string in ([stop] if isinstance(stop, str) else stop) if string),
            no_stop_trim=no_trim,
            skip_special_tokens=True if skip is None else bool(skip),
            silent_token_ids=frozenset() if no_trim else stop_token_ids(sampling, eos_token_ids) - spoken_token_ids,
        )


class AnswerText:
    """The text of one answer as it grows, and the search for its stop strings.

    Args:
        decode: text of some token ids, with or without special tokens.
        rules: what the request asked for.
        context: the prompt's last tokens. SGLang decodes the first token after them, five by default
            (INIT_INCREMENTAL_DETOKENIZATION_OFFSET), which keeps the space before a first word.
    """

    def __init__(self, decode: Decode, rules: TextRules, context: Sequence[int] = ()) -> None:
        self._rules = rules
        self._shown = IncrementalText(lambda ids: decode(ids, rules.skip_special_tokens), context)
        # Stop strings are also found in special tokens, shown or not.
        self._searched = IncrementalText(lambda ids: decode(ids, False), context)
        self._search_tail = ""
        self._end_token: int | None = None  # held back until it is known whether it ends the answer
        self._withheld = ""  # may begin a stop string
        self._parts: list[str] = []

    @property
    def text(self) -> str:
        """The text that the client may see. Joined only when asked for, so that a token's cost stays constant."""
        if len(self._parts) > 1:
            self._parts = ["".join(self._parts)]
        return self._parts[0] if self._parts else ""

    def push(self, token_id: int) -> FinishReason | None:
        """Add a token; returns SGLang's finish reason if it completes a stop string, else None."""
        piece = self._shown.push(self._end_token) if self._end_token is not None else ""
        self._end_token = token_id if token_id in self._rules.silent_token_ids else None
        piece += "" if self._end_token is not None else self._shown.push(token_id)
        self._withheld += piece
        matched = self._find_stop(token_id)
        if matched is None:
            self._show(len(self._withheld) - self._num_suspect())
            return None
        return {"type": "stop", "matched": matched}

    def finish(self, reason: FinishReason) -> None:
        """Complete the text; no token may follow."""
        matched = reason.get("matched")
        if self._end_token is not None and matched != self._end_token:
            self._withheld += self._shown.push(self._end_token)
        self._withheld += self._shown.flush()
        if isinstance(matched, str) and (start := self._withheld.find(matched)) >= 0:
            self._withheld = self._withheld[: start + len(matched) if self._rules.no_stop_trim else start]
        self._show(len(self._withheld))

    def _find_stop(self, token_id: int) -> str | None:
        if not self._rules.stop:
            return None
        text = self._search_tail + self._searched.push(token_id)
        keep = max(map(len, self._rules.stop)) - 1
        # A token may complete a stop string and begin a character that is still incomplete.
        window, self._search_tail = text + self._searched.held, text[len(text) - min(keep, len(text)) :]
        return next((stop for stop in self._rules.stop if stop in window), None)

    def _num_suspect(self) -> int:
        """Length of the longest end of the withheld text with which a stop string begins."""
        text = self._withheld
        longest = max((len(stop) - 1 for stop in self._rules.stop), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._rules.stop):
                return length
        return 0

    def _show(self, length: int) -> None:
        self._parts.append(self._withheld[:length])
        self._withheld = self._withheld[length:]
