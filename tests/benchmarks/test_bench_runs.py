"""The server benchmarks from flags to result files, with made-up servers whose tokens and times are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import acceptance as bench_acceptance
from benchmarks import budget_sweep
from benchmarks import decode as bench_decode
from benchmarks import lossless as bench_lossless
from benchmarks import serving as bench_serving
from benchmarks.harness import systems as server
from benchmarks.harness.prompts import Prompt
from ddtree_sglang.config import DEFAULT_BUDGET
from ddtree_sglang.simulator.costs import table_of_decode
from deploy.local.server_process import ServerError, ServerProcess, free_port

PLAIN = [server.System("plain", None)]
FAKE = Path(__file__).resolve().parent / "fake_generate.py"


class FakeMachine:
    """Names of the systems that answer with other tokens, all servers that were started, and what they got alike."""

    def __init__(self) -> None:
        self.liars: set[str] = set()
        self.started: list[ServerProcess] = []
        self.commons: set[server.Common] = set()


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeMachine:
    """Fake servers, two prompts, no model."""
    fake = FakeMachine()

    def process(system: server.System, common: server.Common, trace_path: Path | None) -> ServerProcess:
        port = free_port()
        kind = "speculative" if system.algorithm else "plain"
        trace = str(trace_path or tmp_path / f"{system.name}.unread")
        tokens = "other" if system.name in fake.liars else "same"
        command = [sys.executable, str(FAKE), str(port), kind, trace, tokens]
        log = tmp_path / f"{system.name}.log"
        fake.commons.add(common)
        fake.started.append(ServerProcess(system.name, command, f"http://127.0.0.1:{port}", log))
        return fake.started[-1]

    prompts = [Prompt("gsm8k", "gsm8k-1", "a"), Prompt("gsm8k", "gsm8k-2", "b")]
    for module in (bench_decode, bench_lossless, bench_acceptance, bench_serving):
        monkeypatch.setattr(module, "prepare_pair", lambda *_: SimpleNamespace(model="m", draft="d"))
        monkeypatch.setattr(module, "encode", lambda *_: {"gsm8k": [[1, 2], [3, 4]]})
        monkeypatch.setattr(module, "sample_prompts", lambda *_: prompts)
    monkeypatch.setattr(bench_serving, "served_texts", lambda *_: ["a", "b"])
    monkeypatch.setattr(server, "_process", process)
    monkeypatch.setattr(server, "LOG_FOLDER", tmp_path)
    monkeypatch.setattr(server, "check_memory", lambda _system: None)
    return fake


def decode(tmp_path: Path, *flags: str) -> tuple[int, list[dict]]:
    output = tmp_path / "out.jsonl"
    base = ("--budgets", "4", "8", "--batch-sizes", "1", "2", "--repeats", "2", "--max-new-tokens", "11")
    base += ("--servers-at-once", "4", "--adaptive", "0")
    status = bench_decode.main([*base, "--output", str(output), *flags])
    return status, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def test_decode_writes_a_line_for_each_system_and_batch_size(machine: FakeMachine, tmp_path: Path) -> None:
    status, lines = decode(tmp_path)
    assert status == 0
    systems = ["plain", "dflash", "ddtree-4", "ddtree-8"]
    assert [(line["system"], line["batch_size"]) for line in lines] == [(s, b) for b in (1, 2) for s in systems]
    by_system = {line["system"]: line for line in lines if line["batch_size"] == 1}
    assert by_system["plain"]["accept_length"] is None
    # 11 tokens: one from the prompt, ten in five rounds.
    assert by_system["ddtree-4"]["accept_length"]["median"] == pytest.approx(11 / 5)
    assert 1.3 < by_system["ddtree-4"]["ratio_to_plain"] < 3.0, "two tokens a step against one"
    assert by_system["ddtree-8"]["stages"]["tree_share"] == pytest.approx(0.1)
    assert by_system["dflash"]["stages"] is None
    assert by_system["plain"]["provenance"]["settings"]["budgets"] == [4, 8]
    assert "| ddtree-8 | gsm8k |" in (tmp_path / "out.md").read_text()
    assert all(one.exit_status() is not None for one in machine.started)


def test_every_comparison_has_the_policy_that_servers_have_by_default(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--budgets",
        "4",
        "--batch-sizes",
        "1",
        "--repeats",
        "1",
        "--max-new-tokens",
        "11",
        "--servers-at-once",
        "4",
    )
    assert bench_decode.main([*flags, "--output", str(tmp_path / "out.jsonl")]) == 0
    assert [one.name for one in machine.started] == ["plain", "dflash", "ddtree-adaptive-16", "ddtree-4"]
    assert bench_decode.parse_args([]).adaptive == bench_serving.parse_args([]).adaptive == DEFAULT_BUDGET


def test_every_server_gets_the_prepared_pair_and_the_common_flags(machine: FakeMachine, tmp_path: Path) -> None:
    flags = ("--dtype", "bfloat16", "--max-total-tokens", "99", "--server-flag=--a", "--server-flag=--b")
    assert decode(tmp_path, *flags)[0] == 0
    assert machine.commons == {server.Common("m", "d", "bfloat16", 99, max_running_requests=2, extra=("--a", "--b"))}


def test_budgets_that_do_not_fit_together_go_in_groups_with_both_baselines(
    machine: FakeMachine, tmp_path: Path
) -> None:
    status, lines = decode(tmp_path, "--servers-at-once", "3", "--batch-sizes", "1")
    assert status == 0
    first, second = ["plain", "dflash", "ddtree-4"], ["plain", "dflash", "ddtree-8"]
    assert [line["system"] for line in lines] == first + second
    assert [line["up_together"] for line in lines] == [first] * 3 + [second] * 3
    for own, plain in ((lines[2], lines[0]), (lines[5], lines[3])):
        rates = [line["decode_tokens_per_s"]["median"] for line in (own, plain)]
        assert own["ratio_to_plain"] == pytest.approx(rates[0] / rates[1])
    text = (tmp_path / "out.md").read_text()
    assert "in turns: plain, dflash, ddtree-4\n" in text
    assert "in turns: plain, dflash, ddtree-8\n" in text


def test_a_budgets_server_keeps_it_whatever_a_servers_default_is() -> None:
    (group,) = server.groups_for([4, 8], 5, 16)
    policies = {system.name: system.policy for system in group}
    adapting = {"ddtree-adaptive-16": "adaptive", "ddtree-4": "fixed", "ddtree-8": "fixed"}
    assert policies == {"plain": None, "dflash": None, **adapting}
    process = server._process(group[-1], server.Common("m", "d", "float32", 8192, 4), None)
    assert " ".join(process.command).count("--speculative-ddtree-budget 8 --speculative-ddtree-policy fixed") == 1


def test_trees_that_know_texts_stand_beside_those_that_do_not() -> None:
    groups = server.groups_for([4, 8], 4, ngrams=True)
    assert [[one.name for one in group] for group in groups] == [
        ["plain", "dflash", "ddtree-4", "ddtree-4-ngrams"],
        ["plain", "dflash", "ddtree-8", "ddtree-8-ngrams"],
    ]
    assert [one.flags for one in groups[0]] == [(), (), (), ("--speculative-ddtree-ngrams",)]
    (group,) = server.groups_for([4], 5, 16, ngrams=True)
    assert [one.name for one in group] == [
        "plain",
        "dflash",
        "ddtree-adaptive-16",
        "ddtree-adaptive-16-ngrams",
        "ddtree-4",
    ]
    assert [one.flags for one in group if one.adapts] == [(), ("--speculative-ddtree-ngrams",)]
    with pytest.raises(ServerError, match="needs 4 servers at once, 3 fit"):
        server.groups_for([4], 3, ngrams=True)
    with pytest.raises(ServerError, match="--ngrams or --other-env as well"):
        server.groups_for([4], 5, 4, one_server=True, ngrams=True)


def test_a_variable_is_of_the_other_trees_server_alone() -> None:
    groups = server.groups_for([4, 8], 4, environment=("NAME", "value"))
    assert [[one.name for one in group[2:]] for group in groups] == [
        ["ddtree-4", "ddtree-4-env"],
        ["ddtree-8", "ddtree-8-env"],
    ]
    common = server.Common("m", "d", "float32", 8192, 4)
    set_for = [server._process(one, common, None).environment.get("NAME") for one in groups[0]]
    assert set_for == [None, None, None, "value"]
    (group,) = server.groups_for([4], 6, 16, ngrams=True, environment=("NAME", "value"))
    adaptive = "ddtree-adaptive-16"
    assert [one.name for one in group[2:]] == [adaptive, f"{adaptive}-ngrams", f"{adaptive}-env", "ddtree-4"]
    with pytest.raises(ServerError, match="--ngrams or --other-env as well"):
        server.groups_for([4], 5, 4, one_server=True, environment=("NAME", "value"))


def test_a_variable_has_a_name_and_a_value() -> None:
    assert bench_decode.parse_args(["--other-env", "NAME=a=b"]).other_env == ("NAME", "a=b")
    assert bench_decode.parse_args(["--other-env", "NAME="]).other_env == ("NAME", "")
    for text in ("NAME", "=value"):
        with pytest.raises(SystemExit):
            bench_decode.parse_args(["--other-env", text])


def test_another_drafters_trees_stand_beside_the_runs_own() -> None:
    groups = server.groups_for([4, 8], 5, other_draft="pairs")
    assert [[one.name for one in group[2:]] for group in groups] == [
        ["ddtree-4", "ddtree-4-other"],
        ["ddtree-8", "ddtree-8-other"],
    ]
    common = server.Common("m", "d", "float32", 8192, 4)
    drafts = [server._process(one, common, None).command for one in groups[0]]
    flag = "--speculative-draft-model-path"
    assert [flag in command and command[command.index(flag) + 1] for command in drafts] == [False, "d", "d", "pairs"]
    with pytest.raises(ServerError, match="needs 4 servers at once, 3 fit"):
        server.groups_for([4], 3, other_draft="pairs")
    with pytest.raises(ServerError, match="--one-server has one kind of tree"):
        server.groups_for([4], 5, 4, one_server=True, other_draft="pairs")


def test_budgets_are_asked_of_the_server_that_adapts(machine: FakeMachine, tmp_path: Path) -> None:
    status, lines = decode(tmp_path, "--adaptive", "8", "--one-server", "--servers-at-once", "3", "--batch-sizes", "1")
    assert status == 0
    names = ["plain", "dflash", "ddtree-adaptive-8", "ddtree-0", "ddtree-4", "ddtree-8"]
    assert [line["system"] for line in lines] == names
    assert [one.name for one in machine.started] == names[:3]
    answers = 2 + 2 * 2  # prompts that were compared, and those of two repeats
    asked = {name: (tmp_path / f"{name}.log").read_text().count("asked {") for name in names[:3]}
    assert asked == {"plain": 0, "dflash": 0, "ddtree-adaptive-8": 3 * answers}
    log = (tmp_path / "ddtree-adaptive-8.log").read_text()
    assert log.count("temperature") == 4 * answers
    for budget in (0, 4, 8):
        assert log.count(str({"ddtree": {"budget": budget, "adapt": False, "learn": False}})) == answers
    assert set(table_of_decode(lines, 4).seconds) == {(0, 1, 1), (0, 1, 4)}, "asked rounds are no server's own"


def test_a_server_that_is_asked_for_several_is_no_other_one_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, shared = (SimpleNamespace(pid=pid) for pid in (1, 2))
    systems = [
        server.RunningSystem(server.System(name, "DDTREE"), process, None)  # type: ignore[arg-type]
        for name, process in (("plain", plain), ("adaptive", shared), ("ddtree-4", shared))
    ]
    monkeypatch.setattr(server, "group_cpu_s", {1: 1.0, 2: 10.0}.__getitem__)
    assert [server.others_cpu_s(systems, one) for one in systems] == [10.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--adaptive", "0"), "got 8; change --budgets or --adaptive"),
        (("--adaptive", "4"), "got 8; change --budgets or --adaptive"),
        (("--adaptive", "8", "--servers-at-once", "2"), "3 servers at once, 2 fit"),
    ],
)
def test_one_server_must_adapt_and_have_all_budgets(
    flags: tuple[str, ...], named: str, machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = decode(tmp_path, "--one-server", *flags)
    assert status == 1
    assert named in capsys.readouterr().err
    assert not machine.started


def test_two_servers_are_no_comparison(
    machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _ = decode(tmp_path, "--servers-at-once", "2")
    assert status == 1
    assert "3 servers at once, 2 fit" in capsys.readouterr().err
    assert not machine.started


def test_decode_times_nothing_when_tokens_differ(machine: FakeMachine, tmp_path: Path) -> None:
    machine.liars = {"ddtree-8"}
    status, lines = decode(tmp_path)
    assert status == 1
    assert lines == []
    assert all(one.exit_status() is not None for one in machine.started)


def test_decode_says_so_in_every_line_when_told_to_go_on(machine: FakeMachine, tmp_path: Path) -> None:
    machine.liars = {"ddtree-8"}
    status, lines = decode(tmp_path, "--allow-mismatch")
    assert status == 0
    assert {line["system"]: line["prompts_unlike_plain"] for line in lines}["ddtree-8"] == 2
    assert {line["system"]: line["prompts_unlike_plain"] for line in lines}["ddtree-4"] == 0


def test_decode_measures_each_dtype_with_servers_of_its_own(machine: FakeMachine, tmp_path: Path) -> None:
    flags = ("--dtypes", "float32", "bfloat16", "--batch-sizes", "1", "--budgets", "4", "--repeats", "1")
    status, lines = decode(tmp_path, *flags)
    assert status == 0
    systems = ["plain", "dflash", "ddtree-4"]
    assert [(line["dtype"], line["system"]) for line in lines] == [
        (dtype, system) for dtype in ("float32", "bfloat16") for system in systems
    ]
    assert [line["provenance"]["settings"]["dtype"] for line in lines] == ["float32"] * 3 + ["bfloat16"] * 3
    assert {common.dtype for common in machine.commons} == {"float32", "bfloat16"}
    assert "### Batch size 1, bfloat16, in turns: plain, dflash, ddtree-4" in (tmp_path / "out.md").read_text()


@pytest.mark.usefixtures("machine")
def test_as_many_prompts_are_asked_as_go_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    chosen = [Prompt("gsm8k", str(i), "a") for i in range(2)]
    monkeypatch.setattr(bench_decode, "sample_prompts", lambda _sets, count, *_: counts.append(count) or chosen)
    status, lines = decode(tmp_path, "--prompts", "1", "--budgets", "4", "--repeats", "1")
    assert (status, counts) == (0, [2])
    assert {(line["batch_size"], line["num_prompts"]) for line in lines} == {(1, 1), (2, 2)}
    status, lines = decode(tmp_path, "--prompts", "0", "--budgets", "4", "--repeats", "1")
    assert (status, counts) == (0, [2, 0])
    assert {(line["batch_size"], line["num_prompts"]) for line in lines} == {(1, 2), (2, 2)}


def test_the_pool_holds_the_largest_batch_with_its_trees() -> None:
    flags = ("--batch-sizes", "1", "32", "--budgets", "8", "64", "--max-new-tokens", "128")
    args = bench_decode.parse_args(flags)
    assert bench_decode.pool_tokens({"gsm8k": [[0] * 222, [0]]}, args) == 15 * 1024
    assert bench_decode.pool_tokens({"gsm8k": [[0]]}, bench_decode.parse_args([])) == 8192
    assert bench_decode.parse_args(["--max-total-tokens", "99"]).max_total_tokens == 99


def test_the_sweep_is_decode_with_the_papers_budgets(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr(bench_decode, "main", lambda argv: asked.append(argv) or 0)
    assert budget_sweep.main(["--repeats", "5", "--budgets", "2", "4"]) == 0
    args = bench_decode.parse_args(asked[0])
    assert (args.budgets, args.batch_sizes, args.repeats) == ([2, 4], [1], 5)
    assert args.output.name.startswith("budget-sweep-")
    budget_sweep.main([])
    args = bench_decode.parse_args(asked[1])
    assert (args.budgets, args.adaptive, args.one_server) == ([1, 2, 4, 8, 16, 32, 64], 64, True)
    assert len(server.groups_for(args.budgets, 3, args.adaptive, one_server=True)) == 1


@pytest.mark.usefixtures("machine")
def test_decode_result_files_hold_no_path_of_the_machine(tmp_path: Path) -> None:
    decode(tmp_path)
    assert str(tmp_path) not in (tmp_path / "out.jsonl").read_text()


@pytest.mark.usefixtures("machine")
def test_a_decode_run_that_is_killed_leaves_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = bench_decode.measure

    def killed(*given: object) -> Iterator[list]:
        yield next(measure(*given))
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_decode, "measure", killed)
    status, lines = decode(tmp_path)
    assert status == 130
    assert [(line["system"], line["batch_size"]) for line in lines] == [
        (system, 1) for system in ("plain", "dflash", "ddtree-4", "ddtree-8")
    ]
    assert all(line["decode_tokens_per_s"]["n"] == 1 for line in lines)
    assert lines[-1]["ratio_to_plain"] is not None
    assert "| ddtree-8 | gsm8k |" in (tmp_path / "out.md").read_text()


def test_a_failure_shows_the_end_of_every_servers_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def process(system: server.System, common: server.Common, _trace_path: Path | None) -> ServerProcess:
        command = [sys.executable, "-c", "print(*range(100), sep='\\n'); raise SystemExit(3)"]
        log = server._new_log(common.logs, system.name)
        return ServerProcess(system.name, command, f"http://127.0.0.1:{free_port()}", log)

    monkeypatch.setattr(server, "_process", process)
    monkeypatch.setattr(server, "check_memory", lambda _system: None)
    common = server.Common("m", "d", "float32", 99, 1, logs=tmp_path / "logs")
    for _ in range(2):
        with pytest.raises(ServerError, match="ended with status 3"), server.running(PLAIN, common):
            pass
    shown = capsys.readouterr().out
    assert "the end of plain's log, plain-2.log:\n    60\n    61\n" in shown
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["plain-2.log", "plain.log"]


def test_a_server_that_does_not_start_in_time_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def process(system: server.System, _common: server.Common, _trace_path: Path | None) -> ServerProcess:
        return ServerProcess(system.name, ["sleep", "60"], f"http://127.0.0.1:{free_port()}", tmp_path / "log")

    monkeypatch.setattr(server, "_process", process)
    monkeypatch.setattr(server, "check_memory", lambda _system: None)
    common = server.Common("m", "d", "float32", 99, 1, start_timeout_s=1.0)
    with pytest.raises(ServerError, match="not ready within 1 s"), server.running(PLAIN, common):
        pass


def lossless(tmp_path: Path) -> tuple[int, dict]:
    output = tmp_path / "lossless.json"
    flags = ["--budgets", "4", "8", "--concurrency", "1", "2", "--max-new-tokens", "5", "--output", str(output)]
    return bench_lossless.main(flags), json.loads(output.read_text())


def test_lossless_counts_nothing_when_all_is_equal(machine: FakeMachine, tmp_path: Path) -> None:
    status, record = lossless(tmp_path)
    assert status == 0
    assert machine.commons == {server.Common("m", "d", "float32", 8192, max_running_requests=2)}
    assert [(case["budget"], case["concurrency"]) for case in record["cases"]] == [(4, 1), (4, 2), (8, 1), (8, 2)]
    assert all(case["num_mismatches"] == 0 and case["num_prompts"] == 2 for case in record["cases"])
    assert record["is_complete"] is True


def test_lossless_reports_where_and_by_how_much(machine: FakeMachine, tmp_path: Path) -> None:
    machine.liars = {"ddtree-8"}
    status, record = lossless(tmp_path)
    assert status == 1
    assert [case["num_mismatches"] for case in record["cases"]] == [0, 0, 2, 2]
    first = record["cases"][2]["divergences"][0]
    where = {"prompt": "gsm8k-1", "position": 2, "plain_token": 5, "other_token": 1005}
    assert first == {**where, "margin": 0.5, "tolerance": 1e-4}
    assert "MISMATCH: gsm8k-1, budget 8" in (tmp_path / "lossless.md").read_text()


@pytest.mark.usefixtures("machine")
def test_a_lossless_run_that_is_killed_leaves_its_cases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compare, seen = bench_lossless.compare_case, []

    def killed(*given: object) -> bench_lossless.Case:
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(given)
        return compare(*given)

    monkeypatch.setattr(bench_lossless, "compare_case", killed)
    status, record = lossless(tmp_path)
    assert status == 130
    assert [(case["budget"], case["concurrency"]) for case in record["cases"]] == [(4, 1), (4, 2), (8, 1)]
    assert record["is_complete"] is False


def acceptance(tmp_path: Path, *flags: str) -> tuple[int, list[dict]]:
    output = tmp_path / "acceptance.jsonl"
    base = ["--datasets", "gsm8k", "--budgets", "4", "--max-new-tokens", "11", "--output", str(output)]
    status = bench_acceptance.main([*base, *flags])
    return status, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


def test_acceptance_counts_rounds_of_the_chain_and_of_trees(
    machine: FakeMachine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, lines = acceptance(tmp_path)
    assert status == 0
    assert [(line["kind"], line["system"]) for line in lines] == [
        *(("acceptance", system) for system in ("plain", "dflash", "ddtree-4")),
        ("surrogate", "ddtree-4"),
    ]
    plain, chain, tree, surrogate = lines
    assert plain["accept_length"] is None
    # 11 tokens: one from the prompt, ten in five rounds of two.
    assert tree["accept_length"]["value"] == pytest.approx(11 / 5)
    assert tree["gain_over_chain"]["value"] == 0
    assert chain["prompts"] == [
        {"key": f"gsm8k-{i}", "answer": answer["answer"], "tokens": 11, "rounds": 5, "histogram": [0, 5]}
        for i, answer in enumerate(plain["prompts"], 1)
    ]
    # A tree of one drafted node, half of it expected, all of it accepted; each request's last round is left out.
    assert (surrogate["num_rounds"], surrogate["num_prompts"]) == (8, 2)
    assert surrogate["expected"]["value"] == pytest.approx(0.5)
    assert surrogate["realised"]["value"] == pytest.approx(1.0)
    assert "| ddtree-4 | 0.0 % | 100.0 % |" in (tmp_path / "acceptance.md").read_text()
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["prompts_unlike_plain"] == 0


def test_acceptance_goes_on_where_it_was_broken_off(
    machine: FakeMachine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = bench_acceptance.ask

    def killed(one: server.RunningSystem, *given: object) -> dict:
        if one.system.name == "ddtree-4":
            raise KeyboardInterrupt
        return asked(one, *given)

    monkeypatch.setattr(bench_acceptance, "ask", killed)
    status, lines = acceptance(tmp_path)
    assert (status, [line["system"] for line in lines]) == (130, ["plain", "dflash"])
    monkeypatch.setattr(bench_acceptance, "ask", asked)
    before = len(machine.started)
    status, lines = acceptance(tmp_path)
    assert (status, [line["system"] for line in lines]) == (0, ["plain", "dflash", "ddtree-4", "ddtree-4"])
    assert [one.name for one in machine.started[before:]] == ["ddtree-4"]


def test_acceptance_says_when_answers_differ(machine: FakeMachine, tmp_path: Path) -> None:
    machine.liars = {"ddtree-4"}
    status, lines = acceptance(tmp_path)
    assert status == 1
    assert {line["system"]: line.get("unlike_plain") for line in lines[:3]} == {"plain": 0, "dflash": 0, "ddtree-4": 2}


def test_drawn_answers_are_counted_and_not_compared(machine: FakeMachine, tmp_path: Path) -> None:
    machine.liars = {"ddtree-4"}
    status, lines = acceptance(tmp_path, "--temperature", "0.7")
    assert status == 0
    assert {line["unlike_plain"] for line in lines[:3]} == {None}
    assert lines[2]["accept_length"]["value"] == pytest.approx(11 / 5)
    logs = [(tmp_path / f"{name}.log").read_text().split() for name in ("plain", "dflash", "ddtree-4")]
    assert logs == [["temperature", "0.7"] * 2] * 3


@pytest.mark.usefixtures("machine")
def test_answers_to_other_prompts_are_not_taken_for_these(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    acceptance(tmp_path)
    other = [Prompt("gsm8k", "gsm8k-1", "a"), Prompt("gsm8k", "gsm8k-3", "b")]
    monkeypatch.setattr(bench_acceptance, "sample_prompts", lambda *_: other)
    assert acceptance(tmp_path)[0] == 1
    assert "other prompts of gsm8k; name another --output" in capsys.readouterr().err
    assert acceptance(tmp_path, "--max-new-tokens", "12")[0] == 1
    assert "was begun with max_new_tokens 11, not 12" in capsys.readouterr().err


def test_equal_budget_is_the_drafters_block_without_its_first_token(tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"dflash_config": {"block_size": 16}}))
    assert bench_acceptance.chain_budget(str(tmp_path)) == 15
    config.write_text("{}")
    with pytest.raises(ValueError, match="block_size above 1, got None"):
        bench_acceptance.chain_budget(str(tmp_path))


def serving(tmp_path: Path, *flags: str) -> tuple[int, list[dict]]:
    output = tmp_path / "serving.jsonl"
    base = ["--datasets", "gsm8k", "--num-prompts", "2", "--max-new-tokens", "5", "--budgets", "4"]
    base += ["--rates", "0.5", "2", "--repeats", "2", "--servers-at-once", "3", "--output", str(output)]
    base += ["--adaptive", "0"]
    status = bench_serving.main([*base, *flags])
    return status, [json.loads(line) for line in output.read_text().splitlines()] if output.exists() else []


@pytest.mark.usefixtures("machine")
def test_serving_asks_all_systems_alike_in_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, asked = bench_serving.client_command, []

    def command(url: str, *given: object) -> list[str]:
        real = made(url, *given)
        asked.append((url, real[real.index("--model") :]))
        return [sys.executable, str(FAKE.with_name("fake_serving_client.py")), *real[real.index("--base-url") :]]

    monkeypatch.setattr(bench_serving, "client_command", command)
    status, lines = serving(tmp_path)
    assert status == 0
    systems = ["plain", "dflash", "ddtree-4"]
    assert [(line["system"], line["rate"]) for line in lines] == [(s, rate) for rate in (0.5, 2.0) for s in systems]
    assert all(line["kind"] == "serving" and line["tpot_ms"]["p50"]["n"] == 2 for line in lines)
    assert lines[2]["tpot_ratios_of_turns"]["plain"]["median"] == 1.0
    assert len(asked) == 2 * 2 * 3
    for turn in range(4):
        of_turn = asked[3 * turn : 3 * turn + 3]
        assert len({url for url, _ in of_turn}) == 3
        assert len({tuple(rest) for _, rest in of_turn}) == 1, "same flags, prompts and arrivals"
    assert asked[0][0] != asked[6][0], "the order rotates from repeat to repeat"
    assert "In turns: plain, dflash, ddtree-4" in (tmp_path / "serving.md").read_text()


def test_serving_times_nothing_when_tokens_differ(machine: FakeMachine, tmp_path: Path) -> None:
    machine.liars = {"ddtree-4"}
    assert serving(tmp_path) == (1, [])
