"""The waves that most scenes are made of: greedy and seeded requests, ends, aborts, and what else they may ask for."""

from __future__ import annotations

from dataclasses import replace

from tests.device_lane.references import Asked
from tests.device_lane.scenes import WAVE_APART_S, Chooser, Sent, Wave


def staggered(chooser: Chooser) -> list[Sent]:
    """Five greedy requests at once, above the captured sizes; they end one by one, so batches shrink to padded ones."""
    sizes = ((3, 4), (5, 6), (7, 8), (9, 10), (12, 12))
    return [Sent(chooser.find(length, tokens)) for length, tokens in sizes]


def few(chooser: Chooser) -> list[Sent]:
    """Three greedy requests, in a padded graph of four."""
    return [Sent(chooser.find(length, tokens)) for length, tokens in ((4, 6), (6, 8), (11, 9))]


def few_of_chains(chooser: Chooser) -> list[Sent]:
    """The same where trees are chains, which the reference's rounds are not."""
    return [replace(sent, check="tokens") for sent in few(chooser)]


def pair_of_requests(chooser: Chooser) -> list[Sent]:
    """Two greedy requests at a captured size."""
    return [Sent(chooser.find(length, tokens)) for length, tokens in ((5, 8), (8, 9))]


def one(chooser: Chooser) -> list[Sent]:
    """One greedy request."""
    return [Sent(chooser.find(6, 6))]


def greedy_by_top_k(chooser: Chooser) -> list[Sent]:
    """Greedy and sampling with one candidate in one batch: the sampler runs, and the tokens are known."""
    return [
        Sent(chooser.find(4, 6)),
        Sent(chooser.sampled(6, 7, seed=1, top_k=1)),
        Sent(chooser.sampled(8, 5, seed=2, top_k=1)),
    ]


def seeded(chooser: Chooser) -> list[Sent]:
    """Greedy and seeded draws in one batch, with log-probabilities."""
    return [
        Sent(chooser.sampled(5, 7, seed=11), logprobs=True),
        Sent(chooser.find(4, 6), logprobs=True),
        Sent(chooser.sampled(7, 9, seed=12), logprobs=True),
    ]


def with_states(chooser: Chooser) -> list[Sent]:
    """Hidden states of every token in one batch with a request that asks for none; one answer ends inside a path."""
    return [
        Sent(chooser.find(6, 9), states=True),
        Sent(chooser.find(8, 5)),
        Sent(chooser.ending_inside_a_path(5), states=True),
    ]


def with_experts(chooser: Chooser) -> list[Sent]:
    """Routed experts of three requests, beside one that asks for none."""
    sizes = ((6, 9), (4, 7), (9, 12))
    return [*(Sent(chooser.find(*size), experts=True) for size in sizes), Sent(chooser.find(8, 5))]


def with_adapters(chooser: Chooser) -> list[Sent]:
    """The base model and each adapter twice in one batch, which shrinks as they end."""
    names = ("", *chooser.reference.adapters)
    lengths = ((4, 6), (6, 8), (8, 7), (5, 9), (7, 10), (9, 5))
    return [
        Sent(chooser.with_adapter(names[index % len(names)], length, tokens))
        for index, (length, tokens) in enumerate(lengths)
    ]


def few_adapters(chooser: Chooser) -> list[Sent]:
    """The base model and each adapter, in a padded graph of four."""
    sizes = zip(("", *chooser.reference.adapters), ((4, 6), (6, 8), (11, 9)), strict=True)
    return [Sent(chooser.with_adapter(name, *size)) for name, size in sizes]


def by_the_first_adapter(wave: Wave) -> Wave:
    """The same, with an adapter."""

    def with_it(chooser: Chooser) -> list[Sent]:
        chooser.adapter = next(iter(chooser.reference.adapters))
        try:
            return wave(chooser)
        finally:
            chooser.adapter = ""

    return with_it


