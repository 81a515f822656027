"""What the stages of the training recipe read: the target, its tokenizer, conversations, features, the drafter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddtree_sglang.demo.checkpoint import load_checkpoint
from ddtree_sglang.demo.conversations import Conversations, load_conversations
from ddtree_sglang.demo.drafter_config import DrafterConfig
from ddtree_sglang.demo.drafter_model import DFlashDrafter
from ddtree_sglang.demo.features import FeatureCache, build_feature_cache


def target_folder(args: argparse.Namespace) -> Path:
    """The folder of `--target`; ValueError when the flag is missing."""
    folder: Path | None = args.target
    if folder is None:
        raise ValueError("this stage needs the target: pass --target FOLDER.")
    return folder


def load_target(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The Hugging Face causal language model, ready to run on `--device`."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(target_folder(args), dtype=dtype).to(args.device).eval()


def load_tokenizer(args: argparse.Namespace) -> Any:
    """The target's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(target_folder(args))


def given_conversations(args: argparse.Namespace) -> Conversations:
    """The conversations of `--data`; ValueError when the flag is missing."""
    if args.data is None:
        raise ValueError("this stage needs conversations: pass --data FILE.npz.")
    return load_conversations(args.data)


def given_features(args: argparse.Namespace, layers: tuple[int, ...]) -> FeatureCache:
    """The features of `--data` after these layers, computed into `--work` unless they are there."""
    conversations, folder = given_conversations(args), args.work / "features"
    if (folder / "meta.json").exists():
        cache = FeatureCache(folder)
        if cache.held_conversations(conversations, layers) == len(conversations):
            return cache
    target = load_target(args, torch.bfloat16 if not args.float32 else torch.float32)
    return build_feature_cache(conversations, target, layers, folder)


class TrainedDrafter(NamedTuple):
    """The drafter of a checkpoint and what belongs to it."""

    model: DFlashDrafter
    feature_scale: torch.Tensor  # [F*H] float32
    step: int
    held_out_percent: int | None  # None: a checkpoint from before this was recorded


def trained_drafter(args: argparse.Namespace) -> TrainedDrafter:
    """The newest intact checkpoint.

    Raises:
        ValueError: there is no checkpoint, or none that is intact.
    """
    saved = load_checkpoint(args.work / "checkpoints")
    if saved is None:
        raise ValueError(f"no checkpoint in {args.work / 'checkpoints'}: run the train stage first.")
    model = DFlashDrafter(DrafterConfig.from_hf_config(saved["config"]))
    model.load_state_dict(saved["model"])
    print(f"checkpoint of step {saved['step']}, {saved['seconds']:.0f} s of training", flush=True)
    held_out_percent = saved.get("data", {}).get("held_out_percent")
    return TrainedDrafter(model.eval(), saved["feature_scale"], int(saved["step"]), held_out_percent)
