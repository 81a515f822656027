"""Prove the GPU path on a machine with SGLang and an NVIDIA GPU, no network needed: a verdict for each step.

    bash benchmarks/gpu_proof.sh --out FOLDER [--time-limit SECONDS] [FLAG...] [SECTION...]

Sections stand in the order of what they decide. A failure does not stop the next step. Call it again with the same
--out, or with --resume and the archive of an earlier call, until nothing is LATER: a step that passed for the same
code, machine, packages and pair is kept, and servers that had answered are not started again. Most sections serve a
tiny pair that is made on the spot; those that need a trained model say SKIP without --model and --draft.

--device cpu runs the same program on SGLang's CPU platform: a rehearsal without a GPU, with every attention backend
replaced by the processor's.

Exit status 0 when every chosen step passed or was skipped and one passed, 1 when one failed or none passed, 2 when
nothing could be run, 3 when steps are left for a later call, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_cases import CASES
from benchmarks.gpu_judge import Finding
from benchmarks.gpu_sections import SECTIONS, Section, Step
from benchmarks.harness.flags import end_on_sigterm
from benchmarks.harness.gpu_lab import CutOffError, Lab, Verdict, output_of, unpack
from benchmarks.harness.gpu_machine import Machine, found_gpu, this_processor
from benchmarks.harness.gpu_pairs import prepare, servers_at_once
from benchmarks.harness.gpu_setting import JUDGES, SMALL, Scale, Setting, code_digest
from benchmarks.harness.provenance import REPO, collect_provenance
from benchmarks.harness.results import new_result
from benchmarks.register_checkout import write_metadata
from workers.progress import say, step

BY_NAME = {section.name: section for section in SECTIONS}
SMALL_PAIRS = ("tiny", "recurrent")
LEAST_TO_RECORD_S = 45
"""With less left no server is started: it would be cut off before it answers."""


class RefusedError(Exception):
    """Nothing can be run; the message says why."""


def _seconds(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, got {text}")
    return int(text)


def _section(name: str) -> Section:
    if name not in BY_NAME:
        raise argparse.ArgumentTypeError(f"no section {name}; there are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def _sections(names: str) -> list[Section]:
    return [_section(name) for name in names.split(",")]


def parse_args(argv: Sequence[str]) -> argparse.Namespace:
    """Flags; argparse itself exits with 2 on a bad one."""
    sections = "\n".join(f"  {one.name:15}{one.what} (about {one.limit_s} s)" for one in SECTIONS)
    parser = argparse.ArgumentParser(
        prog="bash benchmarks/gpu_proof.sh",
        description=__doc__,
        epilog=f"sections, all of them without a choice; seconds are estimates for a fast GPU:\n{sections}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    seconds: dict[str, Any] = {"type": _seconds, "metavar": "SECONDS"}
    several: dict[str, Any] = {"type": _sections, "action": "extend", "metavar": "A,B,C", "default": []}
    parser.add_argument("--out", type=Path, help="results and state (default: benchmarks/results/gpu-DATE)")
    parser.add_argument("--resume", type=Path, metavar="ARCHIVE", help="proof.tar.gz of an earlier call, to go on from")
    parser.add_argument("--tar", type=Path, help="one file with all of --out (default: OUT/proof.tar.gz)")
    parser.add_argument("--model", help="a trained target, for the sections real and speed")
    parser.add_argument("--draft", help="the drafter of --model")
    parser.add_argument("--sections", help="sections to run, in this order", **several)
    parser.add_argument("chosen", metavar="SECTION", nargs="*", type=_section, help="more of them, after those")
    parser.add_argument("--again", action="store_true", help="run the chosen sections anew, whatever is recorded")
    parser.add_argument("--time-limit", default=0, help="end in time, the next call goes on", **seconds)
    parser.add_argument("--start-timeout", default=150, help="of a server, in float32 twice (default 150)", **seconds)
    parser.add_argument("--client-timeout", default=60, help="of an answer (default 60)", **seconds)
    parser.add_argument(
        "--at-once", type=int, help="tiny servers at once (default: one for every two cores, at most 8)"
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: a rehearsal without a GPU")
    parser.add_argument(
        "--speed-backend", default="", help="attention backend of the speed sections (default: fa3 or triton)"
    )
    parser.add_argument("--prompts", type=int, help="of each comparison (default 64; 12 on the CPU)")
    parser.add_argument("--server-flag", action="append", default=[], help="further flag for every server")
    return parser.parse_intermixed_args(argv)


def find_machine(device: str) -> Machine:
    """The machine; raises RefusedError when it has no GPU that torch can use."""
    if device == "cpu":
        return this_processor()
    machine = found_gpu(output_of, os.environ)
    if machine is None:
        raise RefusedError("an NVIDIA GPU is needed, nvidia-smi shows none; --device cpu rehearses without one")
    # Servers would run on the processor: all would pass, and nothing be shown.
    with step("importing torch"):
        code = "import torch; assert torch.cuda.is_available(), torch.__version__"
        ended = output_of([sys.executable, "-c", code], os.environ)
    if ended.returncode:
        told = (ended.stderr.strip().splitlines() or ["no message"])[-1]
        raise RefusedError(f"nvidia-smi shows a GPU, but torch sees none: {told}")
    return machine


def prepare_lab(args: argparse.Namespace) -> Lab:
    """Check flags and machine, take up earlier results; raises RefusedError before anything is run."""
    started = time.monotonic()  # looking at the machine imports torch: a minute where nothing is cached yet
    if bool(args.model) != bool(args.draft):
        raise RefusedError("--model and --draft go together: a drafter is trained for one target and fits no other")
    real = tuple(str(Path(path).resolve()) for path in (args.model, args.draft) if path)
    for path in real:
        if not (Path(path) / "config.json").is_file():
            raise RefusedError(f"a model is a folder with a config.json, got {path}")
    if args.resume and not args.resume.is_file():
        raise RefusedError(f"--resume takes the proof.tar.gz of an earlier call, there is no {args.resume}")
    machine = find_machine(args.device)
    out = (args.out or new_result("gpu", "")).resolve()
    tar = (args.tar or out / "proof.tar.gz").resolve()
    for folder in (out, tar.parent):
        folder.mkdir(parents=True, exist_ok=True)
    if args.resume:
        unpack(args.resume, out)
    pair_of = {name: case.pair for name, case in CASES.items()}
    lab = Lab(_setting(args, machine, out), tar, pair_of, args.time_limit, _at_once(args, machine))
    lab.started = started
    lab.environment |= child_environment()
    lab.speed_backend = args.speed_backend or ("triton" if lab.lacks("fa3") else "fa3")
    if len(real) == 2:
        lab.setting.pairs["real"] = (real[0], real[1])
    return lab


def _setting(args: argparse.Namespace, machine: Machine, out: Path) -> Setting:
    scale = Scale() if machine.kind == "cuda" else SMALL
    return Setting(
        out=out,
        machine=machine,
        run=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{os.getpid()}",
        scale=replace(scale, prompts=args.prompts or scale.prompts),
        start_timeout_s=args.start_timeout,
        client_timeout_s=args.client_timeout,
        server_flags=tuple(args.server_flag),
        provenance=origin(machine),
    )


def origin(machine: Machine) -> dict[str, Any]:
    """Where a result line comes from: machine, packages, commit, and a digest of the code where there is no git."""
    found = collect_provenance()
    kept = ("date", "git_sha", "dirty", "python", "packages", "gpu", "cpu_model", "cpu_cores")
    return {
        "machine": machine.name,
        "code": code_digest(),
        "judges": code_digest(JUDGES),
        "system": platform.platform(),
    } | {k: found[k] for k in kept}


def _at_once(args: argparse.Namespace, machine: Machine) -> int:
    return args.at_once or (max(1, min(8, len(os.sched_getaffinity(0)) // 2)) if machine.kind == "cuda" else 1)


def child_environment() -> dict[str, str]:
    """What servers and tests need: this checkout, and its entry points where the package is not installed."""
    paths = [str(REPO), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        metadata.version("ddtree-sglang")
    except metadata.PackageNotFoundError:
        paths.insert(0, str(write_metadata(REPO / ".cache/entry-points").parent))
    # FlashInfer gets prompts to the kernels that verify uses; its own for ragged prompts compile for minutes on Hopper.
    paged = os.environ.get("SGLANG_FLASHINFER_USE_PAGED", "1")
    return {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "SGLANG_FLASHINFER_USE_PAGED": paged}


def why_skipped(lab: Lab, one: Step) -> str:
    """What the machine or the call lacks for a step; empty when it can run."""
    machine, reasons = lab.setting.machine, []
    for need in one.needs:
        if need == "cuda" and machine.kind != "cuda":
            reasons.append("only a GPU has it")
        elif need == "real" and "real" not in lab.setting.pairs:
            reasons.append("needs a trained pair: --model and --draft")
        elif need == "two gpus" and machine.kind == "cuda" and machine.gpus < 2:
            reasons.append(f"needs two GPUs, {machine.gpus} is here")
        elif need == "pytest" and (error := lab.why_not("import hypothesis, pytest")):
            reasons.append(f"{error}; kernels/rows checks the same kernels without it")
        elif need in ("fa3", "flashinfer"):
            reasons += filter(None, [lab.lacks(need)])
    if one.is_across and len(cases_of(lab, one)) < 2:
        reasons.append("needs two attention backends")
    return "; ".join(reasons)


def cases_of(lab: Lab, one: Step) -> tuple[str, ...]:
    """The cases that a step compares here."""
    return tuple(case for case in one.cases if not (one.is_across and lab.lacks(CASES[case].backend)))


def run_section(lab: Lab, section: Section, ahead: Sequence[str] = ()) -> None:
    """Skip what cannot run, keep what passed before, record the servers of the rest together, then judge each step.

    Servers of the cases `ahead` are recorded with them: a server takes a minute to start and seconds to answer.
    """
    say(f"== {section.name} (about {section.limit_s} s; {time.monotonic() - lab.started:.0f} s so far)")
    steps = []
    for one in section.steps:
        if reason := why_skipped(lab, one):
            lab.conclude(Verdict(one.name, "SKIP", 0, reason))
        elif unprepared := why_unprepared(lab, one):
            lab.conclude(unprepared)
        elif earlier := lab.earlier(one.name, verdict_identity(lab, one)):
            lab.conclude(earlier)
        else:
            steps.append(one)
    try:
        with (lab.out / f"{section.name}.log").open("ab") as lab.log:
            for one in (one for one in steps if one.run):
                conclude_step(lab, one, partial(run_step, lab, one))
            late = record_servers(lab, [one for one in steps if one.cases], ahead)
            for one in (one for one in steps if one.cases):
                conclude_step(lab, one, partial(judge_step, lab, one, late))
    finally:
        lab.log = None
        lab.pack()


def why_unprepared(lab: Lab, one: Step) -> Verdict | None:
    """The verdict of a step whose pair could not be made; None when it is there."""
    started = time.monotonic()
    try:
        prepare(lab, one.pair)
    except CutOffError as error:
        return Verdict(one.name, "LATER", int(time.monotonic() - started), str(error))
    except (OSError, ValueError) as error:
        told = f"the pair {one.pair} could not be made: {error}"
        return Verdict(one.name, "FAIL", int(time.monotonic() - started), told)
    return None


def verdict_identity(lab: Lab, one: Step) -> str:
    """What a verdict counts for: what its answers depend on, and what judges or measures them."""
    measured_on = "" if one.cases else f" {lab.speed_backend}"
    return f"{lab.setting.identity_of(one.pair)} {lab.setting.provenance['judges']}{measured_on}"


def conclude_step(lab: Lab, one: Step, run: Callable[[], Finding]) -> None:
    """Run one step and give its verdict, whatever happens in it."""
    started, verdict, reason = time.monotonic(), "FAIL", "interrupted"
    try:
        found = run()
        verdict, reason = ("PASS" if found.passed else "FAIL"), found.reason
    except CutOffError as error:
        verdict, reason = "LATER", str(error)
    except (OSError, ValueError, KeyError, LookupError) as error:
        reason = f"{type(error).__name__}: {error}"
    except KeyboardInterrupt:
        verdict = "LATER"
        raise
    finally:
        seconds = int(time.monotonic() - started)
        lab.conclude(Verdict(one.name, verdict, seconds, " ".join(reason.split())), verdict_identity(lab, one))  # type: ignore[arg-type]


def run_step(lab: Lab, one: Step) -> Finding:
    """Run a step's command, if it fits into what is left."""
    assert one.run is not None
    if one.limit_s > lab.left_s():
        raise CutOffError(f"needs about {one.limit_s} s, {lab.left_s():.0f} s are left of {lab.time_limit_s} s")
    return one.run(lab)


