"""README and documents are true of the source: links, paths, flags, defaults, messages, numbers."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib.util
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.config import (
    DEFAULT_BUDGET,
    DEFAULT_TRACE_EVERY,
    DEFAULT_TRACE_MIB,
    DEFAULT_VERIFY_TOKENS,
    DDTreeConfig,
)
from ddtree_sglang.engine.admission.attention_groups import GROUP_RULES
from ddtree_sglang.engine.admission.recurrent_checks import RECURRENT_RULES
from ddtree_sglang.engine.admission.request_rules import REQUEST_RULES
from ddtree_sglang.engine.admission.server_args import ADAPTER_RULES, ARGUMENT_RULES, TREE_BACKENDS
from ddtree_sglang.engine.admission.split_servers import SPLIT_RULES
from ddtree_sglang.engine.admission.target_checks import LATENT_BACKENDS, WINDOW_BACKENDS
from ddtree_sglang.engine.cli_flags import add_ddtree_flags
from deploy import serve_demo
from tests.architecture import ROOT
from tests.device_lane.lifted_catalogue import NEEDED
from workers.cli import build_parser
from workers.config import WorkerConfig

README = ROOT / "README.md"
DOCS = ROOT / "ddtree_sglang/docs"
DOCUMENTS = [
    README,
    *sorted(DOCS.glob("*.md")),
    *(ROOT / f"{part}/README.md" for part in ("workers", "deploy", "benchmarks")),
]
HEADLINE = ROOT / "benchmarks/results/decode-20261129-looks-float32.jsonl"
FLAG = re.compile(r"`(--[a-z][a-z0-9-]*)`")


def ids(path: Path) -> str:
    return str(path.relative_to(ROOT))


def without_code(text: str) -> str:
    return re.sub(r"```.*?```", "", text, flags=re.S)


def anchors(path: Path) -> set[str]:
    """What GitHub calls the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text(encoding="utf-8")), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path, text: str) -> list[str]:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", without_code(text)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name).resolve() if name else path
        if not file.exists() or (anchor and anchor not in anchors(file)):
            broken.append(target)
    return broken


def missing_paths(path: Path, text: str) -> list[str]:
    """Files in backticks, looked for from the root, the package and the document's own folder."""
    missing = []
    for quoted in re.findall(r"`([\w./-]+\.(?:py|sh|md|yaml|yml|json|jsonl|svg|png))`", text):
        if "/" in quoted and not any((base / quoted).exists() for base in (ROOT, ROOT / "ddtree_sglang", path.parent)):
            missing.append(quoted)
    return missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_links_and_paths_lead_somewhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert broken_links(path, text) == []
    # A dated decision names files as they were.
    assert path.name == "DESIGN.md" or missing_paths(path, text) == []


@pytest.mark.parametrize("path", DOCUMENTS, ids=ids)
def test_commands_of_the_project_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    # The file's table of commands, read as text: tests outside tests/benchmarks do not import benchmarks.
    table = (ROOT / "benchmarks/__main__.py").read_text(encoding="utf-8")
    assert [name for name in re.findall(r"python -m benchmarks ([a-z_]+)", text) if f'"{name}": ' not in table] == []
    modules = set(re.findall(r"python -m ((?:ddtree_sglang|workers|tests|benchmarks|deploy)[\w.]*)", text))
    assert [module for module in modules if importlib.util.find_spec(module) is None] == []


def test_broken_link_heading_and_path_are_found() -> None:
    text = (
        "[a](nowhere.md) [b](README.md#no-such-heading) [c](README.md#numbers) `engine/nowhere.py` `engine/worker.py`"
    )
    assert broken_links(README, text) == ["nowhere.md", "README.md#no-such-heading"]
    assert missing_paths(README, text) == ["engine/nowhere.py"]


def test_readme_is_read_in_a_minute() -> None:
    assert 60 <= len(README.read_text(encoding="utf-8").splitlines()) <= 90


def test_index_names_every_document() -> None:
    index = (DOCS / "index.md").read_text(encoding="utf-8")
    assert [path.name for path in DOCS.glob("*.md") if path.name != "index.md" and f"]({path.name})" not in index] == []


# -- README's numbers ------------------------------------------------------------------------------------------------


KINDS = ("code", "arithmetic", "open-question", "rewriting")


