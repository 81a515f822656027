"""The streamed text is the whole answer's, its pieces are whole characters, and no stop string shows."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workers.byte_tokenizer import END_ID, PAD_ID, byte_tokenizer, decode, encode, encode_bytes
from workers.answers.resume import FinishReason
from workers.answers.text import REPLACEMENT, AnswerText, IncrementalText, TextRules

TEXTS = st.text(alphabet="abST OPé你🌳\n", max_size=30)
TOKENS = st.lists(st.integers(0, byte_tokenizer().get_vocab_size() - 1), max_size=40)


def spell(text: str, how: Sequence[bool]) -> list[int]:
    """Token ids of a text, character by character in bytes or in merges."""
    return [token for i, char in enumerate(text) for token in (encode_bytes if how[i % len(how)] else encode)(char)]


def stream(tokens: Sequence[int], skip: bool = True) -> tuple[list[str], str]:
    """The pieces that come out, and what is left at the end."""
    text = IncrementalText(lambda ids: decode(ids, skip))
    return [text.push(token) for token in tokens], text.flush()


@settings(max_examples=500, deadline=None)
@given(TOKENS, st.booleans())
def test_any_tokens_even_broken_bytes_add_up_to_their_decoded_text(tokens: list[int], skip: bool) -> None:
    pieces, rest = stream(tokens, skip)
    assert "".join(pieces) + rest == decode(tokens, skip)


@settings(max_examples=300, deadline=None)
@given(TEXTS, st.lists(st.booleans(), min_size=1, max_size=4))
def test_pieces_of_a_valid_text_are_whole_characters_and_nothing_is_left(text: str, how: list[bool]) -> None:
    pieces, rest = stream(spell(text, how))
    assert rest == ""
    assert "".join(pieces) == text
    assert not any(REPLACEMENT in piece for piece in pieces)


def test_a_tree_in_four_bytes_comes_out_with_its_last_byte() -> None:
    pieces, rest = stream(encode_bytes("🌳"))
    assert (pieces, rest) == (["", "", "", "🌳"], "")


def test_bytes_without_end_that_are_no_character_do_not_pile_up() -> None:
    calls: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return decode(ids)

    text = IncrementalText(counting)
    broken = encode_bytes("🌳")[:1] * 500
    result = "".join(text.push(token) for token in broken) + text.flush()
    assert result == REPLACEMENT * 500
    assert max(calls) < 40


def test_hidden_special_tokens_without_end_do_not_pile_up() -> None:
    calls: list[int] = []

    def counting(ids: Sequence[int]) -> str:
        calls.append(len(ids))
        return decode(ids)

    text = IncrementalText(counting)
    tokens = [*encode("a"), *[PAD_ID] * 500, *encode("b")]
    assert "".join(text.push(token) for token in tokens) == "ab"
    assert max(calls) < 40


def test_the_prompts_last_tokens_are_context_and_not_text() -> None:
    context, answer = encode("the tree"), encode(" of drafts")
    text = IncrementalText(decode, context)
    assert "".join(text.push(token) for token in answer) == " of drafts"


def answer_text(tokens: Sequence[int], rules: TextRules) -> tuple[list[str], str, FinishReason | None, int]:
    """What is shown after every token, the final text, the match, and the number of tokens it took."""
    text = AnswerText(decode, rules)
    shown: list[str] = []
    for token in tokens:
        reason = text.push(token)
        shown.append(text.text)
        if reason is not None:
            break
    text.finish(reason or {"type": "length", "length": len(tokens)}) if tokens else text.finish({"type": "length"})
    return shown, text.text, reason if tokens else None, len(shown)


@settings(max_examples=500, deadline=None)
@given(TEXTS, st.lists(st.booleans(), min_size=1, max_size=4), st.lists(st.sampled_from(["STOP", "T你", "OO", "🌳"])))
def test_the_answer_ends_with_the_token_that_completes_a_stop_string(
    text: str, how: list[bool], stops: list[str]
) -> None:
    tokens = spell(text, how)
    shown, final, reason, num_tokens = answer_text(tokens, TextRules(stop=tuple(stops)))
    # The first token after which a stop string is in the text decides.
    ends = [n for n in range(1, len(tokens) + 1) if any(stop in decode(tokens[:n]) for stop in stops)]
    assert num_tokens == (ends[0] if ends else len(tokens))
    whole = decode(tokens[:num_tokens])
    matched = next((stop for stop in stops if stop in whole), None)
    assert reason == ({"type": "stop", "matched": matched} if matched else None)
    assert final == (whole[: whole.index(matched)] if matched else whole)
    # What was shown stays, and never holds a beginning of what is cut.
    assert all(final.startswith(part) for part in shown)


def test_no_beginning_of_a_stop_string_is_shown_until_it_is_clear_that_it_is_none() -> None:
    tokens = encode_bytes("aSTOaSTOP")
    shown, final, _, _ = answer_text(tokens, TextRules(stop=("STOP",)))
    assert shown == ["a", "a", "a", "a", "aSTOa", "aSTOa", "aSTOa", "aSTOa", "aSTOa"]
    assert final == "aSTOa"


def test_a_stop_string_stays_where_the_request_says_so_and_what_follows_in_its_token_goes() -> None:
    tokenizer = byte_tokenizer()
    tokens = [*encode_bytes("x, STO"), tokenizer.token_to_id("P")]
    assert answer_text(tokens, TextRules(stop=("STOP",), no_stop_trim=True))[1] == "x, STOP"
    token = next(i for i in range(2, tokenizer.get_vocab_size()) if len(decode([i])) > 2 and decode([i]).isascii())
    inner = decode([token])[0:2]
    assert answer_text([token], TextRules(stop=(inner,), no_stop_trim=True))[1] == inner


def test_a_stop_string_is_complete_before_the_character_that_begins_in_its_last_token() -> None:
    pieces = [b"aSTO", b"P\xf0\x9f", b"\x8c\xb3"]

    def decode_pieces(ids: Sequence[int], skip_special_tokens: bool) -> str:
        return b"".join(pieces[i] for i in ids).decode(errors="replace")

    text = AnswerText(decode_pieces, TextRules(stop=("STOP",)))
    assert text.push(0) is None
    assert text.push(1) == {"type": "stop", "matched": "STOP"}
    text.finish({"type": "stop", "matched": "STOP"})
    assert text.text == "a"


def test_an_answer_cut_within_a_character_ends_as_the_tokenizer_writes_it() -> None:
    tokens = [*encode("a"), *encode_bytes("🌳")[:2]]
    shown, final, _, _ = answer_text(tokens, TextRules())
    assert shown == ["a", "a", "a"]
    assert final == decode(tokens) == "a" + REPLACEMENT


@pytest.mark.parametrize("skip", [True, False])
def test_an_end_token_leaves_no_text_unless_it_may(skip: bool) -> None:
    tokens, reason = [*encode("a"), END_ID], {"type": "stop", "matched": END_ID}
    for no_stop_trim, expected in ((False, "a"), (True, "a" if skip else "a<|end|>")):
        sampling = {"skip_special_tokens": skip, "no_stop_trim": no_stop_trim}
        text = AnswerText(decode, TextRules.of(sampling, frozenset({END_ID})))
        assert [text.push(token) for token in tokens] == [None, None]
        assert "<" not in text.text or no_stop_trim
        text.finish(reason)
        assert text.text == expected


def test_an_end_token_that_a_parser_needs_stays() -> None:
    text = AnswerText(decode, TextRules.of({"skip_special_tokens": False}, frozenset({END_ID}), frozenset({END_ID})))
    text.push(END_ID)
    text.finish({"type": "stop", "matched": END_ID})
    assert text.text == "<|end|>"


def test_an_end_token_after_which_the_answer_goes_on_is_text() -> None:
    text = AnswerText(decode, TextRules.of({"skip_special_tokens": False}, frozenset({END_ID})))
    for token in [END_ID, *encode("a")]:
        text.push(token)
    assert text.text == "<|end|>a"


def test_a_special_token_ends_the_answer_as_stop_string_though_it_is_not_shown() -> None:
    _, final, reason, _ = answer_text([*encode("a"), PAD_ID], TextRules(stop=("<|pad|>",)))
    assert reason == {"type": "stop", "matched": "<|pad|>"}
    assert final == "a"


@pytest.mark.parametrize(
    ("stop", "expected"), [(None, ()), ("x", ("x",)), (["x", "y"], ("x", "y")), ("", ()), (["", "y"], ("y",))]
)
def test_stop_is_one_string_or_several_and_empty_ones_are_left_to_the_engine(
    stop: object, expected: tuple[str, ...]
) -> None:
    assert TextRules.of({"stop": stop}).stop == expected


def test_ignored_end_tokens_are_text_like_any_other() -> None:
    assert TextRules.of({"ignore_eos": True, "stop_token_ids": [5]}, frozenset({END_ID})).silent_token_ids == set()
    assert TextRules.of({"stop_token_ids": [5]}, frozenset({END_ID})).silent_token_ids == {5, END_ID}
