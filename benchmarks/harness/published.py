"""The paper's ten data sets, read from files that the user has downloaded: nothing is fetched.

A set called NAME is FOLDER/NAME.jsonl, or the same with .json or .gz, or several files FOLDER/NAME-*.jsonl in the order
of their names. A file holds a record per line, or one JSON array of them, with the fields of the published set; where
several forms are in use, each is known. How a problem is asked is this project's wording, the same for every system.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Record = dict[str, Any]
SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz")


class PublishedDataError(ValueError):
    """A file that is missing or is not in the published form; the message says what was looked for."""


@dataclass(frozen=True)
class PublishedSet:
    """One of the paper's sets: where it is published, how many of it the paper asked, and its forms."""

    source: str
    asked_in_paper: int
    forms: tuple[Form, ...]


@dataclass(frozen=True)
class Form:
    """Fields that a record must have, the one that names it (None: its place in the file), and what the user says."""

    fields: tuple[str, ...]
    key: str | None
    text: Callable[[Record], str]


def _math(field: str) -> Callable[[Record], str]:
    return lambda record: (
        f"{record[field].strip()}\n\nWork it out step by step, then give the final answer in \\boxed{{}}."
    )


def _function(record: Record) -> str:
    return (
        f"Complete this Python function. Answer with the whole function.\n\n```python\n{record['prompt'].rstrip()}\n```"
    )


def _task(field: str) -> Callable[[Record], str]:
    def text(record: Record) -> str:
        tests = "\n".join(record["test_list"])
        return f"{record[field].strip()}\nWrite it in Python. These must hold:\n\n```python\n{tests}\n```"

    return text


def _contest(record: Record) -> str:
    problem = f"Solve this programming problem in Python.\n\n{record['question_content'].strip()}"
    starter = record["starter_code"].strip()
    if starter:
        return f"{problem}\n\nBegin with this code:\n\n```python\n{starter}\n```"
    return f"{problem}\n\nRead from standard input and write to standard output."


def _issue(record: Record) -> str:
    return (
        f"This issue was reported in the repository {record['repo']}. Write a patch that resolves it.\n\n"
        f"{record['problem_statement'].strip()}"
    )


def _instruction(record: Record) -> str:
    given = record["input"].strip()
    return f"{record['instruction'].strip()}\n\n{given}" if given else record["instruction"].strip()


def _first(field: str) -> Callable[[Record], str]:
    return lambda record: str(record[field][0])


PUBLISHED: dict[str, PublishedSet] = {
    "gsm8k": PublishedSet("openai/gsm8k, main, test", 128, (Form(("question", "answer"), None, _math("question")),)),
    "math500": PublishedSet(
        "HuggingFaceH4/MATH-500, test", 128, (Form(("problem", "unique_id"), "unique_id", _math("problem")),)
    ),
    "aime24": PublishedSet(
        "HuggingFaceH4/aime_2024 or Maxwell-Jia/AIME_2024, train",
        30,
        (
            Form(("problem", "answer", "id"), "id", _math("problem")),
            Form(("Problem", "Answer", "ID"), "ID", _math("Problem")),
        ),
    ),
    "aime25": PublishedSet(
        "MathArena/aime_2025, train, or opencompass/AIME2025, both parts",
        30,
        (
            Form(("problem", "answer", "problem_idx"), "problem_idx", _math("problem")),
            Form(("question", "answer"), None, _math("question")),
        ),
    ),
    "humaneval": PublishedSet(
        "openai/openai_humaneval, test, or HumanEval.jsonl", 164, (Form(("task_id", "prompt"), "task_id", _function),)
    ),
    "mbpp": PublishedSet(
        "google-research-datasets/mbpp, sanitized or full, test",
        128,
        (
            Form(("task_id", "prompt", "test_list"), "task_id", _task("prompt")),
            Form(("task_id", "text", "test_list"), "task_id", _task("text")),
        ),
    ),
    "livecodebench": PublishedSet(
        "livecodebench/code_generation_lite, test.jsonl and on",
        128,
        (Form(("question_id", "question_content", "starter_code"), "question_id", _contest),),
    ),
    "swebench-lite": PublishedSet(
        "princeton-nlp/SWE-bench_Lite, test",
        128,
        (Form(("instance_id", "repo", "problem_statement"), "instance_id", _issue),),
    ),
    "mtbench": PublishedSet(
        "HuggingFaceH4/mt_bench_prompts, train, or question.jsonl; the first turn is asked",
        80,
        (
            Form(("prompt_id", "prompt"), "prompt_id", _first("prompt")),
            Form(("question_id", "turns"), "question_id", _first("turns")),
        ),
    ),
    "alpaca": PublishedSet(
        "tatsu-lab/alpaca, train, or alpaca_data.json", 128, (Form(("instruction", "input"), None, _instruction),)
    ),
}
"""Name -> the set. Sources are names on the Hugging Face hub, or of the authors' own file."""


def load_published(name: str, folder: Path) -> list[tuple[str, str]]:
    """Key and text of each prompt of a set, in file order.

    Raises:
        PublishedDataError: no file of that name is in `folder`, or a record has none of the known forms.
    """
    known = PUBLISHED[name]
    files = files_of(name, folder)
    if not files:
        raise PublishedDataError(
            f"{name} must be {folder / name}.jsonl (or .json, .gz, or several {name}-*.jsonl), and none is there; "
            f"download {known.source}."
        )
    found = [_prompt(name, known.forms, *one) for path in files for one in _records(path)]
    if not found:
        raise PublishedDataError(f"{name} must hold records, got none in {files[0]}.")
    return found


def files_of(name: str, folder: Path) -> list[Path]:
    """The set's one file, else its parts in the order of their names."""
    whole = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    alone = [path for path in whole if path.is_file()]
    return alone[:1] or sorted(path for suffix in SUFFIXES for path in folder.glob(f"{name}-*{suffix}"))


def _records(path: Path) -> Iterator[tuple[str, Record]]:
    """Each record with where it stands: a file's name and its place in the file, from 1."""
    try:
        for place, record in enumerate(_values(path), 1):
            if not isinstance(record, dict):
                raise PublishedDataError(f"{path}, record {place} must be an object, got {type(record).__name__}.")
            yield f"{path.name}:{place}", record
    except json.JSONDecodeError as error:
        raise PublishedDataError(f"{path} must hold JSON, a record per line or one array: {error}.") from error


def _values(path: Path) -> Iterator[Any]:
    """One after another: the hidden tests of a programming set make a file of more than a gigabyte."""
    open_text: Callable[..., Any] = gzip.open if path.suffix == ".gz" else open
    # Only "\n" ends a line: a problem's text may hold other characters that do elsewhere.
    with open_text(path, "rt", encoding="utf-8", newline="\n") as file:
        first = next((line for line in file if line.strip()), "")
        file.seek(0)
        if first.lstrip().startswith("["):
            yield from json.load(file)
        else:
            yield from (json.loads(line) for line in file if line.strip())


def _prompt(name: str, forms: Sequence[Form], place: str, record: Record) -> tuple[str, str]:
    for form in forms:
        if all(record.get(field) is not None for field in form.fields):
            return f"{name}/{place if form.key is None else record[form.key]}", form.text(record)
    wanted = " or ".join(", ".join(form.fields) for form in forms)
    raise PublishedDataError(f"{place} must have the fields {wanted}; it has {', '.join(sorted(record)) or 'none'}.")
