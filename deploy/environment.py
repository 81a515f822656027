"""Build the virtual environment: from a machine that has only Python to one that can serve.

Standard library only, because it runs before anything is installed: `bash deploy/setup.sh [FILES]`.
A stamp holds the digest of everything that decides the result, so a second run takes milliseconds. A lock makes two
runs at once safe. The requirement files are complete and are installed without resolving (`--no-deps`), so the
environment holds exactly what they name.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from workers.progress import say, step

REPO = Path(__file__).resolve().parent.parent
SERVING_REQUIREMENTS = "deploy/requirements.txt"
NEEDED_BYTES = 12 * 10**9  # measured: 9.5 GB installed, plus what is unpacked on the way
OLDEST_PYTHON = (3, 11)
NEWEST_PYTHON = (3, 13)  # for a newer one, some pinned packages have no wheels yet
FALLBACK_PYTHON = "3.12"

_NETWORK_SIGNS = re.compile(
    r"dns error|resolve host|name resolution|connection (refused|reset|error)|network is unreachable"
    r"|timed out|error sending request|failed to fetch|max retries"
    r"|no matching distribution found for uv|certificate",
    re.IGNORECASE,
)
_NO_INDEX = "The package index could not be reached"


class SetupError(Exception):
    """The environment could not be built. The message gives the rule, what was found, and what to do."""


def hide_checkout(repo: Path = REPO) -> None:
    """Take the checkout off the front of PYTHONPATH, where the shell scripts put it for this process alone.

    What this process starts finds the installed packages, and none of the checkout's other folders.
    """
    first, _, rest = os.environ.get("PYTHONPATH", "").partition(os.pathsep)
    if first and Path(first).resolve() == repo:
        os.environ["PYTHONPATH"] = rest
    if not os.environ.get("PYTHONPATH"):
        os.environ.pop("PYTHONPATH", None)


def requirement_lines(path: Path) -> list[str]:
    """Requirement lines of `path` with its `-r` files read in, comments and blank lines left out."""
    lines: list[str] = []
    for raw in path.read_text(encoding="utf-8").splitlines():
        line = raw.strip()
        if line.startswith("-r "):
            lines += requirement_lines(path.parent / line[3:].strip())
        elif line and not line.startswith("#"):
            lines.append(line)
    return lines


def environment_digest(repo: Path, requirement_files: Sequence[str]) -> str:
    """Digest of what decides the environment: pins, project metadata, place, Python version."""
    parts = [str(repo), str(sys.version_info[:2]), (repo / "pyproject.toml").read_text(encoding="utf-8")]
    for name in requirement_files:
        parts += requirement_lines(repo / name)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def stamp_path(repo: Path, requirement_files: Sequence[str]) -> Path:
    """Where the digest of a finished set-up of these files is kept, inside the environment itself."""
    name = hashlib.sha256("\n".join(sorted(requirement_files)).encode()).hexdigest()[:12]
    return repo / ".venv" / f".ddtree-setup-{name}"


def is_ready(repo: Path, requirement_files: Sequence[str]) -> bool:
    """True when an earlier run finished with exactly these requirements."""
    stamp = stamp_path(repo, requirement_files)
    if not stamp.is_file() or not (repo / ".venv/bin/python").exists():
        return False
    return stamp.read_text(encoding="utf-8").strip() == environment_digest(repo, requirement_files)


@contextmanager
def exclusive(repo: Path) -> Iterator[None]:
    """Hold the set-up lock of this checkout; a second run waits for the first."""
    (repo / ".cache").mkdir(exist_ok=True)
    with (repo / ".cache/setup.lock").open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            with step("waiting for another set-up of this folder"):
                fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _explain(what: str, output: str, log: Path) -> SetupError:
    if "No space left" in output or "os error 28" in output:
        free_gb = shutil.disk_usage(log.parent).free / 1e9
        advice = f"The disk is full ({free_gb:.1f} GB free): make room, run it again."
    elif _NETWORK_SIGNS.search(output):
        advice = f"{_NO_INDEX}: check the network, a proxy, or pip's index settings."
    else:
        advice = f"The whole output is in {log}."
    tail = "\n".join("    " + line for line in output.strip().splitlines()[-12:])
    return SetupError(f"{what} failed.\n{tail}\n{advice}")


def _run(what: str, command: Sequence[str | Path], repo: Path) -> None:
    log = repo / ".cache/setup.log"
    result = subprocess.run(
        [str(part) for part in command],
        cwd=repo,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=False,
    )
    with log.open("a", encoding="utf-8") as handle:
        handle.write(f"$ {' '.join(map(str, command))}\n{result.stdout}{result.stderr}\n")
    if result.returncode != 0:
        raise _explain(what, result.stdout + result.stderr, log)


def _make_venv(target: Path, repo: Path) -> None:
    """Run `python -m venv`; where the distribution left pip out of it, the system's pip installs one."""
    try:
        _run("python -m venv", [sys.executable, "-m", "venv", target], repo)
    except SetupError:
        if shutil.which("pip3") is None:
            raise SetupError(
                "python3 can make no virtual environment: it has neither ensurepip nor pip. "
                "On Debian and Ubuntu: apt-get install python3-venv"
            ) from None
        _run("python -m venv", [sys.executable, "-m", "venv", "--without-pip", target], repo)
        _run("installing pip", ["pip3", "--python", target / "bin/python", "install", "pip"], repo)


