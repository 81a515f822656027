"""What every module of this folder asks, so that one single process gives the answers for all of them."""

from __future__ import annotations

from typing import Any

MODEL = "smol"
BODIES: list[dict[str, Any]] = [
    {"model": MODEL, "messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 48}
    for text in ("Why is the sky blue?", "Write a Python function that reverses a list.", "What is 17 + 25?")
]

Answers = list[dict[str, Any]]
"""Whole chat answers, one for each of `BODIES`."""