def by_its_head(wave: Wave) -> Wave:
    """The same, of requests whose rounds each show whether the drafter's head had all that it reads."""

    def with_it(chooser: Chooser) -> list[Sent]:
        chooser.unlike = chooser.reference.with_wrong_heads()
        try:
            return wave(chooser)
        finally:
            chooser.unlike = ()

    return with_it


def prefix_of_another_adapter(chooser: Chooser) -> list[Sent]:
    """A prompt of the wave before, with an adapter that did not write its keys: no hit, or a wrong answer."""
    used = chooser.with_adapter("", 10, 6)
    others = [replace(used, adapter=name) for name in chooser.reference.adapters]
    clear = [asked for asked in others if chooser.reference.is_clear(asked, (chooser.scene.num_nodes,))]
    return [Sent(used), *(Sent(asked, after_s=WAVE_APART_S) for asked in clear)]


def ends(chooser: Chooser) -> list[Sent]:
    """Ends in the middle of an accepted path, by a stop token, the end token and the limit, in a tree of three nodes.

    One decodes without a tree, and one is answered without a token.
    """
    return [
        Sent(chooser.ending_inside_a_path(5)),
        Sent(chooser.ending_inside_a_path(7, with_eos=True)),
        Sent(chooser.limited_inside_a_path(6, budget=2)),
        Sent(chooser.find(6, 7, lambda asked: replace(asked, budget=0))),
        Sent(chooser.find(5, 0)),
    ]


def processed(chooser: Chooser) -> list[Sent]:
    """Requests with a custom logit processor beside one without, greedy and sampled, and one that comes later."""

    def by_processor(asked: Asked) -> Asked:
        return replace(asked, processed=True)

    def drawn(asked: Asked) -> Asked:
        return replace(asked, processed=True, temperature=1.0, top_k=1, seed=3)

    return [
        Sent(chooser.find(5, 12, by_processor), logprobs=True),
        Sent(chooser.find(6, 7)),
        Sent(chooser.find(8, 5, drawn)),
        Sent(chooser.find(7, 9, by_processor), after_s=WAVE_APART_S),
    ]


def under_grammars(chooser: Chooser) -> list[Sent]:
    """Two under a grammar, one of them to its end, and two without, with log-probabilities."""

    def in_pairs(asked: Asked) -> Asked:
        return replace(asked, pairs=True)

    def to_its_end(asked: Asked) -> Asked | None:
        asked = replace(asked, pairs=True, ignore_eos=False)
        return asked if 6 <= len(chooser.reference.expect(asked).output_ids) < asked.max_new_tokens else None

    def behind_its_end(asked: Asked) -> Asked | None:
        asked = replace(asked, pairs=True)
        return asked if 4 <= len(chooser.reference.expect(asked).output_ids) < asked.max_new_tokens else None

    return [
        Sent(chooser.find(5, 12, in_pairs), logprobs=True),
        Sent(chooser.find(7, 14, to_its_end)),
        Sent(chooser.find(4, 8)),
        Sent(chooser.find(6, 14, behind_its_end)),
    ]


def aborted(chooser: Chooser) -> list[Sent]:
    """One is aborted in the middle; its neighbours go on."""
    return [
        Sent(chooser.find(5, 40), check="prefix", aborted=True),
        Sent(chooser.find(6, 8)),
        Sent(chooser.find(9, 9)),
    ]


def changing_widths(chooser: Chooser) -> list[Sent]:
    """Requests that come and go, so that the number of nodes of a round does; the last ones want theirs as it is."""

    def as_it_is(asked: Asked) -> Asked:
        return replace(asked, budget=3, fixed=True)

    return [
        Sent(chooser.find(length, tokens, wanted), check="tokens", after_s=after)
        for length, tokens, after, wanted in (
            (5, 12, 0.0, None),
            (6, 5, 0.0, None),
            (4, 6, WAVE_APART_S, None),
            (7, 4, WAVE_APART_S, as_it_is),
            (3, 3, 0.0, as_it_is),
        )
    ]
