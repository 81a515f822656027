"""`gpu_proof` without a GPU: real processes, a made-up engine. What is right passes, every fault fails, cuts go on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import gpu_proof, gpu_sections
from benchmarks.gpu_cases import CASES
from benchmarks.gpu_judge import Finding
from benchmarks.harness import gpu_lab, gpu_pairs, gpu_setting
from benchmarks.harness.gpu_machine import Machine
from tests.benchmarks.gpu_rig import REPO, Rig, rig

__all__ = ["rig"]
SCRIPT = REPO / "benchmarks/gpu_proof.sh"


def folder_with_config(parent: Path, name: str) -> str:
    folder = parent / name
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)


def only(monkeypatch: pytest.MonkeyPatch, section: str, *steps: str) -> None:
    """Leave these steps of a section: a test starts no more servers than it looks at."""
    whole = gpu_proof.BY_NAME[section]
    kept = tuple(one for one in whole.steps if one.name in steps)
    assert len(kept) == len(steps)
    monkeypatch.setitem(gpu_proof.BY_NAME, section, replace(whole, steps=kept))


def test_answers_that_are_right_pass_on_every_backend(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert rig.main("lossless", "limit", "sampled") == 0, rig.verdicts()
    backends = ("triton", "fa3", "flashinfer")
    acceptance = ("lossless/acceptance-16", "lossless/acceptance-64")
    expected = [*(f"lossless/{b}" for b in backends), *acceptance]
    expected += [f"{section}/{b}" for section in ("limit", "sampled") for b in backends]
    assert rig.verdicts() == dict.fromkeys(expected, "PASS")
    assert "60 answers, 0 different" in rig.reason("lossless/fa3")
    assert "11 PASS, 0 FAIL, 0 SKIP, 0 LATER" in capsys.readouterr().out
    line = rig.summary()[0]
    assert line["provenance"]["machine"] == "NVIDIA H100 80GB HBM3"
    assert {"git_sha", "packages", "code", "gpu"} <= set(line["provenance"])
    assert len(rig.started()) == 7 + 4 + 4, "one server a case, the plain one shared by all steps"


def test_servers_of_later_sections_start_beside_those_of_the_first(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "works", "works/triton")
    only(monkeypatch, "lossless", "lossless/triton")
    only(monkeypatch, "limit", "limit/triton")
    assert rig.main("works", "lossless", "limit") == 0, rig.verdicts()
    told = {name: (rig.out / f"{name}.log").read_text() for name in ("works", "lossless", "limit")}
    assert "limit/triton: recorded" in told["lossless"]
    assert "recorded" not in told["limit"]
    assert "lossless" not in told["works"], "what works at all is told before more is started"
    assert "plain/triton: recorded" not in told["works"].replace("works/plain", "")


def test_one_server_at_a_time_starts_none_ahead(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "lossless", "lossless/triton")
    only(monkeypatch, "limit", "limit/triton")
    assert rig.main("--at-once", "1", "lossless", "limit") == 0
    assert "limit" not in (rig.out / "lossless.log").read_text()


FAULTS = [
    ("dies", "lossless/fa3", "illegal memory access"),
    ("wrong", "lossless/fa3", "different"),
    ("silent", "lossless/fa3", "no token for"),
    ("garbled", "lossless/fa3", "at least 1.5 expected"),
    ("processor", "lossless/fa3", "device is cpu"),
    ("serial", "lossless/fa3", "overlap scheduling is off"),
    ("eager", "lossless/fa3", "graphs of decode and prefill are (False, False), (True, False) asked"),
]


@pytest.mark.parametrize(("fault", "step", "told"), FAULTS)
def test_a_fault_of_one_backend_fails_its_step_and_the_others_pass(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, fault: str, step: str, told: str
) -> None:
    only(monkeypatch, "lossless", "lossless/triton", "lossless/fa3")
    rig.faults[
        "--speculative-ddtree-budget 16 --speculative-ddtree-policy fixed "
        "--max-running-requests 16 --random-seed 0 --max-total-tokens 16384 "
        "--attention-backend fa3"
    ] = fault
    assert rig.main("lossless") == 1
    assert rig.verdicts() == {"lossless/triton": "PASS", step: "FAIL"}
    assert told in rig.reason(step)


def test_a_near_tie_of_the_target_is_no_difference(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the answers at most may part at one: so the fault is on one of two budgets only."""
    only(monkeypatch, "lossless", "lossless/fa3")
    rig.faults["fa3"] = "tie"
    assert rig.main("lossless") == 1, "every answer parts at a tie: no accident"
    assert "60 near ties" in rig.reason("lossless/fa3")


