"""The `ddtree` command: `ddtree doctor` says whether DDTREE can serve here, and why not.

Starts nothing and loads no model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from ddtree_sglang import __version__
from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig
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
    from ddtree_sglang.contract.engine import CONTRACT, check_contract

    check_contract()
    return f"sglang {version('sglang')}, all {len(CONTRACT)} names that DDTREE relies on are as expected"


def _platform() -> str:
    from ddtree_sglang.cpu_platform import activate

    platform = activate()
    return "SGLang's own platform serves" if platform is None else f"no accelerator seen, {platform} serves"


def _configuration() -> str:
    return DDTreeConfig.from_env().to_json()


def _demo() -> str:
    from ddtree_sglang.demo.drafter import shipped_drafter
    from ddtree_sglang.demo.smollm2_source import find_gguf

    found, absent = [], []
    for part, find in (("target", find_gguf), ("drafter", shipped_drafter)):
        try:
            found.append(f"{part} {find().name}")
        except DemoNotInstalledError as error:
            absent.append(f"no {part} (only the demo needs one): {error}")
    return "; ".join(found + absent)
