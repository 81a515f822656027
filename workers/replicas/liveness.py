"""When a replica counts as alive: it made a token lately, or makes one when asked.

A ping shows that a process answers; a scheduler that waits for a stopped rank answers pings for ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ProgressClock:
    """Remembers when the last token came out of the engine, whoever asked for it.

    Attributes:
        fresh_s: a token not older than this is proof enough; no need to ask for one.
    """

    fresh_s: float
    clock: Callable[[], float] = time.monotonic
    _last: float | None = field(default=None)

    def token(self) -> None:
        """A token came out."""
        self._last = self.clock()

    def is_fresh(self) -> bool:
        """True if there was a token within `fresh_s`."""
        return self._last is not None and self.clock() - self._last <= self.fresh_s

    def never(self) -> bool:
        """True before the first token."""
        return self._last is None
