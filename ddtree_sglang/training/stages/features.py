"""The features stage: run the target over all conversations once, and keep what it saw and said."""

from __future__ import annotations

from pathlib import Path

import torch

from ddtree_sglang.training.data.conversations import Conversations
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.model.target_check import target_fingerprint
from ddtree_sglang.training.stages.target import TargetFolder


def compute_features(
    target: TargetFolder, conversations: Conversations, layers: tuple[int, ...], work: Path, dtype: torch.dtype
) -> FeatureCache:
    """The features of the conversations after these layers, computed into `work` unless they are there.

    Raises:
        ValueError: `work` has features of another target, dtype, text or layers, or damaged ones.
        DiskFullError: there is no room for all features.
    """
    folder, fingerprint = work / "features", target_fingerprint(target.folder)
    if (folder / "meta.json").exists():
        cache = FeatureCache(folder)
        if cache.held_conversations(conversations, layers) == len(conversations):
            cache.check_target(fingerprint, str(dtype).removeprefix("torch."))
            return cache
    return build_feature_cache(conversations, target.load(dtype), layers, folder, fingerprint=fingerprint)
