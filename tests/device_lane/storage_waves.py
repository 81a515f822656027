"""Texts that a storage behind the hierarchical cache brings back, to a server that has them neither on its device nor
on its host."""

from __future__ import annotations

import atexit
import json
import os
import shutil
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from deploy.local.client import flush_cache
from tests.device_lane.asking import LaneServer
from tests.device_lane.context_waves import TRACKED_LEN, behind_a_text
from tests.device_lane.pairs import TinyPair, random_prompts
from tests.device_lane.references import Asked
from tests.device_lane.scenes import Chooser, Scene, Sent

FOLDERS = Path(tempfile.gettempdir()) / f"ddtree-lane-storage-{os.getpid()}"
atexit.register(shutil.rmtree, FOLDERS, ignore_errors=True)
LENGTH = 72
"""Tokens of the text."""
WRITTEN_S, POLL_S = 60.0, 0.2
"""Longest time in which a text is written to storage, and how often that is asked."""


def _text() -> tuple[int, ...]:
    return tuple(random_prompts(1, LENGTH, 77)[0].tolist())


def with_storage(scene: Scene, *, drafts: bool = True, kept: int = LENGTH - LENGTH % TRACKED_LEN) -> Scene:
    """The scene with a folder of its own for storage, in which one text is, and nowhere else; maybe without drafts.

    So a server without a drafter leaves it: the target's keys alone. `kept`: tokens that are waited for; of recurrent
    layers, up to a length whose state is kept.
    """
    folder = FOLDERS / scene.name
    places = {"file_storage_path": str(folder), "prefetch_threshold": 4}
    flags = (
        *("--hicache-storage-backend", "file", "--hicache-storage-prefetch-policy", "wait_complete"),
        *("--hicache-storage-backend-extra-config", json.dumps(places)),
    )

    def store_and_forget(server: LaneServer, _pair: TinyPair) -> None:
        server.ask(Asked(_text(), 1))
        deadline = time.monotonic() + WRITTEN_S
        while len(list(folder.glob("*.draft_*"))) < kept and time.monotonic() < deadline:
            time.sleep(POLL_S)
        flush_cache(server.url)
        for file in () if drafts else folder.glob("*.draft_*"):
            file.unlink()

    return replace(scene, flags=(*scene.flags, *flags), before=store_and_forget)


def comes_back_from_storage(chooser: Chooser) -> list[Sent]:
    """Two behind that text, whose drafts hang on it."""
    return behind_a_text(chooser, _text(), is_stored=True)


def comes_back_to_its_end(chooser: Chooser) -> list[Sent]:
    """The same of short convolutions, whose inputs are kept where a prompt ends, for one token and for two."""
    return behind_a_text(chooser, _text(), is_stored=True, lengths=(1, 2))


def has_no_drafts_in_storage(chooser: Chooser) -> list[Sent]:
    """The same of a text whose drafter's keys are not there: whatever is read of it, tokens are the target's."""
    return [replace(one, check="tokens", cached=None, from_storage=None) for one in comes_back_from_storage(chooser)]


def comes_back_to_a_kept_state(chooser: Chooser) -> list[Sent]:
    """The same of a target with recurrent layers, as far as the last length whose state is kept."""
    least = TRACKED_LEN - 1
    return [
        replace(one, cached=TRACKED_LEN, from_storage=None if one.from_storage is None else least)
        for one in comes_back_from_storage(chooser)
    ]
