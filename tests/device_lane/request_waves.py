"""A batch of requests that ask for different things: each is served beside the others, and beside plain ones."""

from __future__ import annotations

from dataclasses import replace

from tests.core.plain_penalties import Asked as Penalties
from tests.device_lane.references import Asked
from tests.device_lane.scenes import WAVE_APART_S, Check, Chooser, Sent

FLAGS = (
    *("--enable-return-hidden-states", "--enable-custom-logit-processor"),
    # With a parser streams come token by token.
    *("--reasoning-parser", "qwen3", "--enable-strict-thinking"),
)
"""Of a server that is asked for all kinds."""
FAVOURED = ((5, 2.0), (9, -3.0), (20, 1.5))


def of_every_kind(chooser: Chooser) -> list[Sent]:
    """Greedy requests, whose answers differ from plain ones inside a path, beside draws; three join later.

    Draws are hot: from flat laws a draw of the best is far off, so that a few tokens tell.
    """

    def biased(asked: Asked) -> Asked:
        return replace(asked, bias=FAVOURED)

    def thoughtful(asked: Asked) -> Asked:
        return replace(asked, thoughts=3)

    def in_pairs(asked: Asked) -> Asked:
        return replace(asked, pairs=True)

    def processed(asked: Asked) -> Asked:
        return replace(asked, processed=True)

    penalties = Penalties(0.6, 0.4, 1.3, 10)
    return [
        Sent(chooser.changed_inside_a_path(5, 9, biased), logprobs=True, streamed=True),
        Sent(chooser.penalized(4, 12, penalties), states=True),
        Sent(chooser.find(6, 7), logprobs=True),
        Sent(chooser.drawn(7, 12, temperature=4.0, top_k=8), check="law", supports=True),
        Sent(chooser.drawn(9, 14, temperature=2.5, top_k=6), check="law", supports=True, after_s=WAVE_APART_S / 2),
        Sent(chooser.changed_inside_a_path(8, 8, thoughtful), logprobs=True),
        Sent(chooser.find(5, 10, in_pairs), after_s=WAVE_APART_S / 2),
        Sent(chooser.changed_inside_a_path(7, 10, processed), after_s=WAVE_APART_S / 2),
    ]


def of_every_kind_in_chunks(chooser: Chooser) -> list[Sent]:
    """The same without processors, which SGLang calls for each chunk of a prompt, without effect but on their state."""
    return [sent for sent in of_every_kind(chooser) if not sent.asked.processed]


def few_by_far(chooser: Chooser) -> list[Sent]:
    """Three that lead by far: where activations are rounded, the last bit of one may move its logits."""
    blurred = replace(chooser.reference, noise=FAR)

    def leads(asked: Asked) -> Asked | None:
        is_far = blurred.expect(asked).margin > FAR and blurred.is_clear(asked, (chooser.scene.num_nodes,))
        return asked if is_far else None

    check: Check = "tokens" if chooser.scene.budget is None else "rounds"
    return [Sent(chooser.find(length, tokens, leads), check=check) for length, tokens in ((4, 6), (6, 8), (11, 9))]


FAR = 0.1
"""Logits. A step of 8 bits moves an activation by a 127th of its row's largest, or a float by a 16th of itself, and a
logit by less."""