def measured(system: str) -> dict[str, dict[str, Any]]:
    """Result lines of a system by prompt set."""
    lines = [json.loads(line) for line in HEADLINE.read_text(encoding="utf-8").splitlines()]
    return {line["dataset"].removeprefix("held-out/"): line for line in lines if line["system"] == system}


def readme_row(system: str) -> list[str]:
    """The cells that README should show."""
    by_set = measured(system)
    lengths = sorted(line["accept_length"]["median"] for line in by_set.values() if line["accept_length"])
    tokens = f"{lengths[0]:.2f} to {lengths[-1]:.2f}" if lengths else "1"
    return [tokens, *(f"{by_set[name]['ratio_to_plain']:.2f} x" for name in KINDS)]


@pytest.mark.parametrize(
    ("label", "system"),
    [
        ("plain decoding", "plain"),
        ("stock DFLASH chain", "dflash"),
        ("DDTREE, 8 nodes", "ddtree-8"),
        ("DDTREE, the default", "ddtree-adaptive-16"),
    ],
)
def test_numbers_of_readme_are_those_of_the_result_file(label: str, system: str) -> None:
    rows = [line.replace("*", "") for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if row[2:].startswith(label)]
    assert [cell.strip() for cell in row.split("|")[2:-1]] == readme_row(system)


# -- what is refused --------------------------------------------------------------------------------------------------


def test_every_rule_of_admission_is_among_the_refusals() -> None:
    text = (DOCS / "guarantees.md").read_text(encoding="utf-8")
    flags = {
        flag
        for rule in (*ARGUMENT_RULES, *ADAPTER_RULES, *GROUP_RULES, *SPLIT_RULES, *RECURRENT_RULES)
        for flag in re.findall(r"--[a-z][a-z0-9-]*[a-z]", rule.message)
    }
    # In words there: two-batch overlap, PD multiplexing. The drafter's path is what must be given.
    in_words = {"--enable-two-batch-overlap", "--enable-pdmux"}
    flags -= in_words | {"--speculative-draft-model-path", "--tp-size", "--speculative-algorithm"}
    names = {name for rule in REQUEST_RULES for name in rule.name.split(" under ")}
    assert [name for name in sorted(flags | names) if f"`{name}" not in text] == []


def test_backends_of_the_tables_are_those_that_are_taken() -> None:
    readme = README.read_text(encoding="utf-8")
    row = next(line for line in readme.splitlines() if line.startswith("| attention backends"))
    assert set(re.findall(r"`(\w+)`", row)) == set(TREE_BACKENDS)
    where = "README and guarantees.md say where windows and latent attention are served"
    assert set(LATENT_BACKENDS) == {"fa3", "triton"}, where
    assert set(WINDOW_BACKENDS) == {"fa3", "flashinfer", "triton", "ddtree_cpu"}, where


# -- flags and keys --------------------------------------------------------------------------------------------------


def section(name: str) -> str:
    """A section of flags.md."""
    text = (DOCS / "flags.md").read_text(encoding="utf-8")
    return next(part for part in re.split(r"^## ", text, flags=re.M) if part.startswith(name))


