"""What a process checks before it registers anything with SGLang: the rows of a table, then the release."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from ddtree_sglang.contract.check import Row, mismatches
from ddtree_sglang.contract.known import Known, contract_folder
from ddtree_sglang.contract.source import installed
from ddtree_sglang.exceptions import EngineContractError

SUPPORTED_SGLANG = "0.5.23"


def require(rows: Iterable[Row]) -> None:
    """Check rows against the installed packages; against the same bytes, once.

    Raises:
        EngineContractError: names every row that does not hold.
    """
    table, engine = tuple(rows), installed()
    known = Known(table, contract_folder())
    is_known = known.holds()
    # What is compiled has no bytes of its own here.
    problems = mismatches((row for row in table if row.compiled or not is_known), engine)
    if not is_known and not problems:
        known.keep(engine.digests)
    # The parsed files are some 200,000 objects, which each full garbage collection of a server would walk.
    installed.cache_clear()
    if problems:
        packages = sorted({row.module.partition(".")[0] for row in table} - sys.stdlib_module_names)
        raise EngineContractError(
            f"{', '.join(f'{name} {_version(name)}' for name in packages)} must have what ddtree_sglang was written "
            f"against: {'; '.join(problems)}. Install sglang=={SUPPORTED_SGLANG}, with replicas the Ray that "
            "ddtree-sglang[ray] asks for, or a ddtree_sglang made for what is installed."
        )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def untested_release() -> EngineContractError | None:
    """Why the installed SGLang is refused unless the user says otherwise; None for the release that was tested."""
    release = version("sglang")
    if release == SUPPORTED_SGLANG:
        return None
    return EngineContractError(
        f"ddtree_sglang supports sglang=={SUPPORTED_SGLANG}, got {release}, which has every name that it relies on "
        "but was not tested; install the supported version, or start all the same with "
        '--speculative-ddtree-untested-engine (or "untested_engine": true in DDTREE_CONFIG).'
    )
