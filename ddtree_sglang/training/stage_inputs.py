"""What the stages of the training recipe read: the target, its tokenizer, conversations, features, the drafter."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError

from ddtree_sglang.training.data.completers import end_token_ids
from ddtree_sglang.training.data.conversations import Conversations, load_conversations
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from ddtree_sglang.training.model.drafter_config import DrafterConfig
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.target_check import check_target, target_fingerprint


def target_folder(args: argparse.Namespace) -> Path:
    """The folder of `--target`; ValueError when the flag is missing."""
    folder: Path | None = args.target
    if folder is None:
        raise ValueError("this stage needs the target: pass --target FOLDER.")
    return folder


def load_target(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    """The Hugging Face causal language model, ready to run on `--device`; ValueError when its weights are damaged."""
    from transformers import AutoModelForCausalLM

    folder = target_folder(args)
    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).to(args.device).eval()
    except SafetensorError as error:
        raise ValueError(f"the target's weights in {folder} are damaged ({error}): fetch them again.") from error


def load_tokenizer(args: argparse.Namespace) -> Any:
    """The target's tokenizer."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(target_folder(args))


def folder_end_ids(args: argparse.Namespace, tokenizer: Any) -> tuple[int, ...]:
    """The target's end tokens without its weights."""
    from transformers import AutoConfig, GenerationConfig

    folder = target_folder(args)
    configs: list[Any] = [AutoConfig.from_pretrained(folder), tokenizer]
    if (folder / "generation_config.json").exists():
        configs.insert(0, GenerationConfig.from_pretrained(folder))
    return end_token_ids(*configs)


def given_conversations(args: argparse.Namespace) -> Conversations:
    """The conversations of `--data`; ValueError when the flag is missing."""
    if args.data is None:
        raise ValueError("this stage needs conversations: pass --data FILE.npz.")
    return load_conversations(args.data)


def given_features(args: argparse.Namespace, layers: tuple[int, ...]) -> FeatureCache:
    """The features of `--data` after these layers, computed into `--work` unless they are there."""
    conversations, folder = given_conversations(args), args.work / "features"
    dtype, fingerprint = torch.float32 if args.float32 else torch.bfloat16, target_fingerprint(target_folder(args))
    if (folder / "meta.json").exists():
        cache = FeatureCache(folder)
        if cache.held_conversations(conversations, layers) == len(conversations):
            cache.check_target(fingerprint, str(dtype).removeprefix("torch."))
            return cache
    return build_feature_cache(conversations, load_target(args, dtype), layers, folder, fingerprint=fingerprint)


def drafter_shape(args: argparse.Namespace) -> tuple[DrafterConfig, tuple[int, ...]]:
    """Shape and start layers of the drafter to train, from flags and the target's defaults; see `check_target`."""
    return check_target(
        target_folder(args),
        load_tokenizer(args),
        mask_token=args.mask_token,
        target_layers=args.target_layers,
        start_layers=args.start_layers,
        block_size=args.block_size,
        random_start=args.random_start,
    )


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
