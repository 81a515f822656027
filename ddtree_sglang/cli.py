"""The `ddtree` command: `ddtree doctor` says whether DDTREE can serve here, and why not.

Starts nothing and loads no model.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from ddtree_sglang import __version__
from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig
from ddtree_sglang.contract.cpu_platform import CPU_PLATFORM
from ddtree_sglang.contract.engine import ENGINE
from ddtree_sglang.contract.models import MODELS
from ddtree_sglang.contract.start import require, require_release
from ddtree_sglang.contract.workers import WORKERS
from ddtree_sglang.exceptions import DDTreeError, DemoNotInstalledError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand; the exit status is 0 when all is well, 1 otherwise."""
    parser = argparse.ArgumentParser(prog="ddtree", description=__doc__)
    parser.add_argument("--version", action="version", version=f"ddtree-sglang {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="check the installed engine, the platform, the configuration and the demo")
    parser.parse_args(argv)
    return doctor()


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
    return 1 if failed else 0


def _engine() -> str:
    require(ENGINE)
    require_release()
    return f"sglang {version('sglang')}, all {len(ENGINE)} rows hold"


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
