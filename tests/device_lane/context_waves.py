"""Waves whose context is not made in one go: prefix hits, chunks, mixed ones, a resumption, turns of sessions; and its
end."""

from __future__ import annotations

from dataclasses import replace

from tests.core.plain_penalties import Asked as Penalties
from tests.device_lane.pairs import BOS_TOKEN, EOS_TOKEN
from tests.device_lane.references import Asked, histogram
from tests.device_lane.scenes import CONTEXT_LIMIT, WAVE_APART_S, Chooser, Sent, Wave
from tests.device_lane.sliding_drafter import WINDOW

SMALLER = 7
"""Nodes besides the root that a request of a published pair allows itself, where the server has sixteen."""
TRACKED_LEN = 64
"""Least interval of the prefix cache's states: a chunk of SGLang's prefill (fla/chunk.py)."""


def prefix_hit(chooser: Chooser) -> list[Sent]:
    """A second request that begins with the first one and its answer, once that is cached."""
    first = chooser.find(7, 6)
    answer = chooser.reference.expect(first).output_ids

    def longer(asked: Asked) -> Asked:
        return replace(asked, prompt=(*first.prompt, *answer[:-1], *asked.prompt))

    return [Sent(first), Sent(chooser.find(3, 6, longer), after_s=WAVE_APART_S)]


def past_the_window(chooser: Chooser) -> list[Sent]:
    """Three requests whose texts are longer than a layer's window from the first round on."""
    return [Sent(chooser.find(length, tokens)) for length, tokens in ((WINDOW + 3, 9), (2 * WINDOW, 12), (WINDOW, 7))]


def hits_about_the_window(chooser: Chooser) -> list[Sent]:
    """Two that begin with the text of a first one: what they add is shorter than a window, and longer than one."""
    first = chooser.find(7, 6)
    text = (*first.prompt, *chooser.reference.expect(first).output_ids[:-1])

    def longer(asked: Asked) -> Asked:
        return replace(asked, prompt=(*text, *asked.prompt))

    more = [chooser.find(length, 6, longer) for length in (3, WINDOW + 3)]
    return [Sent(first), *(Sent(asked, after_s=WAVE_APART_S) for asked in more)]


def leaves_the_device(chooser: Chooser) -> list[Sent]:
    """One whose text is kept on the host, then others that need its slots."""
    chooser.passed = chooser.find(21, 6)
    others = [Sent(chooser.find(length, 9), after_s=WAVE_APART_S) for length in (24, 27, 23)]
    return [Sent(chooser.passed), *others]


def comes_back_from_the_host(chooser: Chooser) -> list[Sent]:
    """Two that go on behind the text of the wave before, whose drafts hang on that text."""
    assert chooser.passed is not None
    return behind_a_text(chooser, (*chooser.passed.prompt, *chooser.reference.expect(chooser.passed).output_ids[:-1]))


def prompt_comes_back_from_the_host(chooser: Chooser) -> list[Sent]:
    """The same behind its prompt alone, which is all that a server that only prefills has of it."""
    assert chooser.passed is not None
    return behind_a_text(chooser, chooser.passed.prompt)


def behind_a_text(
    chooser: Chooser, text: tuple[int, ...], *, is_stored: bool = False, lengths: tuple[int, int] = (3, 5)
) -> list[Sent]:
    """Two behind a text that is no longer on the device, whose drafts hang on it; in storage, or on the host."""
    reference = chooser.reference
    forgetful = replace(reference, seen_tokens=4, page_size=1)

    def longer(asked: Asked) -> Asked | None:
        asked = replace(asked, prompt=(*text, *asked.prompt))
        rounds = [histogram(chooser.rounds(asked, of=one)) for one in (reference, forgetful)]
        return asked if rounds[0] != rounds[1] else None

    kept = len(text) // reference.page_size * reference.page_size
    first = chooser.find(lengths[0], 14, longer)

    def apart(asked: Asked) -> Asked | None:
        """The second has no more of the first one's text than both have of the wave before."""
        return None if asked.prompt[0] == first.prompt[len(text)] else longer(asked)

    second = chooser.find(lengths[1], 14, apart)
    # The first token may be that of the server's own health check, which stays on the device.
    place = {"from_storage" if is_stored else "from_host": kept - 1}
    return [Sent(first, cached=kept, **place), Sent(second, cached=kept, after_s=WAVE_APART_S / 3)]