def test_acceptance_that_differs_by_five_percent_fails_though_tokens_are_equal(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    only(monkeypatch, "lossless", "lossless/flashinfer", "lossless/acceptance-64")
    rig.faults[
        "--speculative-ddtree-budget 64 --speculative-ddtree-policy fixed "
        "--max-running-requests 16 --random-seed 0 --max-total-tokens 16384 "
        "--attention-backend flashinfer"
    ] = "late"
    assert rig.main("lossless") == 1
    assert rig.verdicts() == {"lossless/flashinfer": "PASS", "lossless/acceptance-64": "FAIL"}
    assert "ddtree-64/flashinfer takes 1.04" in rig.reason("lossless/acceptance-64")


def test_neighbours_of_a_request_at_the_context_limit_must_answer_as_alone(rig: Rig) -> None:
    rig.faults["fa3"] = "neighbour"
    assert rig.main("limit") == 1
    assert rig.verdicts() == {"limit/triton": "PASS", "limit/fa3": "FAIL", "limit/flashinfer": "PASS"}
    assert "beside-" in rig.reason("limit/fa3")


def test_sampled_answers_of_another_law_fail(rig: Rig) -> None:
    rig.faults["flashinfer"] = "narrow"
    assert rig.main("sampled") == 1
    assert rig.verdicts()["sampled/flashinfer"] == "FAIL"
    assert rig.verdicts()["sampled/triton"] == "PASS"


def test_a_plain_server_that_dies_fails_all_that_need_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "lossless", "lossless/triton")
    rig.faults["--dtype bfloat16 --sleep-on-idle --max-running"] = "dies"
    assert rig.main("lossless") == 1
    assert "plain/triton: ServerError" in rig.reason("lossless/triton")


def test_a_backend_that_is_missing_is_skipped_and_acceptance_compares_the_others(rig: Rig) -> None:
    rig.lacking["fa3"] = "import sgl_kernel.flash_attn fails here: ImportError: no FA3"
    assert rig.main("lossless") == 0
    assert rig.verdicts()["lossless/fa3"] == "SKIP"
    assert "ImportError: no FA3" in rig.reason("lossless/fa3")
    assert rig.verdicts()["lossless/acceptance-16"] == "PASS"
    assert not [line for line in rig.started() if "fa3" in line]


def test_one_backend_alone_has_no_acceptance_to_compare_with(rig: Rig) -> None:
    rig.lacking |= {"fa3": "absent", "flashinfer": "absent"}
    assert rig.main("lossless") == 0
    assert rig.verdicts()["lossless/acceptance-16"] == "SKIP"


def test_sections_that_need_a_trained_pair_say_so_and_start_nothing(rig: Rig) -> None:
    assert rig.main("real") == 1, "nothing passed"
    assert set(rig.verdicts().values()) == {"SKIP"}
    assert "needs a trained pair: --model and --draft" in rig.reason("real/triton")
    assert not rig.started()


def test_a_carried_pair_is_served_and_judged(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "real", "real/triton")
    rig.out.mkdir()
    (rig.out / "prompts-real.json").write_text(json.dumps([[i, i + 1, i + 2] for i in range(48)]))
    pair = ("--model", folder_with_config(tmp_path, "m"), "--draft", folder_with_config(tmp_path, "d"))
    assert rig.main("real", *pair) == 0, rig.verdicts()
    assert all(f"--model-path {tmp_path}/m " in line for line in rig.started())


def test_two_ranks_need_two_gpus(rig: Rig) -> None:
    assert rig.main("tp") == 1
    assert "needs two GPUs, 1 is here" in rig.reason("tp/triton")
    rig.machine = replace(rig.machine, gpus=2)
    assert rig.main("tp") == 0
    assert all("--tp-size 2" in line for line in rig.started())


def test_what_passed_is_kept_and_what_failed_is_run_again(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "lossless", "lossless/triton", "lossless/fa3")
    rig.faults["fa3"] = "dies"
    assert rig.main("lossless") == 1
    before = len(rig.started())
    rig.faults.clear()
    assert rig.main("lossless") == 0
    assert rig.verdicts() == {"lossless/triton": "PASS", "lossless/fa3": "PASS"}
    again = rig.started()[before:]
    assert len(again) == 2, "the two cases on fa3 alone"
    assert all("fa3" in line for line in again)
    assert rig.main("lossless") == 0
    assert len(rig.started()) == before + 2, "all of it was kept"