def cases_ahead(lab: Lab, sections: Sequence[Section]) -> tuple[str, ...]:
    """Cases of sections to come that can be served beside others, in their order; none where one server runs at a time.

    A large target's servers would leave the others no memory, and time is measured alone.
    """
    if lab.at_once == 1:
        return ()
    small = (one for section in sections for one in section.steps if one.pair in SMALL_PAIRS and one.cases)
    served = [one for one in small if not why_skipped(lab, one) and why_unprepared(lab, one) is None]
    waiting = [one for one in served if lab.earlier(one.name, verdict_identity(lab, one)) is None]
    return tuple(dict.fromkeys(case for one in waiting for case in cases_of(lab, one)))


def record_servers(lab: Lab, steps: Sequence[Step], ahead: Sequence[str] = ()) -> str:
    """Have all servers of `steps` recorded, then those of `ahead`; empty, or why some are not."""
    cases = list(dict.fromkeys(case for one in steps for case in cases_of(lab, one)))
    if all(lab.record_of(case) is not None for case in cases):
        return ""
    cases = list(dict.fromkeys((*cases, *ahead)))
    if lab.left_s() < LEAST_TO_RECORD_S:
        return f"{lab.left_s():.0f} s are left of {lab.time_limit_s} s"
    try:
        lab.record(cases, servers_at_once(lab, {lab.pair_of[case] for case in cases}))
    except (CutOffError, OSError, ValueError) as error:
        return str(error)
    return ""


