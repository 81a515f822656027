"""What a cold server drafts and accepts behind a sequence of tokens: the measure for rounds on reused keys and values.

Greedy rounds in float32 are a function of the committed tokens and the root, so a round on another server, whatever its
context was made of, has to draft and accept what this one does: wrong keys of the drafter leave tokens right and cost
rounds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.e2e.asking import ask, rounds_of
from tests.e2e.servers import Server

BLOCK_SIZE = 8
"""Of the embedded drafter: no round commits more tokens, so one that has as many left is not cut short by an end."""


@dataclass(frozen=True)
class Round:
    """A request's part in a round: the tokens before it, its tree, and how many tokens it committed."""

    prefix_len: int
    tree: tuple[int, ...]  # tokens of the nodes, root first
    parents: tuple[int, ...]  # of the nodes; -1 for the root and for padding
    commit_len: int

    def agreed(self, answer: Sequence[int]) -> int:
        """How many tokens a target commits that chooses `answer` behind the root, as many as there are."""
        children = {
            (parent, token): node for node, (parent, token) in enumerate(zip(self.parents, self.tree, strict=True))
        }
        node: int | None = 0
        for place, token in enumerate(answer):
            node = children.get((node, token))
            if node is None:
                return place + 1
        return len(answer)


@dataclass
class RoundOracle:
    """Asks a server that caches no prefix."""

    server: Server
    _known: dict[tuple[int, ...], Round] = field(default_factory=dict)
    _count: itertools.count[int] = field(default_factory=itertools.count)

    def rounds_after(self, prompt: Sequence[int], answer: Sequence[int], prefix_lens: Sequence[int]) -> list[Round]:
        """The rounds with so many tokens of prompt and greedy answer before them, whose roots are the next tokens.

        Most are rounds of one cold run. Where a prefill gave a token in between, rounds begin elsewhere, and each of
        these is asked for by a prompt of its own.
        """
        tokens = (*prompt, *answer)
        self._ask([tuple(prompt)], len(answer) + BLOCK_SIZE)
        self._ask([tokens[:length] for length in prefix_lens if tokens[:length] not in self._known], 1 + BLOCK_SIZE)
        return [self._known[tokens[:length]] for length in prefix_lens]

    def round_behind(self, tokens: Sequence[int], **sampling: Any) -> Round:
        """The first round of a request with this prompt, whose root is the token that its prefill gave."""
        request_id = f"oracle-{next(self._count)}"
        ask(self.server.url, tokens, 1 + BLOCK_SIZE, body={"rid": request_id}, **sampling)
        return rounds_by_request(self.server)[request_id][0]

    def _ask(self, prompts: Sequence[tuple[int, ...]], max_new_tokens: int) -> None:
        new = {prompt: f"oracle-{next(self._count)}" for prompt in dict.fromkeys(prompts)}
        answers = {
            prompt: ask(self.server.url, prompt, max_new_tokens, ignore_eos=True, body={"rid": request_id})
            for prompt, request_id in new.items()
        }
        found = rounds_by_request(self.server) if new else {}
        for prompt, request_id in new.items():
            tokens = (*prompt, *answers[prompt]["output_ids"])
            for one in found[request_id]:
                if one.prefix_len + BLOCK_SIZE < len(tokens):
                    self._known[tokens[: one.prefix_len]] = one


def rounds_by_request(server: Server) -> dict[str, list[Round]]:
    """All rounds so far, in order, by the request's id."""
    found: dict[str, list[Round]] = {}
    for line in rounds_of(server.trace):
        for row, request_id in enumerate(line["request_ids"]):
            found.setdefault(request_id, []).append(part_of(line, row))
    return found


def part_of(line: dict[str, Any], row: int) -> Round:
    """One request's part in a line of the trace."""
    tree, parents = (tuple(line[name][row]) for name in ("token_ids", "parents"))
    return Round(line["prefix_lens"][row], tree, parents, line["commit_lens"][row])