@pytest.mark.parametrize("change", ["code", "card", "packages", "prompts", "again"])
def test_a_verdict_counts_for_its_code_card_packages_and_scale_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    only(monkeypatch, "eager", "eager/triton")
    assert rig.main("eager") == 0
    before = len(rig.started())
    flags = []
    if change == "code":
        rig.code = "code-2"
    elif change == "card":
        rig.machine = replace(rig.machine, name="NVIDIA H200")
    elif change == "packages":
        found = gpu_proof.collect_provenance()
        found["packages"] = found["packages"] | {"flashinfer-python": "0.0.1"}
        monkeypatch.setattr(gpu_proof, "collect_provenance", lambda: found)
    else:
        flags = ["--prompts", "24"] if change == "prompts" else ["--again"]
    assert rig.main("eager", *flags) == 0
    assert len(rig.started()) == 2 * before


def test_other_judges_judge_the_same_records_anew(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, "eager", "eager/triton")
    assert rig.main("eager") == 0
    rig.judges = "judges-2"
    assert rig.main("eager") == 0
    assert [line["verdict"] for line in rig.summary()] == ["PASS", "PASS"], "given twice, not kept"
    assert len(rig.started()) == 2, "nothing was asked again"
    assert rig.main("eager") == 0
    assert len(rig.summary()) == 2, "kept"


