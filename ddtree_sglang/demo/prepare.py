"""Prepare the embedded target once: convert it into a cache folder and hand out the path.

    python -m ddtree_sglang.demo.prepare        progress on stderr, the folder's path on stdout

Conversion goes to a temporary folder that is renamed when complete, under a lock that dies with its holder:
two runs at once convert once, and an interrupted run leaves nothing that a later one would trust. Every use
checks the digests of the manifest; a damaged folder is converted again.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ddtree_sglang.demo.manifest import manifest_problems, write_manifest
from ddtree_sglang.demo.smollm2_source import (
    CONVERTED_BYTES,
    GGUF_SHA256,
    convert_gguf,
    find_gguf,
)
from ddtree_sglang.exceptions import ModelSourceError
from ddtree_sglang.whole_file import CACHE_VARIABLE, cache_folder

MODEL_NAME = "SmolLM2-135M-Instruct"


def prepare_model(cache_dir: Path | None = None) -> Path:
    """Folder of the converted model; converts on first use (about half a minute and 0.54 GB of disk).

    Raises:
        ModelSourceError: a package is missing, the cache cannot be written, or the disk is full.
    """
    cache = (cache_dir or cache_folder()).absolute()
    folder = cache / f"{MODEL_NAME}-float32-{GGUF_SHA256[:12]}"
    if not _problems(folder):
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder.with_name(folder.name + ".lock")):
            problems = _problems(folder)  # another process may have finished meanwhile
            if problems:
                _replace(folder, problems)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelSourceError(_disk_message(cache, f"the disk is full ({error})")) from error
        raise ModelSourceError(
            f"the model cache {cache} must be a writable folder ({error}): set {CACHE_VARIABLE} to one."
        ) from error
    return folder


def _problems(folder: Path) -> list[str]:
    if not folder.exists():
        return ["not converted yet"]
    return manifest_problems(folder, source_sha256=GGUF_SHA256)


def _replace(folder: Path, problems: list[str]) -> None:
    """Convert into a temporary folder and move it into place; the caller holds the lock."""
    for stale in folder.parent.glob(f"{folder.name}.partial-*"):
        _say(f"removing what an interrupted run left: {stale}")
        shutil.rmtree(stale)
    if folder.exists():
        _say(f"{folder} is damaged ({'; '.join(problems)}): converting again")
    gguf = find_gguf()
    free = shutil.disk_usage(folder.parent).free
    if free < CONVERTED_BYTES * 1.1:
        raise ModelSourceError(_disk_message(folder.parent, f"{free / 1e6:.0f} MB are free"))
    started = time.monotonic()
    _say(f"converting {gguf.name} to float32 (once, about half a minute)")
    partial = folder.with_name(f"{folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir()
        convert_gguf(gguf, partial)
        write_manifest(partial, source_sha256=GGUF_SHA256)
        _flush_to_disk(partial)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    _say(f"ready after {time.monotonic() - started:.0f} s: {folder}")


def _flush_to_disk(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as stream:
            os.fsync(stream.fileno())


@contextlib.contextmanager
def _exclusive(lock: Path) -> Iterator[None]:
    """Hold an advisory lock; the system releases it when the process ends in any way."""
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _say("another process is preparing the model, waiting for it")
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _disk_message(cache: Path, finding: str) -> str:
    return (
        f"the converted model needs {CONVERTED_BYTES / 1e6:.0f} MB in {cache}, {finding}: "
        f"free some space or set {CACHE_VARIABLE} to another disk."
    )


def _say(message: str) -> None:
    print(f"[prepare] {message}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the prepared folder; exit status 1 with the reason when it cannot be prepared."""
    parser = argparse.ArgumentParser(prog="python -m ddtree_sglang.demo.prepare", description=__doc__)
    parser.add_argument("--cache-dir", type=Path, default=None, help=f"default: ${CACHE_VARIABLE} or ~/.cache")
    args = parser.parse_args(argv)
    try:
        print(prepare_model(args.cache_dir))
    except ModelSourceError as error:
        _say(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
