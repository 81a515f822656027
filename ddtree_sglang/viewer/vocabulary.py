"""Token ids as text: the tokenizer is loaded by who looks, so a server's rounds carry ids alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ddtree_sglang.viewer.trace_file import TraceError

Decode = Callable[[Sequence[int]], str]


class Vocabulary:
    """The text of tokens; `decode` None: their numbers. `note` says why there is no text, or is empty."""

    def __init__(self, decode: Decode | None, note: str = "") -> None:
        self._decode = decode
        self._texts: dict[int, str] = {}
        self.note = note

    @classmethod
    def of(cls, named: str | None, server: Mapping[str, Any]) -> Vocabulary:
        """The tokenizer that was asked for, else the one that the trace names, if it is on this machine.

        Raises:
            TraceError: the one that was asked for cannot be loaded.
        """
        if named is not None:
            try:
                return cls(load_decoder(named))
            except Exception as error:
                raise TraceError(f"--tokenizer must be a model's folder or name, got {named!r}: {error}") from error
        place = server.get("tokenizer_path") or server.get("model")
        if not place:
            return cls(None, "the trace names no model, so tokens are numbers; give --tokenizer FOLDER")
        if not Path(str(place)).is_dir():
            return cls(None, f"{place} is not on this machine, so tokens are numbers; give --tokenizer FOLDER_OR_NAME")
        try:
            return cls(load_decoder(str(place)))
        except Exception as error:  # noqa: BLE001  as above; rounds are worth seeing without text
            return cls(None, f"{place} has no tokenizer that loads ({error}), so tokens are numbers; give --tokenizer")

    def text(self, token_id: int) -> str:
        """One token."""
        if token_id not in self._texts:
            self._texts[token_id] = self.join([token_id])
        return self._texts[token_id]

    def join(self, token_ids: Sequence[int]) -> str:
        """Tokens in a row."""
        if self._decode is None:
            return " ".join(f"#{one}" for one in token_ids)
        try:
            return self._decode(list(token_ids))
        except (IndexError, OverflowError, TypeError, ValueError):
            # Not of this tokenizer: another model's trace.
            return "".join(f"#{one}" for one in token_ids)


def load_decoder(place: str) -> Decode:
    """The decoder of a model's folder, or of a name that transformers can find."""
    file = Path(place) / "tokenizer.json"
    if file.is_file():
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(file))
        return lambda ids: str(tokenizer.decode(ids, skip_special_tokens=False))
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(place)
    return lambda ids: str(loaded.decode(ids))