def retracted_in_time(chooser: Chooser) -> list[Sent]:
    """Requests that do not fit the pool together, so that one is retracted, and whose rounds are known all the same."""
    return [Sent(chooser.find(length, 14, anywhere=True), check="steps") for length in (10, 9, 11, 12)]


def retracted_and_restored(chooser: Chooser) -> list[Sent]:
    """The same where its keys are kept meanwhile, so that no prefill gives it a token; two have penalties."""
    penalties = Penalties(0.5, 0.2, 1.25)
    asked = [chooser.penalized(length, 14, penalties) for length in (10, 9)]
    return [Sent(one) for one in (*asked, chooser.find(11, 14), chooser.find(12, 14))]


def three_at_two_budgets(chooser: Chooser) -> list[Sent]:
    """Three requests, two of which allow themselves fewer nodes; longer than a layer's window."""
    chooser.begun = [
        chooser.find(WINDOW + 3, 9),
        chooser.find(WINDOW, 7, _smaller),
        chooser.find(2 * WINDOW, 8, _smaller),
    ]
    return [Sent(one) for one in chooser.begun]


def three_go_on(chooser: Chooser) -> list[Sent]:
    """Three that go on where those of the wave before ended, one of which allows itself fewer nodes."""

    def behind(one: Asked, budget: int | None) -> Asked:
        text = (*one.prompt, *chooser.reference.expect(one).output_ids)
        return chooser.find(3, 6, lambda asked: replace(asked, prompt=(*text, *asked.prompt), budget=budget))

    first, second, third = chooser.begun
    page = chooser.reference.page_size
    # The last token's keys are the next round's to write. What ends within a page is not kept.
    kept = [(len(one.prompt) + one.max_new_tokens - 1) // page * page for one in chooser.begun]
    asked = (behind(first, SMALLER), behind(second, None), behind(third, None))
    return [Sent(one, cached=length, goes_on=True) for one, length in zip(asked, kept, strict=True)]


def three_past_a_tracked_length(chooser: Chooser) -> list[Sent]:
    """One whose answer passes the length at which a state is kept, beside two that allow themselves fewer nodes."""
    chooser.passed = chooser.find(TRACKED_LEN - 5, 12)
    others = (chooser.find(5, 9, _smaller), chooser.find(8, 6, _smaller))
    return [Sent(one, cached=0) for one in (chooser.passed, *others)]


def three_resume(chooser: Chooser) -> list[Sent]:
    """Two go on behind the kept state, one of which allows itself fewer nodes, beside one that begins anew."""
    first, second = resumes_at_a_tracked_length(chooser)
    smaller = chooser.find(2, 6, lambda asked: _smaller(_resumed(chooser, asked)))
    return [replace(first, asked=smaller), second, Sent(chooser.find(6, 5), cached=0)]


def _smaller(asked: Asked) -> Asked:
    return replace(asked, budget=SMALLER)


def _resumed(chooser: Chooser, asked: Asked) -> Asked:
    assert chooser.passed is not None
    text = (*chooser.passed.prompt, *chooser.reference.expect(chooser.passed).output_ids)
    return replace(asked, prompt=(*text[: TRACKED_LEN + 3], *asked.prompt))


def passes_a_tracked_length(chooser: Chooser) -> list[Sent]:
    """One whose answer passes the length at which the prefix cache keeps a state, beside one that does not."""
    chooser.passed = chooser.find(TRACKED_LEN - 5, 12)
    return [Sent(chooser.passed, cached=0), Sent(chooser.find(5, 9), cached=0)]


def prompt_passes_a_tracked_length(chooser: Chooser) -> list[Sent]:
    """One whose prompt passes that length, then one that begins with it."""
    first = chooser.find(TRACKED_LEN + 5, 8)

    def begins_so(asked: Asked) -> Asked:
        return replace(asked, prompt=(*first.prompt, *asked.prompt))

    second = chooser.find(3, 6, begins_so)
    return [Sent(first, cached=0), Sent(second, cached=TRACKED_LEN, after_s=WAVE_APART_S)]


def resumes_at_a_tracked_length(chooser: Chooser) -> list[Sent]:
    """Two that begin with the text of the wave before, as far as it goes behind the kept state."""

    def resumed(asked: Asked) -> Asked:
        return _resumed(chooser, asked)

    return [Sent(chooser.find(length, tokens, resumed), cached=TRACKED_LEN) for length, tokens in ((2, 7), (3, 5))]


def fills_the_device(chooser: Chooser) -> list[Sent]:
    """Others that need the slots of the texts before, one by one."""
    return [Sent(chooser.find(length, 9), after_s=WAVE_APART_S * index) for index, length in enumerate((44, 47, 43))]


def from_the_host(wave: Wave) -> Wave:
    """The first of its requests, whose text and state are on the host by then, and whose drafts hang on that text."""

    def resumes(chooser: Chooser) -> list[Sent]:
        chooser.unlike = (replace(chooser.reference, seen_tokens=4, page_size=1),)
        try:
            first, *_ = wave(chooser)
        finally:
            chooser.unlike = ()
        assert first.cached is not None
        return [replace(first, from_host=first.cached - 1)]

    return resumes


def ends_about_a_tracked_length(chooser: Chooser) -> list[Sent]:
    """Two that a stop token ends in the middle of the path that passes the length: behind it, and before it."""

    def ended(asked: Asked, passes: bool) -> Asked | None:
        for token in dict.fromkeys(chooser.reference.expect(asked).output_ids):
            one = replace(asked, stop_token_ids=(token,), ignore_eos=False)
            if token == EOS_TOKEN or not chooser.ends_inside(one):
                continue
            *before, last = [each.commit_len for each in chooser.rounds(one)]
            *_, longer = chooser.reference.rounds(one, chooser.scene.num_nodes, past_the_end=True)
            length = len(one.prompt) + sum(before)
            if length < TRACKED_LEN <= length + longer.commit_len and passes == (length + last >= TRACKED_LEN):
                return one
        return None

    chooser.passed = chooser.find(TRACKED_LEN - 4, 12, lambda asked: ended(asked, passes=True))
    before = chooser.find(TRACKED_LEN - 5, 12, lambda asked: ended(asked, passes=False))
    return [Sent(chooser.passed, cached=0), Sent(before, cached=0)]


def finishes(chooser: Chooser) -> list[Sent]:
    """One whose last state the prefix cache gets."""
    chooser.passed = chooser.find(7, 6)
    return [Sent(chooser.passed, cached=0)]


def resumes_at_its_end(chooser: Chooser) -> list[Sent]:
    """One goes on behind the text of the wave before; one leaves it a token earlier, and gets its prompt's state."""
    assert chooser.passed is not None
    prompt = chooser.passed.prompt
    text = (*prompt, *chooser.reference.expect(chooser.passed).output_ids[:-1])

    def behind(asked: Asked) -> Asked:
        return replace(asked, prompt=(*text, *asked.prompt))

    def before(asked: Asked) -> Asked | None:
        return None if asked.prompt[0] == text[-1] else replace(asked, prompt=(*text[:-1], *asked.prompt))

    return [Sent(chooser.find(3, 7, behind), cached=len(text)), Sent(chooser.find(3, 6, before), cached=len(prompt))]


def goes_on_right_behind_its_end(chooser: Chooser) -> list[Sent]:
    """One with a single token behind the text of the wave before: convolutions read the kept inputs for its answer."""
    assert chooser.passed is not None
    text = (*chooser.passed.prompt, *chooser.reference.expect(chooser.passed).output_ids[:-1])
    asked = chooser.find(1, 7, lambda one: replace(one, prompt=(*text, *one.prompt)))
    return [Sent(asked, cached=len(text))]


def chunked(chooser: Chooser) -> list[Sent]:
    """Prompts of several chunks, beside one that decodes meanwhile."""
    return [Sent(chooser.find(4, 9)), Sent(chooser.find(21, 6)), Sent(chooser.find(13, 5))]


def fill_the_pool(chooser: Chooser) -> list[Sent]:
    """Requests that do not fit the pool together, so that one is retracted and starts again."""
    return [Sent(chooser.find(length, 14), check="tokens") for length in (10, 9, 11, 12)]


def more_than_the_pool(chooser: Chooser) -> list[Sent]:
    """Requests that do not fit the pool together, so that one is retracted and starts again.

    All have penalties, and two a grammar.
    """
    penalties = Penalties(0.5, 0.2, 1.25)

    def in_pairs(asked: Asked) -> Asked | None:
        asked = replace(asked, pairs=True, penalties=penalties)
        expected = chooser.reference.expect(asked)
        whole = len(expected.output_ids) == asked.max_new_tokens and expected.finish_reason == "length"
        return asked if whole else None

    free = [Sent(chooser.penalized(length, 14, penalties, anywhere=True), check="steps") for length in (10, 9)]
    return [*free, *(Sent(chooser.find(length, 14, in_pairs), check="tokens") for length in (11, 12))]


def to_the_context_limit(chooser: Chooser) -> list[Sent]:
    """Three neighbours that ask for the whole context, more than rounds leave them, and one that does not."""
    # SGLang keeps two tokens of the context, DDTREE on a device two paths (engine/admission/context_limit.py).
    longest = CONTEXT_LIMIT - 2 - 2 * chooser.reference.pair.max_path_len
    return [
        Sent(chooser.find(CONTEXT_LIMIT - 22, 22), check="prefix", total=longest),
        Sent(chooser.find(CONTEXT_LIMIT - 19, 19), check="prefix", total=longest),
        Sent(chooser.find(CONTEXT_LIMIT - 20, 20), check="prefix", total=longest),
        Sent(chooser.find(6, 10), check="tokens"),
    ]


def mixed(chooser: Chooser) -> list[Sent]:
    """Prompts of several chunks, and one that decodes meanwhile and takes part in them."""
    sizes = ((4, 12), (21, 6), (37, 5))
    return [Sent(chooser.find(length, tokens, anywhere=True), check="steps") for length, tokens in sizes]


def mixed_past_a_tracked_length(chooser: Chooser) -> list[Sent]:
    """One passes the length at which a state is kept while the chunks of later prompts come."""
    sizes = ((5, 4), (TRACKED_LEN - 5, 14), (33, 6), (29, 5))
    asked = [chooser.find(length, tokens, anywhere=True) for length, tokens in sizes]
    chooser.begun = asked[:3]
    return [Sent(one, check="steps") for one in asked]


def go_on_after_mixing(chooser: Chooser) -> list[Sent]:
    """Three that go on behind the texts of the wave before, whatever the cache has of those."""

    return [Sent(_behind(chooser, one), check="steps") for one in chooser.begun]


def mixed_into_a_kept_state(chooser: Chooser) -> list[Sent]:
    """One takes part in a prefill of which the cache gets a state."""
    chooser.passed = chooser.find(TRACKED_LEN + 14, 5)
    return [Sent(chooser.find(5, 24, anywhere=True), check="steps"), Sent(chooser.passed, after_s=1.0)]


def go_on_behind_that_state(chooser: Chooser) -> list[Sent]:
    """One that goes on behind it."""
    assert chooser.passed is not None
    return [Sent(_behind(chooser, chooser.passed), cached=TRACKED_LEN)]


def _behind(chooser: Chooser, one: Asked) -> Asked:
    text = (*one.prompt, *chooser.reference.expect(one).output_ids[:-1])
    return chooser.find(3, 7, lambda asked: replace(asked, prompt=(*text, *asked.prompt)), anywhere=True)


def mixed_adapters(chooser: Chooser) -> list[Sent]:
    """The same with adapters: each step of a prefill has rows of several."""
    first, second = chooser.reference.adapters
    sizes = ((first, 4, 12), (second, 21, 6), ("", 13, 7), (first, 9, 5))
    return [Sent(chooser.with_adapter(*size, anywhere=True), check="steps") for size in sizes]


def first_turns(chooser: Chooser) -> list[Sent]:
    """Two sessions begin: an answer of two tokens, of which the last is a round's alone, and one of several rounds."""
    return [turn(chooser, "short", 9, 2), turn(chooser, "long", 5, 9)]


def later_turns(chooser: Chooser) -> list[Sent]:
    """They go on, with one token and with several."""
    return [turn(chooser, "short", 1, 7), turn(chooser, "long", 6, 5)]


def turn(chooser: Chooser, session: str, length: int, max_new_tokens: int) -> Sent:
    """The next turn of a session: so many tokens behind what was said."""
    last = chooser.sessions.get(session)
    history = (*last.prompt, *chooser.reference.expect(last).output_ids) if last else ()

    def next_turn(asked: Asked) -> Asked | None:
        # SGLang takes a text's first token off a turn that is not the first (session_controller.py).
        begins_anew = asked.prompt[0] == BOS_TOKEN
        return None if begins_anew else replace(asked, prompt=(*history, *asked.prompt))

    asked = chooser.find(length, max_new_tokens, next_turn)
    chooser.sessions[session] = asked
    return Sent(asked, session=session, is_first_turn=last is None, num_sent=length)
