"""Compiled modules are kept between the processes of a test run, also where the machine asks for no files of them.

Importing the engine takes 21 seconds of CPU, 11 of them to compile its modules, and a run imports it many times. With
`PYTHONDONTWRITEBYTECODE` in the environment, the files go to the Python environment's own folder.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def keep_bytecode() -> None:
    """Let this process, and all that it starts, keep what it compiles; nothing changes where Python does so anyway."""
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        folder = os.environ.setdefault("PYTHONPYCACHEPREFIX", str(Path(sys.prefix) / "bytecode"))
        sys.dont_write_bytecode, sys.pycache_prefix = False, folder
