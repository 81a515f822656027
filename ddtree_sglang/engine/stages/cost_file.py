"""What rounds cost here, kept on disk: the next server of the same kind need not measure anew.

A file is of one machine, pair and setting; its name is a digest of them. Of two servers of one kind the last to write
wins. It is a
hint and no more: rounds that are served outvote it, and one that cannot be read or written changes nothing but a start.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.core.cost_model import COLUMNS, CostModel
from ddtree_sglang.whole_file import cache_folder, replace_text

logger = logging.getLogger(__name__)

FOLDER_ENV = "DDTREE_COSTS"
"""Folder of the files; empty for none."""
INSTRUCTIONS_ENV = "ONEDNN_MAX_CPU_ISA"
"""oneDNN's own; it cannot be asked what it goes by."""
ROUNDS = 7
"""Raised when rounds of the same kind cost something else by our own doing, or are written otherwise."""
CPUINFO = Path("/proc/cpuinfo")
PROCESSOR = "model name", "cpu family", "model", "stepping"
"""Lines of it, of each of the threads; the first one's count."""
SAVE_ROUNDS = 500
"""Rounds between two writes."""
ASKED_SECONDS = 10.0
"""Least time between a write and the next one that somebody's question makes: the scheduler waits for it."""


def cost_folder() -> Path | None:
    """Where files are kept, None for nowhere."""
    given = os.environ.get(FOLDER_ENV)
    try:
        if given is None:
            return cache_folder() / "costs"
        return Path(given).expanduser() if given.strip() else None
    except RuntimeError:  # a user without a home
        return None


def machine_facts() -> dict[str, Any]:
    """The processor that computes, as far as it tells; threads and accelerators included."""
    devices = torch.get_device_module()
    names = [devices.get_device_name(0)] if devices.is_available() and hasattr(devices, "get_device_name") else []
    return {
        "machine": platform.machine(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        # A process may be held to fewer instructions than its processor has.
        "instructions": [torch.backends.cpu.get_cpu_capability(), os.environ.get(INSTRUCTIONS_ENV, "")],
        "accelerators": names,
        "versions": [version("sglang"), version("torch"), ROUNDS],
    }


def _processor() -> str:
    """The model's name and numbers where the system has them; `platform.processor` is empty on Linux.

    Virtual machines of two generations may bear one name.
    """
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    told = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))}
    return " ".join(told[key] for key in PROCESSOR if key in told)


class CostFile:
    """The table of one kind of server."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any]) -> None:
        self.path, self._facts = path, dict(facts)
        self._rounds = 0
        self._written = 0  # rounds that the model had learned of
        self._tried_at, self._is_told = -math.inf, False

    @classmethod
    def of(cls, facts: Mapping[str, Any], folder: Path | None) -> CostFile:
        """`facts`: all that rounds' times hang on, as JSON."""
        text = json.dumps(facts, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cls(None if folder is None else folder / f"{name}.json", facts)

    def load(self) -> CostModel:
        """What was kept; an empty model if nothing was, or nothing that can be read."""
        if self.path is None:
            return CostModel()
        try:
            held = json.loads(self.path.read_text(encoding="utf-8"))
            model = CostModel.from_json(held["cells"] if isinstance(held, dict) and "cells" in held else held)
        except FileNotFoundError:
            return CostModel()
        except (OSError, ValueError, OverflowError, RecursionError) as error:
            logger.warning("the cost table %s cannot be read (%s); rounds are measured anew.", self.path, error)
            return CostModel()
        logger.info("costs of %d kinds of rounds are known from %s", len(model.cells), self.path)
        return model

    def save(self, model: CostModel) -> None:
        """Replace the file in one step; if it cannot be written, that is said once, and the next save tries again."""
        if self.path is None:
            return
        self._tried_at = time.monotonic()
        held = {"facts": self._facts, "columns": COLUMNS, "cells": model.to_json()}
        try:
            replace_text(self.path, json.dumps(held, default=str))
            self._is_told, self._written = False, model.num_rounds
        except OSError as error:
            if not self._is_told:
                logger.warning("the cost table %s cannot be written (%s); it is tried again.", self.path, error)
            self._is_told = True

    def save_asked(self, model: CostModel) -> None:
        """The same because somebody asked, however often that is."""
        if model.num_rounds != self._written and time.monotonic() - self._tried_at >= ASKED_SECONDS:
            self.save(model)

    def count_round(self, model: CostModel) -> None:
        """After each round; saves now and then."""
        self._rounds += 1
        if self._rounds % SAVE_ROUNDS == 0:
            self.save(model)
