"""Each of the paper's data sets from a file of two records in its published form, made up here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import prompts
from benchmarks.harness.published import PUBLISHED, PublishedDataError, load_published

LCB = {"question_title": "Add", "platform": "atcoder", "contest_id": "abc", "difficulty": "easy", "metadata": "{}"}
SWE = {"base_commit": "f0", "patch": "", "test_patch": "", "hints_text": "", "version": "1.0", "FAIL_TO_PASS": "[]"}
FORMS: list[tuple[str, list[dict[str, Any]], list[str], tuple[str, ...]]] = [
    # name, records, keys, what the first prompt has to say
    (
        "gsm8k",
        [{"question": "How many apples?", "answer": "3\n#### 3"}, {"question": "How many pears?", "answer": "#### 4"}],
        ["gsm8k/gsm8k.jsonl:1", "gsm8k/gsm8k.jsonl:2"],
        ("How many apples?", "\\boxed{}"),
    ),
    (
        "math500",
        [
            {
                "problem": f"Find $x^{i}$.",
                "solution": "s",
                "answer": "1",
                "subject": "Algebra",
                "level": i,
                "unique_id": f"test/{i}",
            }
            for i in (1, 2)
        ],
        ["math500/test/1", "math500/test/2"],
        ("Find $x^1$.",),
    ),
    (
        "aime24",
        [{"id": i, "problem": f"P{i}", "solution": "s", "answer": "204", "url": "u", "year": "2024"} for i in (60, 61)],
        ["aime24/60", "aime24/61"],
        ("P60",),
    ),
    (
        "aime24",
        [{"ID": f"2024-I-{i}", "Problem": f"P{i}", "Solution": "s", "Answer": 7} for i in (1, 2)],
        ["aime24/2024-I-1", "aime24/2024-I-2"],
        ("P1",),
    ),
    (
        "aime25",
        [{"problem_idx": i, "problem": f"P{i}", "answer": 70, "problem_type": ["Algebra"]} for i in (1, 2)],
        ["aime25/1", "aime25/2"],
        ("P1",),
    ),
    (
        "aime25",
        [{"question": f"Q{i}", "answer": "70"} for i in (1, 2)],
        ["aime25/aime25.jsonl:1", "aime25/aime25.jsonl:2"],
        ("Q1",),
    ),
    (
        "humaneval",
        [
            {
                "task_id": f"HumanEval/{i}",
                "prompt": f"def f{i}():\n",
                "canonical_solution": "",
                "test": "",
                "entry_point": "f",
            }
            for i in (0, 1)
        ],
        ["humaneval/HumanEval/0", "humaneval/HumanEval/1"],
        ("def f0():", "```python"),
    ),
    (
        "mbpp",
        [
            {
                "source_file": "s",
                "task_id": i,
                "prompt": f"Write f{i}.",
                "code": "",
                "test_imports": [],
                "test_list": [f"assert f{i}() == 1"],
            }
            for i in (11, 12)
        ],
        ["mbpp/11", "mbpp/12"],
        ("Write f11.", "assert f11() == 1"),
    ),
    (
        "mbpp",
        [
            {
                "task_id": i,
                "text": f"Write f{i}.",
                "code": "",
                "test_list": ["assert f()"],
                "test_setup_code": "",
                "challenge_test_list": [],
            }
            for i in (11, 12)
        ],
        ["mbpp/11", "mbpp/12"],
        ("Write f11.", "assert f()"),
    ),
    (
        "livecodebench",
        [
            {**LCB, "question_id": "abc_a", "question_content": "Add two.", "starter_code": ""},
            {**LCB, "question_id": "2700", "question_content": "Sum.", "starter_code": "class Solution:\n    def f"},
        ],
        ["livecodebench/abc_a", "livecodebench/2700"],
        ("Add two.", "standard input"),
    ),
    (
        "swebench-lite",
        [{**SWE, "instance_id": f"a__b-{i}", "repo": "a/b", "problem_statement": f"It breaks {i}."} for i in (1, 2)],
        ["swebench-lite/a__b-1", "swebench-lite/a__b-2"],
        ("a/b", "It breaks 1."),
    ),
    (
        "mtbench",
        [
            {"category": "writing", "prompt": [f"First {i}.", "Then."], "reference": [], "prompt_id": i}
            for i in (81, 82)
        ],
        ["mtbench/81", "mtbench/82"],
        ("First 81.",),
    ),
    (
        "mtbench",
        [{"question_id": i, "category": "writing", "turns": [f"First {i}.", "Then."]} for i in (81, 82)],
        ["mtbench/81", "mtbench/82"],
        ("First 81.",),
    ),
    (
        "alpaca",
        [
            {"instruction": "Sort these.", "input": "3, 1, 2", "output": "1, 2, 3", "text": "t"},
            {"instruction": "Say hello.", "input": "", "output": "Hello.", "text": "t"},
        ],
        ["alpaca/alpaca.jsonl:1", "alpaca/alpaca.jsonl:2"],
        ("Sort these.", "3, 1, 2"),
    ),
]


def write(path: Path, records: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "records", "keys", "said"), FORMS, ids=[f"{one[0]}-{i}" for i, one in enumerate(FORMS)]
)
def test_two_lines_of_the_published_form_are_two_prompts(
    tmp_path: Path, name: str, records: list[dict[str, Any]], keys: list[str], said: tuple[str, ...]
) -> None:
    write(tmp_path / f"{name}.jsonl", records)
    loaded = load_published(name, tmp_path)
    assert [key for key, _ in loaded] == keys
    assert all(part in loaded[0][1] for part in said)
    assert loaded[0][1] != loaded[1][1]


def test_every_form_of_every_set_has_its_file_here() -> None:
    known = {(name, form.fields) for name, published in PUBLISHED.items() for form in published.forms}
    shown = {
        (name, next(form.fields for form in PUBLISHED[name].forms if set(form.fields) <= set(records[0])))
        for name, records, _, _ in FORMS
    }
    assert shown == known
    assert len(PUBLISHED) == 10


def test_second_turns_and_answers_are_not_asked(tmp_path: Path) -> None:
    records = {name: rows for name, rows, _, _ in FORMS}
    for name in ("mtbench", "alpaca", "gsm8k"):
        write(tmp_path / f"{name}.jsonl", records[name])
    assert "Then." not in load_published("mtbench", tmp_path)[0][1]
    assert "1, 2, 3" not in load_published("alpaca", tmp_path)[0][1]
    assert "####" not in load_published("gsm8k", tmp_path)[0][1]


def test_starter_code_is_asked_for_where_there_is_some(tmp_path: Path) -> None:
    write(tmp_path / "livecodebench.jsonl", next(rows for name, rows, _, _ in FORMS if name == "livecodebench"))
    first, second = (text for _, text in load_published("livecodebench", tmp_path))
    assert "Begin with" not in first
    assert "class Solution:" in second
    assert "standard input" not in second


def test_arrays_parts_and_compressed_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "alpaca.json").write_text(json.dumps(FORMS[-1][1], indent=4))
    assert len(load_published("alpaca", tmp_path)) == 2
    for part in ("II", "I"):
        write(tmp_path / f"aime25-{part}.jsonl", [{"question": f"Q {part}", "answer": "1"}])
    assert [text[:4].strip() for _, text in load_published("aime25", tmp_path)] == ["Q I", "Q II"]
    (tmp_path / "gsm8k.jsonl.gz").write_bytes(gzip.compress(b'{"question": "q", "answer": "a"}\n'))
    assert len(load_published("gsm8k", tmp_path)) == 1


def test_a_line_break_inside_a_problem_does_not_end_the_record(tmp_path: Path) -> None:
    (tmp_path / "gsm8k.jsonl").write_text('{"question": "one\u2028two", "answer": "a"}\n', encoding="utf-8")
    assert "one\u2028two" in load_published("gsm8k", tmp_path)[0][1]


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(PublishedDataError, match=r"math500\.jsonl .*none is there; download HuggingFaceH4/MATH-500"):
        load_published("math500", tmp_path)
    write(tmp_path / "math500.jsonl", [{"problem": "p", "answer": "a"}])
    with pytest.raises(
        PublishedDataError, match=r"math500\.jsonl:1 must have the fields problem, unique_id; it has answer"
    ):
        load_published("math500", tmp_path)
    (tmp_path / "math500.jsonl").write_text("no json\n")
    with pytest.raises(PublishedDataError, match="must hold JSON"):
        load_published("math500", tmp_path)


def test_a_folder_takes_the_place_of_the_packages(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", FORMS[0][1])
    chosen = prompts.sample_prompts(["gsm8k", "held-out/code"], 2, seed=0, folder=tmp_path)
    assert [one.dataset for one in chosen] == ["gsm8k"] * 2 + ["held-out/code"] * 2
    assert {one.key for one in chosen[:2]} == {"gsm8k/gsm8k.jsonl:1", "gsm8k/gsm8k.jsonl:2"}
    with pytest.raises(prompts.PromptsMissingError, match="math500 is no package's: name the folder of its file"):
        prompts.sample_prompts(["math500"], 1, seed=0)


def test_as_many_are_asked_as_in_the_paper(tmp_path: Path) -> None:
    write(tmp_path / "gsm8k.jsonl", [{"question": f"How many {i}?", "answer": "1"} for i in range(300)])
    write(tmp_path / "aime25.jsonl", [{"question": f"Q{i}", "answer": "1"} for i in range(15)])
    chosen = prompts.sample_prompts(["gsm8k", "aime25", "held-out/code"], 0, seed=0, folder=tmp_path)
    counts = [sum(one.dataset == name for one in chosen) for name in ("gsm8k", "aime25", "held-out/code")]
    assert counts == [128, 15, 20]


def test_the_readme_lists_every_set_with_its_source() -> None:
    text = (Path(__file__).resolve().parents[2] / "benchmarks/README.md").read_text(encoding="utf-8")
    rows = {name: text.split(f"\n| `{name}` | ")[1].split("\n")[0] for name in PUBLISHED}
    for name, published in PUBLISHED.items():
        assert published.source.split(",")[0].split(" ")[0] in rows[name]
        assert rows[name].endswith(f"| {published.asked_in_paper} |")
