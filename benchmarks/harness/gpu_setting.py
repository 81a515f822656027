"""What the programs of a GPU proof share: machine, pairs, scale, timeouts, and where a result comes from.

`gpu_proof` writes it to `setting.json` in the folder of results; the programs that it starts read it there. Standard
library only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.harness.gpu_machine import Machine
from benchmarks.harness.provenance import REPO

FILE = "setting.json"
CODE = ("ddtree_sglang", "benchmarks/gpu_cases.py", "benchmarks/gpu_questions.py", "benchmarks/tiny_pair.py")
"""What a recorded answer depends on: after a change there, it is recorded anew."""
JUDGES = (
    "benchmarks/gpu_judge.py",
    "benchmarks/gpu_sections.py",
    "benchmarks/gpu_facts.py",
    "benchmarks/gpu_kernels.py",
    "benchmarks/gpu_kernel_rows.py",
    "benchmarks/gpu_speed.py",
    "benchmarks/decode.py",
    "deploy/local/divergence.py",
    "tests/kernels",
    "tests/core/test_cuda_graph.py",
    "tests/engine/debug/test_sync_check.py",
)
"""What a verdict depends on besides: after a change there, it is given anew, from the records that there are."""

SAMPLES, SAMPLE_BYTES = 64, 4096
"""Of a file of weights."""


@dataclass(frozen=True)
class Scale:
    """How much is asked: `prompts` of the set `many`, `new_tokens` of each, `samples` of the law of sampling."""

    prompts: int = 64
    new_tokens: int = 24
    samples: int = 640

    def parts(self) -> tuple[int, ...]:
        """The numbers that tell it from another one."""
        return (self.prompts, self.new_tokens, self.samples)


SMALL = Scale(prompts=12, new_tokens=24, samples=160)
"""Where a server is slow: on a processor."""


@dataclass(frozen=True)
class Setting:
    """One run. `pairs`: name -> folders of target and drafter; `identity`: name -> what an answer of it depends on.

    `run` tells this run's records from those of earlier calls into the same folder.
    """

    out: Path
    machine: Machine
    run: str
    pairs: dict[str, tuple[str, str]] = field(default_factory=dict)
    identity: dict[str, str] = field(default_factory=dict)
    scale: Scale = field(default_factory=Scale)
    start_timeout_s: float = 150.0
    client_timeout_s: float = 60.0
    server_flags: tuple[str, ...] = ()
    provenance: dict[str, Any] = field(default_factory=dict)

    def pair(self, name: str) -> tuple[str, str]:
        """Folders of a pair; ValueError when it was not prepared."""
        if name not in self.pairs:
            raise ValueError(f"the pair {name} must be prepared before it is served: run `gpu_proof`, which does")
        return self.pairs[name]

    def identity_of(self, name: str) -> str:
        """What answers of this pair depend on: code, machine, packages, weights, scale, flags."""
        return self.identity.get(name, "")

    def prompts(self, name: str) -> list[list[int]] | None:
        """Token ids of a real pair's prompts, None for a made-up one."""
        path = self.out / f"prompts-{name}.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def record_path(self, case: str) -> Path:
        """Where the record of a case is."""
        return self.out / "records" / f"{case.replace('/', '-')}.json"

    def save(self) -> None:
        """Write `setting.json`."""
        content = asdict(self) | {"out": str(self.out)}
        (self.out / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, out: Path) -> Setting:
        """Read `setting.json`; the folder may have moved since."""
        content = json.loads((out / FILE).read_text(encoding="utf-8"))
        content |= {
            "out": out,
            "machine": Machine(**content["machine"]),
            "scale": Scale(**content["scale"]),
            "server_flags": tuple(content["server_flags"]),
            "pairs": {name: (str(model), str(draft)) for name, (model, draft) in content["pairs"].items()},
        }
        return cls(**content)


def code_digest(names: Sequence[str] = CODE) -> str:
    """Digest of sources, of those that answers depend on unless told otherwise; a checkout without git has one, too."""
    digest = hashlib.sha256()
    for path in _sources(names):
        digest.update(str(path.relative_to(REPO)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _sources(names: Sequence[str]) -> Iterator[Path]:
    for name in names:
        where = REPO / name
        yield from sorted(where.rglob("*.py")) if where.is_dir() else [where]


def pair_digest(folders: tuple[str, str]) -> str:
    """Digest of the configs, and of names, sizes and a sample of the weights: cheap also for a large model.

    A drafter that was trained further differs from itself in its values alone.
    """
    digest = hashlib.sha256()
    for folder in map(Path, folders):
        config = folder / "config.json"
        digest.update(config.read_bytes() if config.exists() else b"")
        for path in sorted(one for kind in ("*.safetensors", "*.bin") for one in folder.glob(kind)):
            digest.update(f"{path.name} {path.stat().st_size}".encode())
            for block in _sample(path):
                digest.update(block)
    return digest.hexdigest()[:16]


def _sample(path: Path) -> Iterator[bytes]:
    """Blocks from the beginning of a file to its end, at equal distances."""
    size = path.stat().st_size
    with path.open("rb") as file:
        for index in range(SAMPLES):
            file.seek(max(0, size - SAMPLE_BYTES) * index // (SAMPLES - 1))
            yield file.read(SAMPLE_BYTES)
