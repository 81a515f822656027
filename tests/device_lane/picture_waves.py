"""Waves with pictures: a tree behind one stands at other positions than its indices say, in each request at others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from tests.device_lane.context_waves import SMALLER
from tests.device_lane.references import Asked
from tests.device_lane.scenes import Chooser, Sent
from tests.support.image_pair import PICTURE, picture

SQUARE, OTHER, WIDE = picture(4, 4, 1), picture(4, 4, 2), picture(6, 3, 3)


def pictures_at_once(chooser: Chooser) -> list[Sent]:
    """One with a picture and one with two, which allows itself fewer nodes, beside one of words alone."""

    def two(asked: Asked) -> Asked:
        before, between, after = asked.prompt[:2], asked.prompt[2:4], asked.prompt[4:]
        prompt = (*before, *PICTURE, *between, *PICTURE, *after)
        return replace(asked, prompt=prompt, pictures=(WIDE, SQUARE), budget=SMALLER)

    chooser.begun = [chooser.find(6, 9, _behind_words(SQUARE)), chooser.find(7, 7, two), chooser.find(9, 8)]
    return [Sent(one, cached=0) for one in chooser.begun]


def behind_pictures(chooser: Chooser) -> list[Sent]:
    """Two go on behind the texts with pictures of the wave before; one has another picture in such a text's place."""
    first, second, _ = chooser.begun
    other = replace(first, pictures=(OTHER,))
    further = [_longer(chooser, one) for one in (first, second)]
    return [
        *(Sent(chooser.find(3, 6, longer), cached=kept) for longer, kept in further),
        Sent(other, cached=first.prompt.index(PICTURE[0]) + 1),
    ]


def behind_their_prompts(chooser: Chooser) -> list[Sent]:
    """The same behind the prompts alone, which is all that a server that only prefills has of those texts."""
    first, second, _ = chooser.begun
    further = [_longer(chooser, one, answered=False) for one in (first, second)]
    return [
        *(Sent(chooser.find(3, 6, longer), cached=kept) for longer, kept in further),
        Sent(replace(first, pictures=(OTHER,)), cached=first.prompt.index(PICTURE[0]) + 1),
    ]


def _behind_words(shown: str) -> Callable[[Asked], Asked]:
    """A picture behind the third word."""

    def with_it(asked: Asked) -> Asked:
        return replace(asked, prompt=(*asked.prompt[:3], *PICTURE, *asked.prompt[3:]), pictures=(shown,))

    return with_it


def _longer(chooser: Chooser, one: Asked, *, answered: bool = True) -> tuple[Callable[[Asked], Asked], int]:
    """What goes on behind a text, or behind its prompt alone, and how many of its places the prefix cache has."""
    answer = chooser.reference.expect(one).output_ids if answered else ()
    text = (*one.prompt, *answer)
    places = len(chooser.reference.seen(one).expanded(list(text))) - len(answer[-1:])

    def behind(asked: Asked) -> Asked:
        return replace(asked, prompt=(*text, *asked.prompt), pictures=one.pictures)

    return behind, places
