"""What a checkpoint says of its run, and which of that a resumed run may change.

The held-out split never changes: conversations that were trained on would be scored. Data and the fixed fields of
`TrainingConfig` change the run that the checkpoint belongs to, so they change only when asked for. Its other
fields, such as the number of steps, are free.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.fit.config import FIXED_FIELDS, TrainingConfig


@dataclass(frozen=True)
class DataRecord:
    """The conversations of a run, by number and content, and the share of them in percent that is held out."""

    conversations: int
    digest: str
    held_out_percent: int


def data_record(conversations: Conversations, held_out_percent: int) -> DataRecord:
    """The record of a run on these conversations."""
    return DataRecord(len(conversations), conversations.digest(), held_out_percent)


def check_resumable(
    saved: dict[str, Any],
    config: TrainingConfig,
    conversations: Conversations,
    held_out_percent: int,
    *,
    allow_changes: bool,
) -> None:
    """Compare a checkpoint's "plan" and "data" with those of the run that is to go on from it.

    A checkpoint without "data" is accepted with a message; its plan is compared all the same. A field that its plan
    lacks, or that `TrainingConfig` lacks, is not compared.

    Raises:
        ValueError: another held-out split, or, unless `allow_changes`, another plan or other data; each named.
    """
    now = asdict(config)
    changes = [
        f"{name}: {old} -> {now[name]}"
        for name, old in saved["plan"].items()
        if name in FIXED_FIELDS and now[name] != old
    ]
    if "data" in saved:
        was = DataRecord(**saved["data"])
        if was.held_out_percent != held_out_percent:
            raise ValueError(
                f"a resumed run must keep the held-out split, for what was trained on would be scored; the checkpoint "
                f"has {was.held_out_percent} %, got {held_out_percent} %: pass --held-out-percent "
                f"{was.held_out_percent}, or another --work folder."
            )
        changes += _data_changes(was, conversations)
    else:
        print(
            "this checkpoint does not say which data and which held-out split it was trained with: going on without "
            "comparing them",
            flush=True,
        )
    if changes and not allow_changes:
        raise ValueError(
            f"a resumed run must keep its plan and its data, these differ: {'; '.join(changes)}. Pass the old values, "
            "another --work folder, or --allow-changed-plan."
        )
    for change in changes:
        print(f"changed, as allowed: {change}", flush=True)


def _data_changes(was: DataRecord, conversations: Conversations) -> list[str]:
    digest = conversations.digest()
    if digest == was.digest:
        return []
    grown = len(conversations) > was.conversations and conversations.head(was.conversations).digest() == was.digest
    kind = "grown by new ones at the end" if grown else "others"
    return [
        f"data: {was.conversations} conversations {was.digest[:12]} -> {len(conversations)} conversations "
        f"{digest[:12]} ({kind})"
    ]
