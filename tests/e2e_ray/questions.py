"""What every module of this folder asks, so that one single process gives the answers for all of them."""

from __future__ import annotations

from typing import Any

MODEL = "smol"
LONG = 1
"""Which of `BODIES` is the longest: what strikes in the middle of an answer strikes at this one."""

BODIES: list[dict[str, Any]] = [
    {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": max_tokens}
    for text, max_tokens in (
        ("Why is the sky blue?", 48),
        ("Write a Python function that reverses a list.", 160),
        ("What is 17 + 25?", 48),
    )
]

Answers = list[dict[str, Any]]
"""Whole chat answers, one for each of `BODIES`."""
