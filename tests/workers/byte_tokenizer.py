"""A small byte-level BPE, so that characters and stop strings fall apart into tokens as they do in real models."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

CORPUS = [
    "the tree of drafts is a tree of tokens, STOP here, and stop there; naïve café",
    "你好世界, 你好树",
    "🌳🌲 🌳",
]
SPECIAL = ["<|end|>", "<|pad|>"]


@cache
def byte_tokenizer() -> Tokenizer:
    """256 bytes, some merges (also within characters), two special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    alphabet = ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


END_ID = 0
PAD_ID = 1


def encode(text: str) -> list[int]:
    ids: list[int] = byte_tokenizer().encode(text).ids
    return ids


def encode_bytes(text: str) -> list[int]:
    """One token per byte, the smallest pieces that a model could choose."""
    vocabulary = byte_tokenizer().get_vocab()
    return [vocabulary[piece] for char in text for piece in _byte_pieces(char)]


def _byte_pieces(char: str) -> list[str]:
    return list(ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(char)[0][0])


def decode(ids: Sequence[int], skip_special_tokens: bool = True) -> str:
    text: str = byte_tokenizer().decode(list(ids), skip_special_tokens=skip_special_tokens)
    return text
