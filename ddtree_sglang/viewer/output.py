"""Text to stdout, whose reader may have enough of it."""

from __future__ import annotations

import os
import sys


def show(text: str) -> None:
    """Print; a reader that went away, such as `head`, is no error."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # What is left in the buffer has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