def test_a_speed_counts_for_its_backend_alone(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    step = replace(
        gpu_proof.BY_NAME["speed"].steps[2], run=lambda lab: ran.append(lab.speed_backend) or Finding(True, "")
    )
    monkeypatch.setitem(gpu_proof.BY_NAME, "speed", replace(gpu_proof.BY_NAME["speed"], steps=(step,)))
    for backend in ("fa3", "triton", "triton"):
        assert rig.main("--speed-backend", backend, "speed") == 0
    assert ran == ["fa3", "triton"]


def test_what_a_fact_or_a_test_checks_is_a_part_of_its_verdict() -> None:
    judges = [REPO / one for one in gpu_setting.JUDGES]
    assert all(one.exists() for one in judges)
    modules = ("gpu_judge", "gpu_sections", "gpu_facts", "gpu_kernels", "gpu_kernel_rows", "gpu_speed")
    commands = [REPO / f"benchmarks/{name}.py" for name in modules]
    for path in (*commands, *(REPO / one for one in gpu_sections.TESTS)):
        assert path in judges, path


def test_a_drafter_that_was_trained_further_is_another_pair(tmp_path: Path) -> None:
    folders = (folder_with_config(tmp_path, "target"), folder_with_config(tmp_path, "draft"))
    weights = Path(folders[1]) / "model.safetensors"
    found = set()
    for value in (b"\0", b"\1"):
        weights.write_bytes(value * 10_000_000)
        found.add(gpu_setting.pair_digest(folders))
        assert gpu_setting.pair_digest(folders) in found
    weights.write_bytes(b"small")
    found.add(gpu_setting.pair_digest(folders))
    assert len(found) == 3


def test_a_section_that_is_cut_off_goes_on_in_the_next_call(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """One server answers, the other is too slow for the limit: the next call starts the slow one alone."""
    monkeypatch.setattr(gpu_proof, "LEAST_TO_RECORD_S", 1)
    only(monkeypatch, "lossless", "lossless/triton", "lossless/fa3")
    rig.faults["fa3"] = "slow"
    assert rig.main("--time-limit", "9", "lossless") == 3
    assert rig.verdicts() == {"lossless/triton": "PASS", "lossless/fa3": "LATER"}
    assert "ended at the time limit of 9 s; to be recorded: ddtree-16/fa3" in rig.reason("lossless/fa3")
    before = len(rig.started())
    rig.faults.clear()
    assert rig.main("lossless") == 0
    assert rig.verdicts() == {"lossless/triton": "PASS", "lossless/fa3": "PASS"}
    assert len(rig.started()[before:]) == 2


def test_no_server_outlives_a_call_that_was_cut_off(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_proof, "LEAST_TO_RECORD_S", 1)
    only(monkeypatch, "eager", "eager/triton")
    rig.faults["--port"] = "hangs"
    assert rig.main("--time-limit", "3", "eager") == 3
    ports = [line.split("--port ")[1].split()[0] for line in rig.started()]
    assert len(ports) == 2
    time.sleep(1.0)
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    assert not [port for port in ports if f"--port {port} " in running]


def test_a_step_that_no_longer_fits_waits_for_the_next_call(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_sections, "_command", lambda *_a, **_k: Finding(True, ""))
    ran: list[str] = []
    step = replace(gpu_proof.BY_NAME["kernel-times"].steps[0], run=lambda _lab: ran.append("x") or Finding(True, ""))
    monkeypatch.setitem(gpu_proof.BY_NAME, "kernel-times", replace(gpu_proof.BY_NAME["kernel-times"], steps=(step,)))
    assert rig.main("--time-limit", "20", "kernel-times", "eager") == 3
    assert rig.verdicts() == {"kernel-times/rows": "LATER", "eager/triton": "LATER"}
    assert "needs about 60 s" in rig.reason("kernel-times/rows")
    assert not ran
    assert not rig.started()
    assert rig.main("kernel-times") == 0
    assert ran == ["x"]


def test_looking_at_the_machine_counts_towards_the_limit(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(_device: str) -> Machine:
        time.sleep(0.5)
        return rig.machine

    monkeypatch.setattr(gpu_proof, "find_machine", slow)
    lab = gpu_proof.prepare_lab(gpu_proof.parse_args(["--out", str(rig.out), "--time-limit", "60"]))
    assert 58 < lab.left_s() < 59.5


def test_the_archive_of_one_call_is_taken_up_in_another_folder(rig: Rig, tmp_path: Path) -> None:
    assert rig.main("--tar", str(tmp_path / "back/proof.tar.gz"), "eager") == 0
    before = len(rig.started())
    with tarfile.open(tmp_path / "back/proof.tar.gz") as packed:
        names = packed.getnames()
    assert {"./state.json", "./summary.jsonl", "./verdicts.txt", "./records/eager-triton.json"} <= set(names)
    elsewhere = str(tmp_path / "elsewhere")
    status = gpu_proof.main(["--out", elsewhere, "--resume", str(tmp_path / "back/proof.tar.gz"), "eager", "no-sync"])
    assert status == 0
    assert len(rig.started()) == before + 2, "the two servers of no-sync: plain decoding's answers came along"
    with tarfile.open(tmp_path / "elsewhere/proof.tar.gz") as packed:
        assert not [name for name in packed.getnames() if "tar.gz" in name or "pairs" in name]


def test_an_interrupted_run_keeps_its_results(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_lab: object) -> Finding:
        raise KeyboardInterrupt

    whole = gpu_proof.BY_NAME["kernel-times"]
    step = replace(whole.steps[0], run=interrupted)
    monkeypatch.setitem(gpu_proof.BY_NAME, "kernel-times", replace(whole, steps=(step,)))
    assert rig.main("eager", "kernel-times", "limit") == 130
    assert rig.verdicts() == {"eager/triton": "PASS", "kernel-times/rows": "LATER"}
    with tarfile.open(rig.out / "proof.tar.gz") as packed:
        assert {"./summary.jsonl", "./verdicts.txt"} <= set(packed.getnames())


def test_a_full_disk_fails_a_step_and_the_next_runs(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_lab: object) -> Finding:
        raise OSError("No space left\non device")

    whole = gpu_proof.BY_NAME["kernel-times"]
    monkeypatch.setitem(gpu_proof.BY_NAME, "kernel-times", replace(whole, steps=(replace(whole.steps[0], run=full),)))
    assert rig.main("kernel-times", "eager") == 1
    assert rig.verdicts() == {"kernel-times/rows": "FAIL", "eager/triton": "PASS"}
    assert rig.reason("kernel-times/rows") == "OSError: No space left on device"


@pytest.mark.parametrize(
    ("error", "verdict", "status"), [(OSError("disk full"), "FAIL", 1), (gpu_lab.CutOffError("time is up"), "LATER", 3)]
)
def test_a_pair_that_cannot_be_made_costs_its_own_steps_alone(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, error: Exception, verdict: str, status: int
) -> None:
    """Neither the sections before, whose verdicts are to be told, nor those behind."""

    def made(lab: gpu_lab.Lab, name: str, program: str, *flags: str) -> tuple[str, str]:
        if name == "shape":
            raise error
        return rig.made(lab, name, program, *flags)

    monkeypatch.setattr(gpu_pairs, "_made", made)
    assert rig.main("memory", "eager") == status
    assert rig.verdicts() == {"memory/shape": verdict, "eager/triton": "PASS"}
    assert str(error) in rig.reason("memory/shape")


def test_on_the_processor_the_same_cases_are_served_without_gpu_flags(rig: Rig) -> None:
    rig.machine = Machine("cpu", "2 CPU cores", 23.0)
    assert rig.main("lossless", "deterministic") == 0, rig.verdicts()
    assert rig.verdicts()["lossless/fa3"] == "PASS"
    assert rig.reason("deterministic/fa3") == "only a GPU has it"
    assert not [line for line in rig.started() if "--attention-backend" in line or "cuda-graph" in line]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "lossless,nonsense"], "no section nonsense"),
        (["nonsense"], "no section nonsense"),
        (["--time-limit", "soon"], "--time-limit: must be a number of seconds above 0, got soon"),
        (["--start-timeout", "0"], "--start-timeout: must be a number of seconds above 0, got 0"),
        (["--model", "m"], "--model and --draft go together"),
        (["--model", "m", "--draft", "d"], "a model is a folder with a config.json, got "),
        (["--resume", "no.tar.gz"], "there is no no.tar.gz"),
        (["--faster"], "unrecognized arguments: --faster"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(
    rig: Rig, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    try:
        status: object = rig.main(*arguments)
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert message in capsys.readouterr().err
    assert not rig.out.exists()


@pytest.mark.parametrize(
    ("smi", "torch", "message"),
    [
        ((0, "No devices were found"), 0, "nvidia-smi shows none"),
        ((127, ""), 0, "nvidia-smi shows none"),
        ((0, "NVIDIA H100, 81559, 9.0"), 1, "torch sees none: AssertionError: 2.14.1+cpu"),
    ],
)
def test_a_gpu_that_torch_or_the_driver_does_not_see_is_no_gpu(
    monkeypatch: pytest.MonkeyPatch, smi: tuple[int, str], torch: int, message: str
) -> None:
    def output_of(command: list[str], _environment: object) -> subprocess.CompletedProcess[str]:
        if command[0] == "nvidia-smi":
            return subprocess.CompletedProcess(command, smi[0], smi[1], "")
        return subprocess.CompletedProcess(command, torch, "", "AssertionError: 2.14.1+cpu")

    monkeypatch.setattr(gpu_proof, "output_of", output_of)
    with pytest.raises(gpu_proof.RefusedError, match=message.replace("+", r"\+")):
        gpu_proof.find_machine("cuda")


def test_a_checkout_that_is_not_installed_gets_its_entry_points(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def missing(_name: str) -> str:
        raise gpu_proof.metadata.PackageNotFoundError

    monkeypatch.setattr(gpu_proof.metadata, "version", missing)
    monkeypatch.setattr(gpu_proof, "write_metadata", lambda _folder: tmp_path / "points/ddtree.dist-info")
    monkeypatch.setenv("PYTHONPATH", "/users/own")
    environment = gpu_proof.child_environment()
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(tmp_path / "points"), str(REPO), "/users/own"]
    assert environment["SGLANG_FLASHINFER_USE_PAGED"] == "1"


@pytest.mark.sglang
def test_sglang_knows_the_flags_of_every_server() -> None:
    """A flag that the engine does not know would fail a section after minutes, on a machine that is lent."""
    from tests.deploy import flag_parsers

    machine = Machine("cuda", "NVIDIA H100", 79.6, 2, 9)
    for case in CASES.values():
        parsed = flag_parsers.sglang_parser().parse_args(["--model-path", "m", *case.server_flags(machine, 4)])
        assert parsed.attention_backend == case.backend
        assert bool(parsed.disable_decode_cuda_graph) == (not case.decode_graphs)
        assert bool(parsed.disable_overlap_schedule) == (not case.overlap)
        assert bool(parsed.disable_prefill_cuda_graph) == (not case.prefill_graphs)


def test_every_case_is_used_and_every_step_names_cases_that_exist() -> None:
    used = {case for section in gpu_sections.SECTIONS for step in section.steps for case in step.cases}
    assert used == set(CASES)


def test_the_first_section_needs_three_minutes_and_decides_most() -> None:
    first = gpu_sections.SECTIONS[0]
    assert (first.name, first.limit_s) == ("works", 180)
    assert sum(step.limit_s for step in first.steps if step.run) <= 90, "the servers need the rest"
    order = [section.name for section in gpu_sections.SECTIONS]
    assert order[:4] == ["works", "kernels", "lossless", "limit"]
    assert order[-2:] == ["speed", "memory"]


@pytest.mark.parametrize("flag", ["--help", "--nonsense"])
def test_script_starts_the_program_from_any_folder(tmp_path: Path, flag: str) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks/__init__.py").write_text("raise SystemExit('not ours')")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHON": sys.executable}
    command = ["bash", str(SCRIPT), flag]
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == (0 if flag == "--help" else 2)
    assert all(name in ended.stdout for name in gpu_proof.BY_NAME) or flag != "--help"


def test_a_verdict_says_where_it_is_from() -> None:
    assert str(gpu_lab.Verdict("a/b", "FAIL", 3, "why")) == "FAIL a/b 3 s: why"
    assert str(gpu_lab.Verdict("a/b", "PASS", 3, kept=True)) == "PASS a/b 3 s (an earlier call)"
