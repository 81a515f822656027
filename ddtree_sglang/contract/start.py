"""What a process checks before it registers anything with SGLang: the rows of a table, then the release."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

from ddtree_sglang.contract.check import Row, mismatches
from ddtree_sglang.exceptions import EngineContractError

SUPPORTED_SGLANG = "0.5.23"


def require(rows: Iterable[Row]) -> None:
    """Check rows against the installed packages.

    Raises:
        EngineContractError: names every row that does not hold.
    """
    table = tuple(rows)
    problems = mismatches(table)
    if problems:
        packages = sorted({row.module.partition(".")[0] for row in table})
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


def require_release() -> None:
    """Check that the installed SGLang is the release that the project was tested with.

    Raises:
        EngineContractError: it is another one.
    """
    installed = version("sglang")
    if installed != SUPPORTED_SGLANG:
        raise EngineContractError(
            f"ddtree_sglang supports sglang=={SUPPORTED_SGLANG}, got {installed}; install the supported version."
        )