def judge_step(lab: Lab, one: Step, late: str) -> Finding:
    """Judge a step by its records."""
    assert one.judge is not None
    records = {case: lab.record_of(case) for case in cases_of(lab, one)}
    missing = [case for case, record in records.items() if record is None]
    if missing and late:
        raise CutOffError(f"{late}; to be recorded: {', '.join(missing)}")
    if missing:
        return Finding(False, f"no record of {', '.join(missing)}: see the log of its section")
    return one.judge(lab, records)  # type: ignore[arg-type]


def conclude(lab: Lab) -> int:
    """Show all verdicts of this run; its exit status."""
    count = Counter(one.verdict for one in lab.verdicts)
    told = ", ".join(f"{count[name]} {name}" for name in ("PASS", "FAIL", "SKIP", "LATER"))
    say(f"== verdicts: {told} ({lab.out})")
    say("\n".join(map(str, lab.verdicts)))
    lab.pack()
    print(json.dumps({"out": lab.out.name, **count}))
    if count["FAIL"]:
        return 1
    if count["LATER"]:
        return 3
    return 0 if count["PASS"] else 1


def main(argv: Sequence[str]) -> int:
    """Run the chosen sections; returns the exit status given in the module's docstring."""
    args = parse_args(argv)
    end_on_sigterm()
    sections = [*args.sections, *args.chosen] or list(SECTIONS)
    try:
        lab = prepare_lab(args)
        prepare(lab, "tiny")
        if args.again:
            steps = [one for section in sections for one in section.steps]
            lab.forget([one.name for one in steps], [case for one in steps for case in one.cases])
        for index, section in enumerate(sections):
            # What works at all is told before anything else is started.
            run_section(lab, section, cases_ahead(lab, sections[index + 1 :]) if section.name != "works" else ())
    except (RefusedError, CutOffError, OSError) as error:
        print(f"gpu_proof: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_proof: interrupted", file=sys.stderr)
        return 130
    return conclude(lab)
