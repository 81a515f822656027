"""A tokenizer of bytes, made without a vocabulary to download: for models that are made on the spot."""

from __future__ import annotations

from pathlib import Path

VOCABULARY = 288
"""256 bytes, a few special tokens, and room up to a multiple of 32."""
EOS_ID, MASK_ID, USER_ID, ASSISTANT_ID = 256, 257, 258, 259


def save_byte_tokenizer(folder: Path) -> None:
    """Write tokenizer files with a chat template into a model's folder; token i is byte i for the first 256."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    names = _byte_names()
    tokenizer = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<eos>", "<mask>", "<user>", "<assistant>", *(f"<spare{i}>" for i in range(VOCABULARY - 260))]
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in special])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", mask_token="<mask>")
    wrapped.chat_template = "{% for m in messages %}<user>{{ m.content }}{% endfor %}<assistant>"
    wrapped.save_pretrained(folder)


def _byte_names() -> list[str]:
    """The printable character that byte-level tokenizers write for each byte."""
    shown = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = iter(range(0x100, 0x200))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]