def rows(name: str) -> dict[str, list[str]]:
    """The section's table by the name in its first cell, without backticks."""
    found = {}
    for line in section(name).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| `"):
            for first in re.findall(r"`([^`]+)`", cells[0]):
                found[first] = [cell.replace("`", "") for cell in cells[1:]]
    return found


def flags_of(parser: argparse.ArgumentParser) -> set[str]:
    return {flag for action in parser._actions for flag in action.option_strings if flag not in ("-h", "--help")}


def test_server_flags_are_the_parsers_with_their_keys_and_defaults() -> None:
    parser = argparse.ArgumentParser()
    add_ddtree_flags(None, parser)
    table = rows("Server flags")
    assert set(table) == flags_of(parser)
    keys = {flag: cells[0] for flag, cells in table.items() if cells[0]}
    assert sorted(keys.values()) == sorted(field.name for field in dataclasses.fields(DDTreeConfig))
    assert all(flag.removeprefix("--speculative-ddtree-").replace("-", "_") == key for flag, key in keys.items())
    assert table["--speculative-ddtree-budget"][1] == str(DEFAULT_BUDGET)
    assert table["--speculative-ddtree-verify-tokens"][1] == str(DEFAULT_VERIFY_TOKENS)
    assert table["--speculative-ddtree-trace-every"][1] == str(DEFAULT_TRACE_EVERY)
    assert table["--speculative-ddtree-trace-mib"][1] == str(DEFAULT_TRACE_MIB)


def test_json_keys_are_the_fields_of_the_configuration() -> None:
    defaults = {key: json.dumps(value) for key, value in dataclasses.asdict(DDTreeConfig()).items()}
    assert {key: cells[0] for key, cells in rows("JSON keys").items()} == defaults


def test_worker_fields_are_the_configurations_with_their_defaults() -> None:
    defaults = {}
    for name, field in WorkerConfig.model_fields.items():
        defaults[name] = "required" if field.is_required() else json.dumps(field.get_default(call_default_factory=True))
    assert {key: cells[0] for key, cells in rows("Fields of a worker's").items()} == defaults


def test_worker_flags_are_the_parsers_of_each_command() -> None:
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    real = {name: flags_of(parser) for name, parser in commands.choices.items()}
    table = {flag: cells[0] for flag, cells in rows("`python -m workers`").items()}
    assert {name: {flag for flag, used_by in table.items() if name in used_by} for name in real} == real


def test_flags_of_run_sh_are_its_parsers(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[argparse.ArgumentParser] = []

    def keep(parser: argparse.ArgumentParser, argv: Any) -> argparse.Namespace:
        seen.append(parser)
        return argparse.Namespace()

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", keep)
    serve_demo.parse_args([])
    assert set(rows("`deploy/run.sh`")) == flags_of(seen[0])
    assert rows("`deploy/run.sh`")["--port"][0] == str(serve_demo.DEFAULT_PORT)
    assert rows("`deploy/run.sh`")["--budget"][0].startswith(f"{serve_demo.CPU_BUDGET};")


def test_every_variable_of_ours_is_described() -> None:
    suffixes = {".py", ".sh", ".yaml"}
    files = [path for part in ("ddtree_sglang", "workers", "deploy") for path in (ROOT / part).rglob("*")]
    # deploy/local is what tests and benchmarks start servers with.
    files = [path for path in files if path.suffix in suffixes and not path.is_relative_to(ROOT / "deploy/local")]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files)
    used = set(re.findall(r"\bDDTREE_[A-Z]+(?:_[A-Z]+)*\b", text))
    described = {name for name in rows("Environment variables") if name.startswith("DDTREE_")}
    assert described == used


def test_the_number_of_refusals_that_are_seen_to_be_needed_is_the_catalogues() -> None:
    told = re.findall(
        r"an answer that is not true: (\d+) cases\.", (DOCS / "guarantees.md").read_text(encoding="utf-8")
    )
    assert [int(number) for number in told] == [len(NEEDED)]


# -- messages --------------------------------------------------------------------------------------------------------


def _texts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "\u2026" for part in node.values)


@cache
def source_texts() -> str:
    """Every string of the product, what is filled in as an ellipsis."""
    files = [path for part in ("ddtree_sglang", "workers", "deploy") for path in sorted((ROOT / part).rglob("*.py"))]
    return "\n".join(text for path in files for text in _texts(ast.parse(path.read_text(encoding="utf-8"))))


def is_a_message(quoted: str) -> bool:
    """Whether the source has it; DDTREE, which many messages begin with, may be filled in there."""
    forms = (quoted, quoted.replace("DDTREE", "\u2026", 1), quoted.removeprefix("DDTREE "), quoted.strip("\u2026 "))
    return any(form in source_texts() for form in forms)


def quoted_messages() -> list[str]:
    text = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    first_cells = [line.split(" | ")[0] for line in text.splitlines() if line.startswith("| `")]
    return [re.findall(r"`(.+)`", cell)[0] for cell in first_cells if not re.search(r"\((SGLang|Python)'s\)", cell)]


@pytest.mark.parametrize("message", quoted_messages())
def test_message_of_troubleshooting_exists(message: str) -> None:
    assert is_a_message(message)


def test_message_that_nobody_raises_is_noticed() -> None:
    assert not is_a_message("DDTREE does not like this machine")
    assert len(quoted_messages()) > 40
