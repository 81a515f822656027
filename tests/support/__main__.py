"""`python -m tests.support` writes the document."""

from __future__ import annotations

import sys

from tests.support.document import DOCUMENT, document

if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
    sys.stdout.write(f"{DOCUMENT}\n")
