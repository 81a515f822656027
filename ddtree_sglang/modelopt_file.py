"""ModelOpt's `hf_quant_config.json`, where SGLang looks for the quantization that a `config.json` has no word on.

Which of its algorithms can be served hangs on who reads it. Standard library only.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FILE = "hf_quant_config.json"


@dataclass(frozen=True, slots=True)
class Said:
    """What the file says, as SGLang reads its method (configs/model_config.py, `_parse_quant_hf_config`).

    Attributes:
        whole: all of it.
        section: where the algorithm stands, `quantization` or the whole; None where that is no object.
    """

    whole: dict[str, Any]
    section: dict[str, Any] | None

    @property
    def is_flat(self) -> bool:
        """Whether the file has no section of its own for the quantization."""
        return self.section is self.whole

    @property
    def algorithm(self) -> Any:
        """As it is written; None where there is none, and nothing is quantized."""
        return None if self.section is None else self.section.get("quant_algo")


def is_said_in_config(config: Mapping[str, Any]) -> bool:
    """Whether a parsed `config.json` has a word of its own on its quantization, which goes before the file's."""
    return any(config.get(field) is not None for field in ("quantization_config", "compression_config"))


def read_modelopt(path: Path) -> Said:
    """Read the file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no JSON object.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"a {type(found).__name__}")
    section = found.get("quantization", found)
    return Said(found, section if isinstance(section, dict) else None)
