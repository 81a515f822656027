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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.demo.conversations import Conversations
from ddtree_sglang.demo.disk_space import allocate_file, full_disk_explained, held_bytes, require_free_space

ROOM_REMEDY = "free some space, name another --work folder, or use fewer conversations or --target-layers."


@dataclass(frozen=True)
class FeatureSpec:
    """What a cache holds; two runs may share one only if all of it is equal."""

    conversations_digest: str
    target_layer_ids: tuple[int, ...]
    hidden_size: int
    num_tokens: int
    top_k: int


class FeatureCache:
    """Read side: per-token arrays of all conversations, row i belongs to token i of the flat token list."""

    def __init__(self, folder: Path) -> None:
        spec = json.loads((folder / "meta.json").read_text())
        self.spec = FeatureSpec(**spec | {"target_layer_ids": tuple(spec["target_layer_ids"])})
        arrays = _open_arrays(folder, self.spec, mode="r")
        self._features, self._ids, self._logprobs = arrays

    def held_conversations(self, conversations: Conversations, target_layer_ids: tuple[int, ...]) -> int:
        """How many of `conversations`, from the first one on, the cache has; all of what it has must be among them.

        Raises:
            ValueError: the cache belongs to other conversations or layers.
        """
        held, needed = self.spec.target_layer_ids, tuple(target_layer_ids)
        count = int(torch.searchsorted(conversations.offsets, self.spec.num_tokens))
        of_these = count <= len(conversations) and conversations.head(count).digest() == self.spec.conversations_digest
        if held != needed or not of_these:
            raise ValueError(
                f"the feature cache must belong to these conversations and layers {list(needed)}; it was "
                f"computed from layers {list(held)} of conversations {self.spec.conversations_digest[:12]}. "
                "Remove it or name another --work folder."
            )
        return count

    def features(self, start: int, stop: int) -> Tensor:
        """Context features [stop-start, F*H] bfloat16 of flat token rows."""
        return torch.from_numpy(self._features[start:stop].copy()).view(torch.bfloat16)

    def next_token_ids(self, start: int, stop: int) -> Tensor:
        """Ids [stop-start, top_k] int64 of the target's most probable next tokens, best first."""
        return torch.from_numpy(self._ids[start:stop].astype(np.int64))

    def next_token_logprobs(self, start: int, stop: int) -> Tensor:
        """Their log-probabilities over the whole vocabulary [stop-start, top_k] float32."""
        return torch.from_numpy(self._logprobs[start:stop].astype(np.float32))


def unit_feature_scale(cache: FeatureCache, sample: int = 8192) -> Tensor:
    """Factors [F*H] float32, one value per feature layer, that give features unit root mean square.

    Deep layers' streams are an order of magnitude larger than early ones', and a position's first tokens
    larger still; the median over tokens ignores those.
    """
    rows = torch.linspace(0, cache.spec.num_tokens - 1, min(sample, cache.spec.num_tokens)).long().tolist()
    values = torch.cat([cache.features(row, row + 1) for row in rows]).float()
    values = values.view(len(values), len(cache.spec.target_layer_ids), cache.spec.hidden_size)
    size = values.pow(2).mean(-1).sqrt().median(0).values
    return (1 / size.clamp_min(1e-6)).repeat_interleave(cache.spec.hidden_size)


def _layout(spec: FeatureSpec) -> tuple[tuple[str, Any, int], ...]:
    """Name, element type and columns of each file: features (bfloat16 bits as int16), ids, log-probabilities."""
    return (
        ("features.bin", np.int16, len(spec.target_layer_ids) * spec.hidden_size),
        ("ids.bin", np.int32, spec.top_k),
        ("logprobs.bin", np.float16, spec.top_k),
    )


def _open_arrays(folder: Path, spec: FeatureSpec, mode: Any) -> tuple[np.memmap, np.memmap, np.memmap]:
    """Maps of the three files; mode as for numpy.memmap."""
    maps = [
        np.memmap(folder / name, dtype=dtype, mode=mode, shape=(spec.num_tokens, columns))
        for name, dtype, columns in _layout(spec)
    ]
    return maps[0], maps[1], maps[2]


def _allocate(folder: Path, spec: FeatureSpec) -> None:
    """Give the three files all their blocks, keeping what they hold.

    Raises:
        DiskFullError: no room; files that hold a complete cache still hold it.
    """
    sizes = {
        folder / name: spec.num_tokens * columns * np.dtype(dtype).itemsize for name, dtype, columns in _layout(spec)
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
    top_k: int = 32,
    tokens_per_batch: int = 4096,
) -> FeatureCache:
    """Compute `folder` with a Hugging Face causal language model, or open it when it is already complete.

    A folder that holds the first of these conversations, from before more were added, is extended by the others.
    Prints progress (tokens, tokens/s, seconds left) about every ten seconds.

    Raises:
        ValueError: `folder` is complete but belongs to other conversations, layers, widths or top_k.
        DiskFullError: there is no room for all of it; nothing is marked complete then.
    """
    spec = FeatureSpec(
        conversations.digest(),
        tuple(target_layer_ids),
        target.config.hidden_size,
        len(conversations.tokens),
        top_k,
    )
    folder.mkdir(parents=True, exist_ok=True)
    held = 0
    if (folder / "meta.json").exists():
        cache = FeatureCache(folder)
        held = cache.held_conversations(conversations, spec.target_layer_ids)
        if cache.spec.hidden_size != spec.hidden_size or cache.spec.top_k != spec.top_k:
            raise ValueError(
                f"the feature cache in {folder} must match this run: found {cache.spec}, needed {spec}. "
                "Remove the folder or name another one."
            )
        if held == len(conversations):
            return cache
    _fill(conversations, range(held, len(conversations)), target, spec, folder, tokens_per_batch)
    # Rows before `held` were not touched, so until this line the folder is what it was.
    partial = folder / "meta.json.partial"
    partial.write_text(json.dumps(asdict(spec)))
    partial.replace(folder / "meta.json")
    return FeatureCache(folder)


@torch.inference_mode()
def _fill(
    conversations: Conversations, missing: range, target: Any, spec: FeatureSpec, folder: Path, tokens_per_batch: int
) -> None:
    _allocate(folder, spec)
    arrays = _open_arrays(folder, spec, mode="r+")
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
