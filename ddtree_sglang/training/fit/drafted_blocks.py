"""What a frozen drafter proposes at answer positions, computed once and kept in files: all that its selector trains on.

One file per few conversations, each written whole and named by them, so that a stopped run goes on with the first that
is missing, and a run whose text grew with what is new.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.anchor_batches import gather_batch
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.drafting import draft_blocks
from ddtree_sglang.whole_file import replace_text

CONVERSATIONS_PER_FILE = 32


@dataclass(frozen=True)
class DraftedBlocks:
    """n blocks of D drafted positions, the drafter's best K tokens of each."""

    states: Tensor  # [n, D, H] bfloat16
    topk_ids: Tensor  # [n, D, K] int32
    topk_logprobs: Tensor  # [n, D, K] float32
    root_ids: Tensor  # [n] int64
    labels: Tensor  # [n, D] int64, the text's tokens, -1 behind its end

    def __len__(self) -> int:
        return len(self.root_ids)

    def parent_ids(self) -> Tensor:
        """[n, D] int64: the text's token before each position; 0 where the text has ended."""
        return torch.cat((self.root_ids[:, None], self.labels[:, :-1]), dim=1).clamp_min(0)

    def chosen(self, rows: Tensor) -> DraftedBlocks:
        """The blocks of these rows."""
        return DraftedBlocks(*(part[rows] for part in self._parts()))

    def _parts(self) -> tuple[Tensor, ...]:
        return self.states, self.topk_ids, self.topk_logprobs, self.root_ids, self.labels

    @staticmethod
    def concatenated(several: Sequence[DraftedBlocks]) -> DraftedBlocks:
        """All blocks, in order."""
        parts = zip(*(one._parts() for one in several), strict=True)
        return DraftedBlocks(*(torch.cat(part) for part in parts))


@dataclass(frozen=True)
class DraftRecord:
    """What the files of a folder hold; a run goes on with files of its own record alone."""

    drafter: str  # digest of the weights
    target: str  # fingerprint
    top_k: int
    anchors: int  # blocks per conversation, at most
    dtype: str  # of the products


def drafted_blocks(
    model: DFlashDrafter,
    embedding: Tensor,  # [V, H] float32
    head: Tensor,  # [V, H]
    conversations: Conversations,
    cache: FeatureCache,
    indices: list[int],
    record: DraftRecord,
    folder: Path,
) -> DraftedBlocks:
    """Draft at up to `record.anchors` positions of these conversations, or read what is there; prints progress.

    The drafter must take features as they are stored, as an exported one does.

    Raises:
        ValueError: the folder holds drafts of another record.
    """
    _check_record(folder, record)
    started, files = time.monotonic(), []
    for first in range(0, len(indices), CONVERSATIONS_PER_FILE):
        chosen = indices[first : first + CONVERSATIONS_PER_FILE]
        path = folder / f"drafts-{_name_of(conversations, chosen)}.pt"
        if not path.exists():
            parts = [_draft_one(model, embedding, head, conversations, cache, i, record) for i in chosen]
            _write(DraftedBlocks.concatenated(parts), path)
            print(
                f"drafts {first + len(chosen)}/{len(indices)} conversations, {time.monotonic() - started:.0f} s",
                flush=True,
            )
        files.append(path)
    return DraftedBlocks.concatenated([DraftedBlocks(*torch.load(path, weights_only=True)) for path in files])


def _name_of(conversations: Conversations, indices: list[int]) -> str:
    digest = hashlib.sha256()
    for index in indices:
        digest.update(conversations.prompt_digest(index))
        digest.update(conversations.token_ids(index).numpy().tobytes())
    return digest.hexdigest()[:16]


def _check_record(folder: Path, record: DraftRecord) -> None:
    path, text = folder / "record.json", json.dumps(asdict(record))
    if path.exists() and path.read_text() != text:
        raise ValueError(f"{folder} must hold drafts of this drafter, target and flags, it has others: remove it.")
    folder.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


@torch.inference_mode()
def _draft_one(
    model: DFlashDrafter,
    embedding: Tensor,
    head: Tensor,
    conversations: Conversations,
    cache: FeatureCache,
    index: int,
    record: DraftRecord,
) -> DraftedBlocks:
    start, length = int(conversations.answer_start[index]), len(conversations.token_ids(index))
    generator = torch.Generator().manual_seed(int.from_bytes(conversations.prompt_digest(index)[:4], "big"))
    anchors = start + torch.randperm(max(1, length - 1 - start), generator=generator)[: record.anchors].sort().values
    batch = gather_batch(conversations, cache, [index], [anchors.clamp_max(length - 1)], model.config.num_drafts)
    features = batch.features.float()
    drafts = draft_blocks(model, embedding, head, features, batch.anchors, batch.anchor_tokens, record.top_k)
    return DraftedBlocks(
        drafts.states.to(torch.bfloat16),
        drafts.topk_ids.int(),
        drafts.topk_logprobs,
        batch.anchor_tokens[0],
        batch.labels[0].masked_fill(~batch.valid[0], -1),
    )


def _write(blocks: DraftedBlocks, path: Path) -> None:
    partial = path.with_suffix(".partial")
    torch.save(tuple(part.clone() for part in blocks._parts()), partial)
    partial.replace(path)
