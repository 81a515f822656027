"""Run the target once over all conversations and keep what the drafter trains on.

Kept per token: the context features (residual stream after the chosen target layers, as SGLang captures them)
and the target's most probable next tokens with their log-probabilities. Training then never runs the target.
Everything lies in flat files, mapped into memory; `meta.json` is written last, so a folder without it is
unfinished and is computed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.cache import FeatureCache, FeatureSpec, layout, open_arrays
from ddtree_sglang.training.features.disk_space import (
    allocate_file,
    full_disk_explained,
    held_bytes,
    require_free_space,
)
from ddtree_sglang.whole_file import replace_text

ROOM_REMEDY = "free some space, name another --work folder, or use fewer conversations or --target-layers."


def _allocate(folder: Path, spec: FeatureSpec) -> None:
    """Give the three files all their blocks, keeping what they hold.

    Raises:
        DiskFullError: no room; files that hold a complete cache still hold it.
    """
    sizes = {
        folder / name: spec.num_tokens * columns * np.dtype(dtype).itemsize for name, dtype, columns in layout(spec)
    }
    missing = sum(max(0, size - held_bytes(path)) for path, size in sizes.items())
    require_free_space(folder / "features.bin", missing, ROOM_REMEDY)
    for path, size in sizes.items():
        with full_disk_explained(path, size, ROOM_REMEDY):
            allocate_file(path, size)


def build_feature_cache(
    conversations: Conversations,
    target: Any,
    target_layer_ids: tuple[int, ...],
    folder: Path,
    *,
    fingerprint: str | None = None,
    top_k: int = 32,
    tokens_per_batch: int = 4096,
) -> FeatureCache:
    """Compute `folder` with a Hugging Face causal language model, or open it when it is already complete.

    `fingerprint` is the target's (`target_fingerprint`); it tells targets of one shape apart.
    A folder that holds the first of these conversations, from before more were added, is extended by the others.
    Prints progress (tokens, tokens/s, seconds left) about every ten seconds.

    Raises:
        ValueError: `folder` is complete but belongs to another target, other conversations, layers or top_k, or
            it is damaged.
        DiskFullError: there is no room for all of it; nothing is marked complete then.
    """
    spec = FeatureSpec(
        conversations.digest(),
        tuple(target_layer_ids),
        target.config.hidden_size,
        len(conversations.tokens),
        top_k,
        fingerprint,
        str(next(target.parameters()).dtype).removeprefix("torch."),
    )
    folder.mkdir(parents=True, exist_ok=True)
    held = 0
    if (folder / "meta.json").exists():
        cache = FeatureCache(folder)
        held = cache.held_conversations(conversations, spec.target_layer_ids)
        cache.check_target(spec.target, str(spec.dtype))
        if cache.spec.hidden_size != spec.hidden_size or cache.spec.top_k != spec.top_k:
            raise ValueError(
                f"the feature cache in {folder} must match this run: found {cache.spec}, needed {spec}. "
                "Remove the folder or name another one."
            )
        if held == len(conversations):
            return cache
        if cache.spec.target is None:  # what is added does not tell whose the rest is
            spec = replace(spec, target=None, dtype=None)
    _fill(conversations, range(held, len(conversations)), target, spec, folder, tokens_per_batch)
    # Rows before `held` were not touched, so until this line the folder is what it was.
    replace_text(folder / "meta.json", json.dumps(asdict(spec)))
    return FeatureCache(folder)


@torch.inference_mode()
def _fill(
    conversations: Conversations, missing: range, target: Any, spec: FeatureSpec, folder: Path, tokens_per_batch: int
) -> None:
    _allocate(folder, spec)
    arrays = open_arrays(folder, spec, mode="r+")
    device = next(target.parameters()).device
    started = last_print = time.monotonic()
    done, total = 0, spec.num_tokens - int(conversations.offsets[missing.start])
    for batch in _batches(conversations, missing, tokens_per_batch):
        lengths = [len(conversations.token_ids(i)) for i in batch]
        ids = torch.zeros(len(batch), max(lengths), dtype=torch.int64)
        for row, index in enumerate(batch):
            ids[row, : lengths[row]] = conversations.token_ids(index)
        # Right padding needs no mask: the target is causal.
        out = target.model(input_ids=ids.to(device), output_hidden_states=True, use_cache=False)
        # hidden_states[i + 1] is the residual stream after layer i, for every layer but the last.
        features = torch.cat([out.hidden_states[i + 1] for i in spec.target_layer_ids], dim=-1)
        for row, index in enumerate(batch):
            start, stop = int(conversations.offsets[index]), int(conversations.offsets[index + 1])
            rows = features[row, : lengths[row]].to(torch.bfloat16).cpu()
            arrays[0][start:stop] = rows.view(torch.int16).numpy()
            logits = target.lm_head(out.last_hidden_state[row, : lengths[row]]).float()
            top = logits.topk(spec.top_k, dim=-1)
            arrays[1][start:stop] = top.indices.cpu().numpy()
            arrays[2][start:stop] = (top.values - logits.logsumexp(-1, keepdim=True)).cpu().numpy()
        done += sum(lengths)
        now = time.monotonic()
        if now - last_print > 10 or done == total:
            rate, last_print = done / (now - started), now
            print(
                f"features {done}/{total} tokens, {rate:.0f} tokens/s, {(total - done) / rate:.0f} s left", flush=True
            )
    for array in arrays:
        array.flush()


def _batches(conversations: Conversations, chosen: range, tokens_per_batch: int) -> Iterator[list[int]]:
    """Conversations of similar length together, so that little is padding."""
    lengths = conversations.offsets.diff().tolist()
    batch: list[int] = []
    for index in sorted(chosen, key=lambda i: -lengths[i]):
        if batch and lengths[batch[0]] * (len(batch) + 1) > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
