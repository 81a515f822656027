"""A module with state, as the engine has some: which process imported it, and what was changed since."""

from __future__ import annotations

import os

IMPORTED_BY = os.getpid()
STATE = ["imported"]
