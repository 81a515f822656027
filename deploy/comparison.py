"""DDTREE beside plain decoding on one prompt: both measured in turns, and their answers compared.

Standard library only. One prompt shows how it works; numbers to rely on come from `python -m benchmarks decode`.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from deploy.chat_client import ChatAnswer, stream_chat

RUNS = 2
WARM_UP_TOKENS = 16


@dataclass(frozen=True)
class Comparison:
    """Answers of the plain and of the DDTREE server to the same prompt, `RUNS` of each server, after a warm-up."""

    plain: tuple[ChatAnswer, ...]
    ddtree: tuple[ChatAnswer, ...]

    @property
    def identical(self) -> bool:
        """True when every answer of both servers is the same text."""
        return len({answer.text for answer in (*self.plain, *self.ddtree)}) == 1

    def report(self, lossless: bool) -> str:
        """The lines to show; `lossless` when the number format promises equal text (float32)."""
        plain_rate = fmean(answer.tokens_per_s for answer in self.plain)
        tree_rate = fmean(answer.tokens_per_s for answer in self.ddtree)
        accept_length = fmean(answer.accept_length or 1.0 for answer in self.ddtree)
        ratio = f"{tree_rate / plain_rate:.2f}x" if plain_rate else "-"
        return "\n".join(
            (
                f"{'':<16}{'tokens/s':>10}{'accept length':>16}",
                f"{'plain decoding':<16}{plain_rate:>10.1f}{1.0:>16.2f}",
                f"{'DDTREE':<16}{tree_rate:>10.1f}{accept_length:>16.2f}    {ratio} plain decoding",
                f"(mean of {RUNS} runs on this prompt; accept length = tokens per round, bonus included)",
                self._verdict(lossless),
            )
        )

    def _verdict(self, lossless: bool) -> str:
        if self.identical:
            return "Both answers are identical, character by character."
        if lossless:
            return "THE ANSWERS DIFFER, which float32 must not show: please report it with this prompt."
        return "The answers differ: 16-bit formats may round near-ties differently; float32 gives equal ones."


def compare(plain_url: str, ddtree_url: str, prompt: str, max_tokens: int) -> Comparison:
    """Measure both servers in turns, so that what slows the machine for a moment slows both."""
    messages = [{"role": "user", "content": prompt}]
    urls = (plain_url, ddtree_url)
    for url in urls:
        stream_chat(url, messages, min(max_tokens, WARM_UP_TOKENS))
    rounds = [[stream_chat(url, messages, max_tokens) for url in urls] for _ in range(RUNS)]
    plain, ddtree = zip(*rounds, strict=True)
    return Comparison(tuple(plain), tuple(ddtree))


def describe_answer(answer: ChatAnswer) -> str:
    """One line about one answer."""
    accepted = f", accept length {answer.accept_length:.2f}" if answer.accept_length is not None else ""
    return (
        f"[{answer.completion_tokens} tokens, first after {answer.first_token_s:.2f} s, "
        f"then {answer.tokens_per_s:.1f} tokens/s{accepted}]"
    )
