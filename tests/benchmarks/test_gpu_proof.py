"""`gpu_proof.sh` without a GPU: choice of sections, verdicts, time limit, one file with all, what each call gets."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from benchmarks import gpu_checks

REPO = Path(__file__).resolve().parents[2]
SCRIPT = REPO / "benchmarks/gpu_proof.sh"

# Notes arguments and what is exported, then does as ACTIONS says, a file of `pattern|commands` lines.
PYTHON = """#!/usr/bin/env bash
echo "$* | ${SGLANG_FORCE_FUSED_OP_BACKEND:-} ${TRITON_F32_DEFAULT:-}" >>"@/calls"
while IFS='|' read -r pattern commands; do
    if [[ "$*" == *$pattern* ]]; then eval "$commands"; fi
done <"@/actions"
"""


class Machine:
    """A folder with a python that notes each call, and an nvidia-smi that shows a GPU of one compute capability."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out = folder, folder / "out"
        self.actions = ["demo.prepare|echo embedded"]
        self.capability = "9.0"
        (folder / "tools").mkdir()

    def run(self, *arguments: str, script: Path = SCRIPT) -> subprocess.CompletedProcess[str]:
        smi = f'#!/usr/bin/env bash\n[[ "$*" == *compute_cap* ]] && echo {self.capability} || echo GPU 0\n'
        for name, text in (("python", PYTHON.replace("@", str(self.folder))), ("nvidia-smi", smi)):
            tool = self.folder / "tools" / name
            tool.write_text(text)
            tool.chmod(0o755)
        (self.folder / "actions").write_text("".join(f"{action}\n" for action in self.actions))
        tools = self.folder / "tools"
        environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}", "PYTHON": str(tools / "python")}
        command = ["bash", str(script), "--out", str(self.out), *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    def calls(self, part: str) -> list[str]:
        """Calls of python with `part` in them."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [line for line in lines if part in line]

    def verdicts(self) -> list[tuple[str, str]]:
        """(section, verdict) in order."""
        lines = [json.loads(line) for line in (self.out / "summary.jsonl").read_text().splitlines()]
        return [(line["section"], line["verdict"]) for line in lines]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


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
    ended = machine.run(*flags, "rounds")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tokenizer = tmp_path / "model" if order else "embedded"
    assert machine.calls(f"dummy-pair --tokenizer {tokenizer} ")
    assert bool(machine.calls("demo.prepare")) == (not order)


def test_sections_run_in_the_order_given_and_only_they(machine: Machine) -> None:
    ended = machine.run("--sections", "smoke,kernels", "graphs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert machine.verdicts() == [("smoke", "PASS"), ("kernels", "PASS"), ("graphs", "PASS")]
    assert "3 PASS, 0 FAIL, 0 SKIP" in ended.stdout


def test_by_default_the_decisive_sections_come_first(machine: Machine) -> None:
    machine.run()
    sections = [section for section, _ in machine.verdicts()]
    decisive = ["machine", "kernels", "nosync", "smoke", "lossless", "graphs", "widths", "backends"]
    assert sections == [*decisive, "builder", "speed", "rounds", "speed-large"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "smoke,nonsense"], "no section nonsense"),
        (["--time-limit", "soon"], "--time-limit is a number of seconds, got soon"),
        (["--time-limit"], "--time-limit needs a value"),
        (["--model", "m"], "--model and --draft go together"),
        (["--model", "m", "--draft", "d"], "a model is a folder with a config.json, got m"),
        (["--faster"], "unknown flag --faster"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(machine: Machine, arguments: list[str], message: str) -> None:
    ended = machine.run(*arguments)
    assert ended.returncode == 2
    assert message in ended.stderr
    assert not (machine.folder / "calls").exists()


def test_a_gpu_that_torch_does_not_see_is_no_gpu(machine: Machine) -> None:
    machine.actions += ["cuda.is_available|echo 'AssertionError: 2.14.1+cpu' >&2; exit 1"]
    ended = machine.run("kernels")
    assert ended.returncode == 2
    assert "torch sees none: AssertionError: 2.14.1+cpu" in ended.stderr
    assert not machine.calls("pytest")


def test_a_failure_is_told_and_the_next_section_runs(machine: Machine) -> None:
    machine.actions += ["no-sync|echo the reason; exit 3"]
    ended = machine.run("nosync", "kernels")
    assert ended.returncode == 1
    assert machine.verdicts() == [("nosync", "FAIL"), ("kernels", "PASS")]
    assert "FAIL nosync" in ended.stdout
    assert ended.stdout.rstrip().splitlines()[-2].endswith("status 3")
    assert (machine.out / "nosync.log").read_text() == "the reason\n"


def test_kernel_tests_without_their_packages_are_skipped_with_the_reason(machine: Machine) -> None:
    machine.actions += ["import hypothesis|echo \"ModuleNotFoundError: No module named 'hypothesis'\" >&2; exit 1"]
    ended = machine.run("machine", "kernels")
    assert machine.verdicts() == [("machine", "PASS"), ("kernels", "SKIP")]
    assert "kernels 0 s: pytest and hypothesis are needed" in ended.stdout
    assert not machine.calls("-m pytest")


def test_sections_that_no_longer_fit_are_skipped_and_prove_nothing(machine: Machine) -> None:
    ended = machine.run("--time-limit", "60", "machine", "lossless")
    assert ended.returncode == 0
    assert machine.verdicts() == [("machine", "PASS"), ("lossless", "SKIP")]
    assert "1 PASS, 0 FAIL, 1 SKIP" in ended.stdout
    assert "needs about 180 s" in ended.stdout
    assert not machine.calls("benchmarks lossless")
    assert machine.run("--time-limit", "1", "machine").returncode == 1, "nothing passed"


def test_a_section_that_takes_longer_than_thought_is_ended_at_the_limit(machine: Machine) -> None:
    machine.actions += [f'benchmarks gpu_kernels|echo measured >"{machine.out}/builder.jsonl"; exec sleep 60']
    script = SCRIPT.read_text()
    assert "[builder]=45" in script
    hopeful = machine.folder / "benchmarks/gpu_proof.sh"
    hopeful.parent.mkdir()
    hopeful.write_text(script.replace("[builder]=45", "[builder]=1"))
    ended = machine.run("--time-limit", "3", "builder", script=hopeful)
    assert ended.returncode == 1
    assert "FAIL builder" in ended.stdout
    assert "ended early" in ended.stdout
    with tarfile.open(machine.out / "proof.tar.gz") as packed:
        assert "./builder.jsonl" in packed.getnames(), "what it measured is kept"


def test_one_file_has_everything_after_each_section(machine: Machine, tmp_path: Path) -> None:
    where = tmp_path / "elsewhere/all.tar.gz"
    # The second section looks at what the first one left.
    machine.actions += [f'graph-equality|tar -tzf "{where}" >"{tmp_path}/seen"']
    ended = machine.run("--tar", str(where), "smoke", "graphs")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert {"./smoke.log", "./summary.jsonl"} <= set((tmp_path / "seen").read_text().split())
    with tarfile.open(where) as packed:
        assert {"./smoke.log", "./graphs.log", "./verdicts.txt", "./summary.jsonl"} <= set(packed.getnames())


def test_without_the_embedded_models_package_server_sections_fail_at_once_and_others_run(machine: Machine) -> None:
    machine.actions = ["demo.prepare|echo '[prepare] error: the package is not installed.' >&2; exit 1"]
    ended = machine.run("kernels", "nosync", "rounds")
    assert ended.returncode == 1
    assert machine.verdicts() == [("kernels", "PASS"), ("nosync", "FAIL"), ("rounds", "FAIL")]
    assert "the package is not installed. Or pass --model M --draft D." in ended.stderr
    assert not machine.calls("gpu_checks")
    assert len(machine.calls("demo.prepare")) == 1


@pytest.mark.parametrize(("capability", "expected"), [("9.0", "fa3"), ("10.0", "fa4"), ("8.9", None)])
def test_each_backend_of_the_gpu_is_compared_with_plain_decoding(
    machine: Machine, capability: str, expected: str | None
) -> None:
    machine.capability = capability
    ended = machine.run("backends")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    # The last flag of a name is the one that counts.
    used = [call.rsplit("--attention-backend=", 1)[1].split()[0] for call in machine.calls("benchmarks lossless")]
    assert used == ["triton", "flashinfer", *([expected] if expected else [])]


def test_a_backend_that_is_not_installed_is_skipped_with_the_reason(machine: Machine) -> None:
    machine.actions += ["import sgl_kernel.flash_attn|echo 'ImportError: no FA3' >&2; exit 1"]
    ended = machine.run("backends")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert machine.verdicts() == [("backends/fa3", "SKIP"), ("backends", "PASS")]
    assert "ImportError: no FA3" in ended.stdout
    assert "1 PASS, 0 FAIL, 1 SKIP" in ended.stdout
    assert len(machine.calls("benchmarks lossless")) == 2


def test_float32_is_computed_as_float32_and_half_precision_as_served(machine: Machine) -> None:
    assert machine.run("kernels", "lossless", "graphs", "widths", "smoke", "speed").returncode == 0
    assert machine.calls("-m pytest")[0].endswith("|  ieee")
    for part in ("benchmarks lossless --model embedded", "graph-equality", "width-equality"):
        call = machine.calls(part)[0]
        assert call.endswith("| torch ieee"), part
        assert call.rsplit("--start-timeout ", 1)[1].startswith("300 "), "kernels without tensor cores compile longer"
    of_flashinfer = machine.calls("width-equality")[1]
    assert "--attention-backend=flashinfer --dtype bfloat16 --near-tie 0.25" in of_flashinfer
    for call in (of_flashinfer, machine.calls("smoke.json")[0], machine.calls("benchmarks decode")[0]):
        assert call.endswith("|  "), "nothing forced"
        assert "--start-timeout 300" not in call


def test_all_servers_of_a_section_capture_the_measured_batch_sizes_alone(machine: Machine) -> None:
    assert machine.run("--start-timeout", "99", "lossless", "speed-large").returncode == 0
    (large,) = machine.calls("benchmarks decode")
    graphs = "--server-flag=--disable-prefill-cuda-graph"
    sizes = "--server-flag=--cuda-graph-bs-decode --server-flag=16 --server-flag=32 --dtype"
    for expected in (graphs, sizes, "--start-timeout 99", "--client-timeout 60", "--max-total-tokens 32768"):
        assert expected in large, expected
    assert f"--server-logs {machine.out}/servers/lossless" in machine.calls("benchmarks lossless")[0]


@pytest.mark.sglang
def test_sglang_knows_the_flags_of_every_server(machine: Machine) -> None:
    from tests.deploy import flag_parsers

    machine.run()
    of_checks = {part for flags in gpu_checks.EQUAL_WITH.values() for part in flags if part.startswith("--")}
    calls = machine.calls("--server-flag=")
    assert len(calls) == 12, "nosync, smoke, lossless, graphs, two of widths, three of backends, three of speed"
    for call in calls:
        flags = [part.removeprefix("--server-flag=") for part in call.split() if part.startswith("--server-flag=")]
        parsed = flag_parsers.sglang_parser().parse_args(["--model-path", "m", *flags])
        assert parsed.disable_prefill_cuda_graph is True
        assert parsed.cuda_graph_bs_decode
        assert parsed.attention_backend in {"triton", "flashinfer", "fa3"}
    assert of_checks <= set(flag_parsers.sglang_parser()._option_string_actions)


def test_script_passes_shellcheck() -> None:
    checker = shutil.which("shellcheck")
    if checker is None:
        pytest.skip("shellcheck is not installed (tests/requirements.txt has it for x86-64)")
    ended = subprocess.run([checker, "-x", str(SCRIPT)], cwd=REPO, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stdout