def _works(python: Path, version: str) -> bool:
    """True when `python` starts and is of `version` ("3.12")."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        result = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
    except OSError:
        return False
    return result.returncode == 0 and result.stdout.strip() == version


def _uv_pin(lines: Sequence[str]) -> str:
    return next((line for line in lines if line.startswith("uv==")), "uv")


def _ensure_python(repo: Path, lines: Sequence[str]) -> Path:
    """Make `.venv` and put uv into it; returns uv's path. DDTREE_UV names one to use instead."""
    venv = repo / ".venv"
    this_python = sys.version.split()[0]
    given = os.environ.get("DDTREE_UV")
    host = venv
    if sys.version_info[:2] > NEWEST_PYTHON:
        host = repo / ".cache/uv-host"
        say(f"Python {this_python} is newer than the pinned packages; uv will provide {FALLBACK_PYTHON}.")
    if not _works(host / "bin/python", f"{sys.version_info[0]}.{sys.version_info[1]}"):
        shutil.rmtree(host, ignore_errors=True)
        with step(f"creating {host.relative_to(repo)} with Python {this_python}"):
            _make_venv(host, repo)
    uv = Path(given) if given else host / "bin/uv"
    if not given:
        with step("getting uv from pip"):
            _run("pip install uv", [host / "bin/python", "-m", "pip", "install", "-q", _uv_pin(lines)], repo)
    if host != venv and not _works(venv / "bin/python", FALLBACK_PYTHON):
        with step(f"creating .venv with Python {FALLBACK_PYTHON}"):
            _run("uv venv", [uv, "venv", "--clear", "--python", FALLBACK_PYTHON, venv], repo)
    return uv


def _check_space(repo: Path) -> None:
    installed = list((repo / ".venv").glob("lib/python*/site-packages/torch"))
    free = shutil.disk_usage(repo).free
    if not installed and free < NEEDED_BYTES:
        raise SetupError(
            f"the environment needs {NEEDED_BYTES / 1e9:.0f} GB of disk (SGLang with its CUDA libraries), "
            f"{free / 1e9:.1f} GB are free at {repo}. Make room, then run it again."
        )


def _install(repo: Path, uv: Path, requirement_files: Sequence[str], count: int) -> None:
    python = str(repo / ".venv/bin/python")
    files = [part for name in requirement_files for part in ("-r", str(repo / name))]
    before = shutil.disk_usage(repo).free

    def written() -> str:
        return f"{max(0, before - shutil.disk_usage(repo).free) / 1e9:.1f} GB written"

    with step(f"installing {count} pinned packages", written):
        try:
            _run("uv pip install", [uv, "pip", "install", "--python", python, "--no-deps", *files], repo)
        except SetupError as error:
            if _NO_INDEX not in str(error) or not _works_with_pip(python):
                raise
            # A mirror or a certificate may be configured for pip alone; uv reads none of pip's settings.
            say("uv reached no package index; trying pip with its own settings")
            try:
                _run("pip install", [python, "-m", "pip", "install", "--no-deps", *files], repo)
            except SetupError:
                raise error from None  # uv's message is the clearer of the two
    with step("installing this project (editable)"):
        editable = ["--no-deps", "--no-build-isolation", "-e", str(repo)]
        _run("installing this project", [uv, "pip", "install", "--python", python, *editable], repo)


def _works_with_pip(python: str) -> bool:
    command = [python, "-m", "pip", "--version"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def ensure_environment(repo: Path, requirement_files: Sequence[str]) -> Path:
    """Bring `.venv` to what `requirement_files` (paths relative to `repo`) say; returns its Python.

    Idempotent and safe to call from several processes. Raises SetupError with the reason and the remedy.
    """
    python = repo / ".venv/bin/python"
    if is_ready(repo, requirement_files):
        return python
    if sys.version_info[:2] < OLDEST_PYTHON:
        raise SetupError(f"Python 3.11 or newer is needed, this is {sys.version.split()[0]}; install a newer python3.")
    with exclusive(repo):
        if is_ready(repo, requirement_files):
            return python
        lines = [line for name in requirement_files for line in requirement_lines(repo / name)]
        _check_space(repo)
        (repo / ".cache/setup.log").write_text("", encoding="utf-8")
        uv = _ensure_python(repo, lines)
        _install(repo, uv, requirement_files, len(lines))
        stamp = stamp_path(repo, requirement_files)
        stamp.write_text(environment_digest(repo, requirement_files) + "\n", encoding="utf-8")
    return python


def main(argv: Sequence[str]) -> int:
    """Set up for the requirement files in `argv` (default: serving). Status 0, or 1 with the reason."""
    hide_checkout()
    try:
        ensure_environment(REPO, list(argv) or [SERVING_REQUIREMENTS])
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
