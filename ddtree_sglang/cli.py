"""The `ddtree` command: `doctor` says whether DDTREE can serve here, and why not; `trace` and `top` show how it serves.

`calibrate` measures what rounds cost on a server that runs. Starts nothing and loads no model.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from ddtree_sglang import __version__
from ddtree_sglang.calibration import commands as calibration_commands
from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig
from ddtree_sglang.contract.check import mismatches
from ddtree_sglang.contract.cpu_patches import CPU_PLATFORM_PATCHES
from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
from ddtree_sglang.contract.engine import ENGINE
from ddtree_sglang.contract.entry import ENTRY
from ddtree_sglang.contract.models import MODELS
from ddtree_sglang.contract.patch import Kind
from ddtree_sglang.contract.patches import ENGINE_PATCHES
from ddtree_sglang.contract.source import engine_at
from ddtree_sglang.contract.start import require, untested_release
from ddtree_sglang.contract.worker_patches import WORKER_PATCHES
from ddtree_sglang.contract.workers import WORKERS
from ddtree_sglang.engine.admission.drafter_report import report_of_place
from ddtree_sglang.exceptions import DDTreeConfigError, DDTreeError, DemoNotInstalledError
from ddtree_sglang.simulator import commands as simulator_commands
from ddtree_sglang.viewer import commands as viewer_commands

TABLES = {"engine": (*ENGINE, *ENTRY), "platform": CPU_PLATFORM, "workers": WORKERS}
PATCHES = {
    "ddtree_sglang.engine": ENGINE_PATCHES,
    "ddtree_sglang.cpu_platform": CPU_PLATFORM_PATCHES,
    "workers": WORKER_PATCHES,
}
VERBS: dict[Kind, str] = {
    "before": "precedes",
    "after": "follows",
    "around": "wraps",
    "replace": "replaces",
    "assign": "replaces",
    "object": "sets",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status is 0 when all is well, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="ddtree", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ddtree-sglang {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    checks = commands.add_parser("doctor", help="check the installed packages, the platform and the configuration")
    checks.add_argument(
        "--engine",
        metavar="WHEEL_OR_FOLDER",
        help="print instead which rows another release of SGLang breaks; it need not be installed",
    )
    checks.add_argument(
        "--draft",
        metavar="FOLDER_OR_CONFIG",
        help="print instead what DDTREE would do with a drafter, from its config.json, or all files of its folder",
    )
    viewer_commands.add_commands(commands)
    calibration_commands.add_commands(commands)
    simulator_commands.add_commands(commands)
    args = parser.parse_args(argv)
    if args.command != "doctor":
        return int(args.run(args))
    if args.draft is not None:
        return describe_drafter(args.draft)
    return doctor() if args.engine is None else compare_engine(args.engine)


def doctor() -> int:
    """Print one line per check; 1 if one of them fails."""
    checks: tuple[tuple[str, Callable[[], str]], ...] = (
        ("engine", _engine),
        ("platform", _platform),
        ("workers", _workers),
        (CONFIG_ENV, _configuration),
        ("demo", _demo),
    )
    failed = False
    for name, check in checks:
        try:
            print(f"ok      {name}: {check()}")
        except (DDTreeError, PackageNotFoundError, ImportError, OSError, ValueError) as error:
            failed = True
            print(f"FAILED  {name}: {error}")
    _print_patches()
    return 1 if failed else 0


def compare_engine(place: str) -> int:
    """Print every row that the SGLang in a wheel or folder breaks; 1 if there is one, or no SGLang."""
    try:
        release, source = engine_at(place)
    except DDTreeError as error:
        print(f"FAILED  engine: {error}")
        return 1
    broken = total = 0
    for name, table in TABLES.items():
        rows = [row for row in table if row.module.split(".")[0] == "sglang"]
        problems = mismatches(rows, source)
        print("".join(f"BROKEN  {name}: {problem}\n" for problem in problems), end="")
        broken, total = broken + len(problems), total + len(rows)
    print(f"{'FAILED' if broken else 'ok':7} sglang {release} in {place}: {broken} of {total} rows break")
    return 1 if broken else 0


def describe_drafter(place: str) -> int:
    """Print what a drafter's files say and what becomes of it; 1 if it is refused or cannot be read."""
    try:
        report = report_of_place(place)
    except DDTreeConfigError as error:
        print(f"FAILED  drafter: {error}")
        return 1
    print("\n".join([f"drafter {place}", *report.lines]))
    return 0 if report.refusal is None else 1


def _print_patches() -> None:
    """What is changed in other packages' code, and why."""
    for package, patches in PATCHES.items():
        print(f"\n{package} changes in other packages, where it is used:")
        for patch in patches:
            fields = ", ".join(patch.fields.split())
            print(f"  {VERBS[patch.kind]:9} {fields and fields + ' of a '}{patch.target}: {patch.why}")


def _engine() -> str:
    require(ENGINE)
    refusal = untested_release()
    if refusal is not None and not _allows_untested_engine():
        raise refusal
    tested = "" if refusal is None else f" (untested, allowed by {CONFIG_ENV})"
    return f"sglang {version('sglang')}{tested}, all {len(ENGINE)} rows hold"


def _allows_untested_engine() -> bool:
    try:
        return DDTreeConfig.from_env().untested_engine
    except DDTreeConfigError:
        # A check of its own reports it.
        return False


def _platform() -> str:
    from ddtree_sglang.cpu_platform import activate

    platform = activate()
    if platform is None:
        return "SGLang's own platform serves"
    require(CPU_PLATFORM)
    return f"no accelerator seen, {platform} serves, all {len(CPU_PLATFORM)} rows hold"


def _workers() -> str:
    if importlib.util.find_spec("ray") is None:
        return "Ray is not installed, which only replicas need"
    require(WORKERS)
    return f"ray {version('ray')}, all {len(WORKERS)} rows hold"


def _configuration() -> str:
    return DDTreeConfig.from_env().to_json()


def _demo() -> str:
    from ddtree_sglang.demo.drafter import shipped_drafter
    from ddtree_sglang.demo.smollm2_source import find_gguf

    require(MODELS)
    found, absent = [], []
    for part, find in (("target", find_gguf), ("drafter", shipped_drafter)):
        try:
            found.append(f"{part} {find().name}")
        except DemoNotInstalledError as error:
            absent.append(f"no {part} (only the demo needs one): {error}")
    return "; ".join(found + absent)
