"""Prove the GPU path on a machine with one NVIDIA GPU and SGLang, no network needed: a verdict for each section.

    bash benchmarks/gpu_proof.sh [FLAG...] [SECTION...]

A failure does not stop the next section. Results and server logs are in --out; summary.jsonl there has the verdicts,
and one archive of all of it is made anew after each section. Exit status 0 when a section passed and none failed,
1 when one failed or none passed, 2 when nothing could be run, 130 when interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.gpu_sections import SECTIONS, Section
from benchmarks.harness.flags import end_on_sigterm
from benchmarks.harness.gpu_lab import TIMED_OUT, Lab, Verdict, output_of
from benchmarks.harness.provenance import REPO
from benchmarks.register_checkout import write_metadata
from workers.progress import say, step

BY_NAME = {section.name: section for section in SECTIONS}
ENDED_EARLY = (TIMED_OUT, 130, 137, 143)
NO_PYTEST = "pytest and hypothesis are needed, of the versions in benchmarks/requirements.txt"


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
    sections = "\n".join(f"  {one.name:12}{one.what} (about {one.limit_s} s)" for one in SECTIONS)
    parser = argparse.ArgumentParser(
        prog="bash benchmarks/gpu_proof.sh",
        description=__doc__,
        epilog=f"sections, all of them without a choice; seconds are estimates for a fast GPU:\n{sections}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    seconds: dict[str, Any] = {"type": _seconds, "metavar": "SECONDS"}
    several: dict[str, Any] = {"type": _sections, "action": "extend", "metavar": "A,B,C", "default": []}
    parser.add_argument("--model", help="another target than the embedded one, whose package must else be installed")
    parser.add_argument("--draft", help="the drafter of --model")
    parser.add_argument("--out", type=Path, help="results and logs (default: benchmarks/results/gpu-DATE)")
    parser.add_argument("--tar", type=Path, help="one file with all of --out (default: OUT/proof.tar.gz)")
    parser.add_argument("--sections", help="sections to run, in this order", **several)
    parser.add_argument("chosen", metavar="SECTION", nargs="*", type=_section, help="more of them, after those")
    parser.add_argument("--time-limit", default=0, help="skip what no longer fits, end what takes longer", **seconds)
    parser.add_argument("--start-timeout", default=150, help="of a server, in float32 twice (default 150)", **seconds)
    parser.add_argument("--client-timeout", default=60, help="of an answer (default 60)", **seconds)
    parser.add_argument("--backend", default="triton", help="attention backend where a section names none (triton)")
    return parser.parse_intermixed_args(argv)


def prepare_lab(args: argparse.Namespace) -> Lab:
    """Check the flags and the machine; raises RefusedError before anything is run."""
    if bool(args.model) != bool(args.draft):
        raise RefusedError("--model and --draft go together: a drafter is trained for one target and fits no other")
    model, draft = (str(Path(path).resolve()) if path else "" for path in (args.model, args.draft))
    for path in filter(None, (model, draft)):
        if not (Path(path) / "config.json").is_file():
            raise RefusedError(f"a model is a folder with a config.json, got {path}")
    out = (args.out or REPO / f"benchmarks/results/gpu-{datetime.now(UTC):%Y%m%dT%H%M%SZ}").resolve()
    tar = (args.tar or out / "proof.tar.gz").resolve()
    limits = (args.start_timeout, args.client_timeout, args.time_limit)
    lab = Lab(out, tar, model, draft, args.backend, *limits)
    if "GPU" not in output_of(["nvidia-smi", "-L"], lab.environment).stdout:
        raise RefusedError("an NVIDIA GPU is needed, nvidia-smi shows none; everything else is in tests/run.sh")
    # Kernel tests would be skipped and servers would run on the processor: all would pass, and nothing be shown.
    with step("importing torch"):
        error = lab.why_not("import torch; assert torch.cuda.is_available(), torch.__version__")
    if error:
        raise RefusedError(f"nvidia-smi shows a GPU, but torch sees none: {error}")
    for folder in (out, tar.parent):
        folder.mkdir(parents=True, exist_ok=True)
    lab.environment |= child_environment()
    return lab


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


def prepare_model(lab: Lab) -> str:
    """Make the embedded target the one that is served; empty, or why there is none."""
    with step("preparing the embedded model"):
        ended = output_of([sys.executable, "-m", "ddtree_sglang.demo.prepare"], lab.environment)
    (lab.out / "prepare.log").write_text(ended.stderr, encoding="utf-8")
    told = (ended.stdout if ended.returncode == 0 else ended.stderr).strip().splitlines() or [""]
    if ended.returncode:
        return f"no model: {told[-1]} Or pass --model M --draft D."
    lab.model = told[-1]
    return ""


def run_section(lab: Lab, section: Section, no_model: str) -> None:
    """Run one section, unless it does not fit or misses what it needs, and conclude with its verdict."""
    started = time.monotonic()
    if lab.time_limit_s and section.limit_s > lab.time_limit_s - (started - lab.started):
        left = f"{lab.left_s():.0f} s are left of {lab.time_limit_s} s"
        lab.conclude(Verdict(section.name, "SKIP", 0, f"needs about {section.limit_s} s, {left}"))
        return
    if section.needs == "model" and no_model:
        lab.conclude(Verdict(section.name, "FAIL", 0, no_model))
        return
    if section.needs == "pytest" and lab.why_not("import hypothesis, pytest"):
        lab.conclude(Verdict(section.name, "SKIP", 0, NO_PYTEST))
        return
    say(f"== {section.name} (about {section.limit_s} s; {started - lab.started:.0f} s so far)")
    status, told = 130, ""
    try:
        with (lab.out / f"{section.name}.log").open("wb") as lab.log:
            status = section.run(lab)
    except (OSError, ValueError) as error:
        status, told = 1, f": {error}"
    finally:
        lab.log = None
        kept = "; what it measured is kept" if status in ENDED_EARLY else ""
        reason = f"{'ended early, ' if kept else ''}status {status}{kept}{told}" if status else ""
        seconds = int(time.monotonic() - started)
        lab.conclude(Verdict(section.name, "FAIL" if status else "PASS", seconds, " ".join(reason.split())))
        lab.pack()


def conclude(lab: Lab) -> int:
    """Show all verdicts of this run; its exit status."""
    count = Counter(one.verdict for one in lab.verdicts)
    say(f"== verdicts: {count['PASS']} PASS, {count['FAIL']} FAIL, {count['SKIP']} SKIP ({lab.out})")
    say("\n".join(map(str, lab.verdicts)))
    lab.pack()
    return 0 if count["PASS"] and not count["FAIL"] else 1


def main(argv: Sequence[str]) -> int:
    """Run the chosen sections; returns the exit status given in the module's docstring."""
    args = parse_args(argv)
    end_on_sigterm()
    sections = [*args.sections, *args.chosen] or list(SECTIONS)
    try:
        lab = prepare_lab(args)
        no_model = ""
        if not lab.model and any(section.needs == "model" for section in sections):
            no_model = prepare_model(lab)
        for section in sections:
            run_section(lab, section, no_model)
    except RefusedError as error:
        print(f"gpu_proof: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gpu_proof: interrupted", file=sys.stderr)
        return 130
    return conclude(lab)
