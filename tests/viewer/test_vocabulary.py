"""Token ids as text, or as numbers with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddtree_sglang.viewer.trace_file import TraceError
from ddtree_sglang.viewer.vocabulary import Vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer of four words."""
    from tokenizers import Tokenizer, models

    words = {"hello": 0, "</script>": 1, "world": 2, "[UNK]": 3}
    Tokenizer(models.WordLevel(words, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_the_model_that_the_trace_names_gives_the_text(folder: Path) -> None:
    vocabulary = Vocabulary.of(None, {"model": str(folder)})
    assert [vocabulary.text(token) for token in (0, 1)] == ["hello", "</script>"]
    assert vocabulary.note == ""
    assert Vocabulary.of(None, {"model": "/gone", "tokenizer_path": str(folder)}).text(2) == "world"


def test_a_tokenizer_that_is_asked_for_wins(folder: Path) -> None:
    assert Vocabulary.of(str(folder), {"model": "/gone"}).join([0, 2]) == "hello world"


@pytest.mark.parametrize(
    ("server", "note"),
    [
        ({}, "the trace names no model, so tokens are numbers; give --tokenizer FOLDER"),
        ({"model": "some/Model"}, "some/Model is not on this machine"),
    ],
)
def test_without_a_tokenizer_tokens_are_numbers_and_the_note_says_why(server: dict[str, str], note: str) -> None:
    vocabulary = Vocabulary.of(None, server)
    assert (vocabulary.text(17), vocabulary.join([17, 4])) == ("#17", "#17 #4")
    assert note in vocabulary.note


def test_folder_with_a_damaged_tokenizer_is_no_reason_to_show_nothing(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    vocabulary = Vocabulary.of(None, {"model": str(tmp_path)})
    assert vocabulary.text(3) == "#3"
    assert "has no tokenizer that loads" in vocabulary.note
    with pytest.raises(TraceError, match="--tokenizer must be a model's folder or name"):
        Vocabulary.of(str(tmp_path), {})


def test_token_of_another_tokenizer_is_its_number() -> None:
    def decode(ids: object) -> str:
        raise OverflowError("out of range")

    assert Vocabulary(decode).text(10**12) == "#1000000000000"
