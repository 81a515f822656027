"""`gpu_proof` without a GPU: choice of sections, verdicts, time limit, one archive, what each command gets."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import gpu_checks, gpu_proof, gpu_sections
from benchmarks.harness import gpu_lab

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "benchmarks/gpu_proof.sh"
Action = Callable[[], tuple[int, str]]


@dataclass(frozen=True)
class Call:
    """A command, its words in one string, with what it was given in the environment and as its limit in seconds."""

    text: str
    environment: Mapping[str, str]
    timeout_s: float | None

    @property
    def float32(self) -> tuple[str | None, str | None]:
        """What computes float32 as it is written."""
        return self.environment.get("SGLANG_FORCE_FUSED_OP_BACKEND"), self.environment.get("TRITON_F32_DEFAULT")


class Machine:
    """A machine with a GPU: commands are noted, and end with what the first action whose key they hold says."""

    def __init__(self, folder: Path) -> None:
        self.out = folder / "out"
        self.calls: list[Call] = []
        self.gpu: str | None = "NVIDIA H100"
        self.actions: dict[str, Action] = {
            "nvidia-smi -L": lambda: (0, "GPU 0: NVIDIA H100"),
            "compute_cap": lambda: (0, "9.0\n"),
            "demo.prepare": lambda: (0, "some progress\nembedded\n"),
        }

    def answer(self, command: list[str], environment: Mapping[str, str], limit: float | None) -> tuple[int, str]:
        text = " ".join(command)
        self.calls.append(Call(text, environment, limit))
        return next((action() for part, action in self.actions.items() if part in text), (0, ""))

    def execute(
        self,
        command: list[str],
        environment: Mapping[str, str],
        timeout_s: float | None,
        write: Callable[[bytes], object],
    ) -> int:
        status, output = self.answer(command, environment, timeout_s)
        write(output.encode())
        return status

    def output_of(self, command: list[str], environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        status, output = self.answer(command, environment, None)
        told = ("", output) if status else (output, "")
        return subprocess.CompletedProcess(command, status, *told)

    def run(self, *arguments: str) -> int:
        return gpu_proof.main(["--out", str(self.out), *arguments])

    def called(self, part: str) -> list[Call]:
        """Commands with `part` in them."""
        return [call for call in self.calls if part in call.text]

    def verdicts(self) -> list[tuple[str, str]]:
        """(section, verdict) in order."""
        lines = [json.loads(line) for line in (self.out / "summary.jsonl").read_text().splitlines()]
        return [(line["section"], line["verdict"]) for line in lines]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made_up = Machine(tmp_path)
    monkeypatch.setattr(gpu_lab, "execute", made_up.execute)
    monkeypatch.setattr(gpu_proof, "end_on_sigterm", lambda: None)
    monkeypatch.setattr(gpu_sections, "collect_provenance", lambda: {"gpu": made_up.gpu})
    for module in (gpu_lab, gpu_proof, gpu_sections):
        monkeypatch.setattr(module, "output_of", made_up.output_of)
    for name in ("SGLANG_FORCE_FUSED_OP_BACKEND", "TRITON_F32_DEFAULT"):
        monkeypatch.delenv(name, raising=False)
    return made_up


def folder_with_config(parent: Path, name: str) -> str:
    folder = parent / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


@pytest.mark.parametrize("order", [["--model", "--draft"], ["--draft", "--model"], []])
def test_made_up_weights_get_the_given_models_tokenizer_and_only_else_the_embedded_ones(
    machine: Machine, tmp_path: Path, order: list[str]
) -> None:
    flags = [part for flag in order for part in (flag, folder_with_config(tmp_path, flag.strip("-")))]
    assert machine.run(*flags, "rounds") == 0
    tokenizer = tmp_path / "model" if order else "embedded"
    assert machine.called("dummy_pair")[0].text.endswith(f"dummy-pair --tokenizer {tokenizer}")
    assert bool(machine.called("demo.prepare")) == (not order)


def test_the_given_pair_is_served_from_wherever_it_was_named(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder_with_config(tmp_path, "m")
    folder_with_config(tmp_path, "d")
    assert machine.run("--model", "m", "--draft", "d", "smoke") == 0
    assert f"--model {tmp_path}/m --draft {tmp_path}/d " in machine.called("benchmarks lossless")[0].text


def test_sections_run_in_the_order_given_and_only_they(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    assert machine.run("--sections", "smoke,kernels", "graphs") == 0
    assert machine.verdicts() == [("smoke", "PASS"), ("kernels", "PASS"), ("graphs", "PASS")]
    assert "3 PASS, 0 FAIL, 0 SKIP" in capsys.readouterr().out


def test_by_default_the_decisive_sections_come_first(machine: Machine) -> None:
    assert machine.run() == 0
    sections = [section for section, _ in machine.verdicts()]
    decisive = ["machine", "kernels", "nosync", "smoke", "lossless", "graphs", "widths", "backends"]
    assert sections == [*decisive, "builder", "speed", "rounds", "speed-large"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "smoke,nonsense"], "no section nonsense"),
        (["nonsense"], "no section nonsense"),
        (["--time-limit", "soon"], "--time-limit: must be a number of seconds above 0, got soon"),
        (["--start-timeout", "0"], "--start-timeout: must be a number of seconds above 0, got 0"),
        (["--time-limit"], "--time-limit: expected one argument"),
        (["--model", "m"], "--model and --draft go together"),
        (["--model", "m", "--draft", "d"], "a model is a folder with a config.json, got "),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    machine: Machine, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status: object = machine.run(*arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not machine.calls


@pytest.mark.parametrize(
    ("key", "answer", "message"),
    [
        ("nvidia-smi -L", (0, "No devices found."), "an NVIDIA GPU is needed"),
        ("nvidia-smi -L", (127, ""), "an NVIDIA GPU is needed"),
        ("cuda.is_available", (1, "AssertionError: 2.14.1+cpu"), "torch sees none: AssertionError: 2.14.1+cpu"),
    ],
)
def test_a_gpu_that_torch_or_the_driver_does_not_see_is_no_gpu(
    machine: Machine, capsys: pytest.CaptureFixture[str], key: str, answer: tuple[int, str], message: str
) -> None:
    machine.actions[key] = lambda: answer
    assert machine.run("kernels") == 2
    assert message in capsys.readouterr().err
    assert not machine.called("pytest")
    assert not machine.out.exists()


def test_a_failure_is_told_and_the_next_section_runs(machine: Machine, capsys: pytest.CaptureFixture[str]) -> None:
    machine.actions["no-sync"] = lambda: (3, "the reason\n")
    assert machine.run("nosync", "kernels") == 1
    assert machine.verdicts() == [("nosync", "FAIL"), ("kernels", "PASS")]
    lines = capsys.readouterr().out.rstrip().splitlines()
    assert lines[-2] == "FAIL nosync 0 s: status 3"
    assert (machine.out / "nosync.log").read_text() == "the reason\n"
    assert (machine.out / "verdicts.txt").read_text().splitlines() == lines[-2:]


def test_a_section_that_cannot_write_its_files_fails_and_the_next_runs(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    def full() -> tuple[int, str]:
        raise OSError("No space left\non device")

    machine.actions["no-sync"] = full
    assert machine.run("nosync", "kernels") == 1
    assert machine.verdicts() == [("nosync", "FAIL"), ("kernels", "PASS")]
    assert "FAIL nosync 0 s: status 1: No space left on device\n" in capsys.readouterr().out


def test_a_later_run_into_the_same_folder_counts_its_own_verdicts(machine: Machine) -> None:
    machine.actions["no-sync"] = lambda: (3, "")
    assert machine.run("nosync") == 1
    assert machine.run("kernels") == 0
    assert machine.verdicts() == [("nosync", "FAIL"), ("kernels", "PASS")]


def test_a_machine_whose_gpu_has_no_name_fails(machine: Machine) -> None:
    machine.gpu = None
    assert machine.run("machine") == 1
    assert '"gpu": null' in (machine.out / "machine.log").read_text()


def test_kernel_tests_without_their_packages_are_skipped_with_the_reason(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.actions["import hypothesis"] = lambda: (1, "ModuleNotFoundError: No module named 'hypothesis'")
    assert machine.run("machine", "kernels") == 0
    assert machine.verdicts() == [("machine", "PASS"), ("kernels", "SKIP")]
    assert "SKIP kernels 0 s: pytest and hypothesis are needed" in capsys.readouterr().out
    assert not machine.called("-m pytest")


def test_sections_that_no_longer_fit_are_skipped_and_prove_nothing(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert machine.run("--time-limit", "60", "machine", "lossless") == 0
    assert machine.verdicts() == [("machine", "PASS"), ("lossless", "SKIP")]
    told = capsys.readouterr().out
    assert "1 PASS, 0 FAIL, 1 SKIP" in told
    assert "needs about 180 s" in told
    assert not machine.called("benchmarks lossless")
    assert machine.run("--time-limit", "1", "machine") == 1, "nothing passed"


def test_a_section_that_takes_longer_than_thought_is_ended_at_the_limit(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hopeful = replace(gpu_proof.BY_NAME["builder"], limit_s=1)
    monkeypatch.setitem(gpu_proof.BY_NAME, "builder", hopeful)

    def measured() -> tuple[int, str]:
        (machine.out / "builder.jsonl").write_text("measured")
        return gpu_lab.TIMED_OUT, ""

    machine.actions["gpu_kernels"] = measured
    assert machine.run("--time-limit", "30", "builder") == 1
    (call,) = machine.called("gpu_kernels")
    assert call.timeout_s is not None
    assert 0 < call.timeout_s <= 30
    assert "FAIL builder 0 s: ended early, status 124; what it measured is kept" in capsys.readouterr().out
    with tarfile.open(machine.out / "proof.tar.gz") as packed:
        assert "./builder.jsonl" in packed.getnames()


def test_a_run_that_is_interrupted_keeps_its_results(machine: Machine) -> None:
    def interrupted() -> tuple[int, str]:
        raise KeyboardInterrupt

    machine.actions["no-sync"] = interrupted
    assert machine.run("kernels", "nosync", "smoke") == 130
    assert machine.verdicts() == [("kernels", "PASS"), ("nosync", "FAIL")]
    with tarfile.open(machine.out / "proof.tar.gz") as packed:
        assert {"./kernels.log", "./summary.jsonl", "./verdicts.txt"} <= set(packed.getnames())


def test_one_file_has_everything_after_each_section(machine: Machine, tmp_path: Path) -> None:
    where = tmp_path / "elsewhere/all.tar.gz"
    seen: set[str] = set()

    def look() -> tuple[int, str]:
        with tarfile.open(where) as packed:
            seen.update(packed.getnames())
        return 0, ""

    machine.actions["graph-equality"] = look  # the second section looks at what the first one left
    assert machine.run("--tar", str(where), "smoke", "graphs") == 0
    assert {"./smoke.log", "./summary.jsonl"} <= seen
    with tarfile.open(where) as packed:
        assert {"./smoke.log", "./graphs.log", "./verdicts.txt", "./summary.jsonl"} <= set(packed.getnames())


def test_the_archive_does_not_hold_itself(machine: Machine) -> None:
    assert machine.run("machine", "kernels") == 0
    with tarfile.open(machine.out / "proof.tar.gz") as packed:
        assert not [name for name in packed.getnames() if "tar.gz" in name]


def test_without_the_embedded_models_package_server_sections_fail_at_once_and_others_run(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.actions["demo.prepare"] = lambda: (1, "[prepare] error: the package is not installed.")
    assert machine.run("kernels", "nosync", "rounds") == 1
    assert machine.verdicts() == [("kernels", "PASS"), ("nosync", "FAIL"), ("rounds", "FAIL")]
    assert "the package is not installed. Or pass --model M --draft D." in capsys.readouterr().out
    assert "the package is not installed." in (machine.out / "prepare.log").read_text()
    assert not machine.called("gpu_checks")
    assert len(machine.called("demo.prepare")) == 1


@pytest.mark.parametrize(("capability", "expected"), [("9.0", "fa3"), ("10.0", "fa4"), ("8.9", None)])
def test_each_backend_of_the_gpu_is_compared_with_plain_decoding(
    machine: Machine, capability: str, expected: str | None
) -> None:
    machine.actions["compute_cap"] = lambda: (0, f"{capability}\n")
    assert machine.run("backends") == 0
    # The last flag of a name is the one that counts.
    calls = machine.called("benchmarks lossless")
    used = [call.text.rsplit("--attention-backend=", 1)[1].split()[0] for call in calls]
    assert used == ["triton", "flashinfer", *([expected] if expected else [])]


def test_one_backend_that_fails_fails_the_section_and_the_next_is_compared(machine: Machine) -> None:
    machine.actions["backend-triton"] = lambda: (1, "")
    assert machine.run("backends") == 1
    assert machine.verdicts() == [("backends", "FAIL")]
    assert len(machine.called("benchmarks lossless")) == 3


@pytest.mark.parametrize("failing", ["servers/widths ", "servers/widths-flashinfer "])
def test_widths_fail_when_either_backend_does(machine: Machine, failing: str) -> None:
    machine.actions[failing] = lambda: (1, "")
    assert machine.run("widths") == 1
    assert len(machine.called("width-equality")) == 2


def test_a_backend_that_is_not_installed_is_skipped_with_the_reason(
    machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    machine.actions["import sgl_kernel.flash_attn"] = lambda: (1, "Traceback\nImportError: no FA3")
    assert machine.run("backends") == 0
    assert machine.verdicts() == [("backends/fa3", "SKIP"), ("backends", "PASS")]
    told = capsys.readouterr().out
    assert "import sgl_kernel.flash_attn fails here: ImportError: no FA3" in told
    assert "1 PASS, 0 FAIL, 1 SKIP" in told
    assert len(machine.called("benchmarks lossless")) == 2


def test_float32_is_computed_as_float32_and_half_precision_as_served(machine: Machine) -> None:
    assert machine.run("kernels", "lossless", "graphs", "widths", "smoke", "speed") == 0
    assert machine.called("-m pytest")[0].float32 == (None, "ieee")
    for part in ("servers/lossless ", "graph-equality", "width-equality"):
        call = machine.called(part)[0]
        assert call.float32 == ("torch", "ieee"), part
        assert "--start-timeout 300 " in call.text, "kernels without tensor cores compile longer"
        assert "--dtype" not in call.text, "float32 is the default"
    of_flashinfer = machine.called("width-equality")[1]
    assert "--attention-backend=flashinfer --dtype bfloat16 --near-tie 0.25" in of_flashinfer.text
    for call in (of_flashinfer, machine.called("smoke.json")[0], machine.called("benchmarks decode")[0]):
        assert call.float32 == (None, None), "nothing forced"
        assert "--start-timeout 150 " in call.text


def test_all_servers_of_a_section_capture_the_measured_batch_sizes_alone(machine: Machine) -> None:
    assert machine.run("--start-timeout", "99", "lossless", "speed-large") == 0
    (large,) = machine.called("benchmarks decode")
    graphs = "--server-flag=--disable-prefill-cuda-graph"
    sizes = "--server-flag=--cuda-graph-bs-decode --server-flag=16 --server-flag=32 --prompts"
    for expected in (graphs, sizes, "--start-timeout 99", "--client-timeout 60", "--max-total-tokens 32768"):
        assert expected in large.text, expected
    assert f"--server-logs {machine.out}/servers/lossless" in machine.called("benchmarks lossless")[0].text


def test_round_costs_are_written_also_of_a_run_that_was_ended_early(machine: Machine) -> None:
    plain = {"system": "plain", "up_together": ["plain"], "dataset": "held-out", "batch_size": 1}
    rates = {"decode_tokens_per_s": {"median": 100.0}, "ms_per_round": None}
    tree = {"system": "ddtree-16", "ms_per_round": {"median": 15.0}, "decode_tokens_per_s": {"median": 90.0}}

    def measured() -> tuple[int, str]:
        lines = (plain | rates, plain | tree)
        (machine.out / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return gpu_lab.TIMED_OUT, ""

    machine.actions["benchmarks decode"] = measured
    assert machine.run("rounds") == 1
    assert "| ddtree-16 | 1.50 |" in (machine.out / "rounds.md").read_text()
    assert "| ddtree-16 | 1.50 |" in (machine.out / "rounds.log").read_text()


def test_a_checkout_that_is_not_installed_gets_its_entry_points(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(_name: str) -> str:
        raise gpu_proof.metadata.PackageNotFoundError

    monkeypatch.setattr(gpu_proof.metadata, "version", missing)
    monkeypatch.setattr(gpu_proof, "write_metadata", lambda _folder: tmp_path / "points/ddtree.dist-info")
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    assert machine.run("kernels") == 0
    environment = machine.called("-m pytest")[0].environment
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "points"), str(REPO), "/users/own"]
    assert environment["SGLANG_FLASHINFER_USE_PAGED"] == "1"


@pytest.mark.sglang
def test_sglang_knows_the_flags_of_every_server(machine: Machine) -> None:
    from tests.deploy import flag_parsers

    machine.run()
    of_checks = {part for flags in gpu_checks.EQUAL_WITH.values() for part in flags if part.startswith("--")}
    calls = machine.called("--server-flag=")
    assert len(calls) == 12, "nosync, smoke, lossless, graphs, two of widths, three of backends, three of speed"
    for call in calls:
        words = call.text.split()
        flags = [part.removeprefix("--server-flag=") for part in words if part.startswith("--server-flag=")]
        parsed = flag_parsers.sglang_parser().parse_args(["--model-path", "m", *flags])
        assert parsed.disable_prefill_cuda_graph is True
        assert parsed.cuda_graph_bs_decode
        assert parsed.attention_backend in {"triton", "flashinfer", "fa3"}
    assert of_checks <= set(flag_parsers.sglang_parser()._option_string_actions)


def test_every_benchmark_takes_the_flags_that_it_gets(machine: Machine) -> None:
    """A flag that a benchmark does not know would fail the section after minutes, on a machine that is lent."""
    from benchmarks import decode, lossless

    machine.run()
    calls = [call.text.split("-m benchmarks ", 1)[1].split() for call in machine.called("-m benchmarks ")]
    parsers = {"decode": decode.parse_args, "lossless": lossless.parse_args, "gpu_checks": gpu_checks.parse_args}
    for name, *flags in calls:
        if name in parsers:
            parsers[name](flags)
    assert {name for name, *_ in calls} == {*parsers, "dummy_pair", "gpu_kernels"}


def run_really(code: str, timeout_s: float | None) -> tuple[int, str, float]:
    """Status, output and seconds of a real Python that runs `code`."""
    seen: list[bytes] = []
    started = time.monotonic()
    status = gpu_lab.execute([sys.executable, "-u", "-c", code], os.environ, timeout_s, seen.append)
    return status, b"".join(seen).decode(), time.monotonic() - started


def test_a_command_gives_its_status_and_both_its_outputs() -> None:
    code = "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"
    assert run_really(code, None)[:2] == (7, "out\nerr\n")
    assert run_really("import os; os.kill(os.getpid(), 9)", 60.0)[0] == 137


def test_a_command_over_its_limit_is_told_to_end_and_may_say_what_it_has() -> None:
    code = "import time\ntry: time.sleep(60)\nfinally: print('kept')"
    ending = f"import signal; signal.signal(signal.SIGTERM, signal.default_int_handler)\n{code}"
    status, output, seconds = run_really(ending, 1.0)
    assert status == gpu_lab.TIMED_OUT
    assert output.startswith("kept\n")
    assert seconds < 30


def test_a_command_that_does_not_listen_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_lab, "KILL_AFTER_S", 1.0)
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf'); time.sleep(60)"
    status, output, seconds = run_really(deaf, 1.0)
    assert (status, output) == (gpu_lab.TIMED_OUT, "deaf\n")
    assert seconds < 30


def test_an_interrupt_ends_the_command_too(tmp_path: Path) -> None:
    code = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); print('up'); time.sleep(60)"

    def interrupt(_output: bytes) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gpu_lab.execute([sys.executable, "-u", "-c", code], os.environ, None, interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGCONT)


@pytest.mark.parametrize("flag", ["--help", "--nonsense"])
def test_script_starts_the_program_from_any_folder(tmp_path: Path, flag: str) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/__init__.py").write_text("raise SystemExit('not ours')")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), flag]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if flag == "--help" else 2)
    assert all(name in ended.stdout for name in gpu_proof.BY_NAME) or flag != "--help"
