"""What a server is asked for, so that it serves rounds of a certain number of requests and nodes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

KEY = "ddtree_costs"
"""Of the table in each of `internal_states` in `/server_info`."""
MOST_REQUESTS = 32
"""At once, unless somebody asks for more."""
MOST_TOKENS = 256
"""Of one answer."""
BESIDE = 2
"""Rounds of a batch that give no sample: where scheduling overlaps, the first two, as they begin behind a prefill."""
NEUTRAL = {
    **dict.fromkeys(("stop", "regex", "json_schema", "ebnf", "structural_tag")),
    **{"min_new_tokens": 0, "frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0},
}
"""Sampling parameters that cost time, where a server has others as its default (`--preferred-sampling-params`)."""
WORDS = ("river", "stone", "winter", "paper", "garden", "engine", "music", "window", "copper", "letter", "forest")


class Batches:
    """Bodies of `/generate`, and what answers say of their rounds."""

    def __init__(self, words: int) -> None:
        """`words` of a prompt, about as many tokens."""
        self._words = words
        self._tokens_per_round: dict[int, float] = {1: 1.0}
        self._asked = 0

    def body(self, size: int, width: int, rounds: int) -> dict[str, Any]:
        """A batch of `size` answers that takes about `rounds` measured rounds of `width` nodes, if all of them run
        together.
        """
        tokens = 1 + math.ceil((rounds + BESIDE) * self.tokens_of(width))
        return {
            "text": [self._prompt() for _ in range(size)],
            "sampling_params": {
                **NEUTRAL,
                "temperature": 0.0,
                "max_new_tokens": min(tokens, MOST_TOKENS),
                "ignore_eos": True,
                "custom_params": {"ddtree": {"budget": width - 1, "adapt": False}},
            },
        }

    def rounds_of(self, width: int, answers: Sequence[Mapping[str, Any]]) -> int:
        """Measured rounds that the whole batch was in; what a round of `width` nodes emits is learned by the way."""
        metas = [answer["meta_info"] for answer in answers]
        made = [(int(meta["completion_tokens"]) - 1, int(meta.get("spec_verify_ct") or 0)) for meta in metas]
        rounds = [verified or decoded for decoded, verified in made]
        self._tokens_per_round[width] = max(1.0, sum(decoded for decoded, _ in made) / max(sum(rounds), 1))
        return max(min(rounds) - BESIDE, 0)

    def tokens_of(self, width: int) -> float:
        """What a round of `width` nodes emits of a request; a guess before the first answer."""
        return self._tokens_per_round.get(width, _first_guess(width))

    def _prompt(self) -> str:
        """Another text each time, so that no cache has it."""
        self._asked += 1
        words = (WORDS[(self._asked * 7 + place * (1 + self._asked % 5)) % len(WORDS)] for place in range(self._words))
        return f"{self._asked}: " + " ".join(words) + ". A short story with these words:"


def _first_guess(width: int) -> float:
    """Tokens of a drafted round before the first answer: rather too few than too many, as rounds take time."""
    return 1.0 + 0.4 * math.log2(width)


def sizes_up_to(most: int) -> tuple[int, ...]:
    """1, 2, 4, 8, ... and the most."""
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    return (*doubled, most)
