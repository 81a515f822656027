"""The read side of a feature cache: the target's features and distributions at every token, mapped from flat files.

`build.py` writes the files. It writes `meta.json` last, so a folder without `meta.json` is unfinished.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ddtree_sglang.training.data.conversations import Conversations


@dataclass(frozen=True)
class FeatureSpec:
    """What a cache holds; two runs may share a cache only if their specifications are equal."""

    conversations_digest: str
    target_layer_ids: tuple[int, ...]
    hidden_size: int
    num_tokens: int
    top_k: int
    target: str | None = None  # `target_check.target_fingerprint`; None: an older cache, which does not record it
    dtype: str | None = None  # of the target's weights, such as "float32"


class FeatureCache:
    """Arrays per token over all conversations: row i belongs to token i of the flat token list."""

    def __init__(self, folder: Path) -> None:
        try:
            spec = json.loads((folder / "meta.json").read_text())
            self.spec = FeatureSpec(**spec | {"target_layer_ids": tuple(spec["target_layer_ids"])})
            arrays = open_arrays(folder, self.spec, mode="r")
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise ValueError(
                f"{folder} must hold a whole feature cache, its files are damaged ({error}): remove the folder, "
                "and the features are computed again."
            ) from error
        self._features, self._ids, self._logprobs = arrays

    def held_conversations(self, conversations: Conversations, target_layer_ids: tuple[int, ...]) -> int:
        """How many of `conversations` the cache holds: the first so many of them, and no others.

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

    def check_target(self, target: str | None, dtype: str) -> None:
        """Check which target computed the cache, and in which dtype; a cache without a record passes with a message.

        Args:
            target: `target_check.target_fingerprint` of the target; None compares nothing.
            dtype: of the target's weights, such as "float32".

        Raises:
            ValueError: another target or another dtype computed it.
        """
        if self.spec.target is None or self.spec.dtype is None:
            print("the feature cache does not say which target it is of: used without comparing them", flush=True)
            return
        if target is not None and (self.spec.target, self.spec.dtype) != (target, dtype):
            raise ValueError(
                f"the feature cache must be of this target, {target[:12]} in {dtype}; it was computed with "
                f"{self.spec.target[:12]} in {self.spec.dtype}. Pass that target (--float32 chooses the dtype), "
                "remove the cache, or name another --work folder."
            )

    def features(self, start: int, stop: int) -> Tensor:
        """Context features [stop-start, F*H] bfloat16 of flat token rows."""
        return torch.from_numpy(self._features[start:stop].copy()).view(torch.bfloat16)

    def next_token_ids(self, start: int, stop: int) -> Tensor:
        """Ids [stop-start, top_k] int64 of the target's most probable next tokens, best first."""
        return torch.from_numpy(self._ids[start:stop].astype(np.int64))

    def next_token_logprobs(self, start: int, stop: int) -> Tensor:
        """Log-probabilities [stop-start, top_k] float32 of those tokens, over the whole vocabulary."""
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


def layout(spec: FeatureSpec) -> tuple[tuple[str, Any, int], ...]:
    """Name, element type and columns of each file: features (bfloat16 bits as int16), ids, log-probabilities."""
    return (
        ("features.bin", np.int16, len(spec.target_layer_ids) * spec.hidden_size),
        ("ids.bin", np.int32, spec.top_k),
        ("logprobs.bin", np.float16, spec.top_k),
    )


def open_arrays(folder: Path, spec: FeatureSpec, mode: Any) -> tuple[np.memmap, np.memmap, np.memmap]:
    """Maps of the three files; mode as for numpy.memmap."""
    maps = [
        np.memmap(folder / name, dtype=dtype, mode=mode, shape=(spec.num_tokens, columns))
        for name, dtype, columns in layout(spec)
    ]
    return maps[0], maps[1], maps[2]
