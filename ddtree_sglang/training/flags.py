"""Command-line flags of the drafter's training recipe."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.training.fit.loop import TrainingPlan


def build_parser(description: str) -> argparse.ArgumentParser:
    """All flags of all stages."""
    parser = argparse.ArgumentParser(
        prog="python -m ddtree_sglang.training",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("generate", "features", "train", "evaluate", "export", "all"))
    parser.add_argument("--work", type=Path, required=True, help="folder for features and checkpoints")
    parser.add_argument("--target", type=Path, help="Hugging Face folder of the target")
    parser.add_argument("--data", type=Path, help="conversations, .npz of tokens, offsets, answer_start")
    parser.add_argument("--output", type=Path, help="folder to export to")
    parser.add_argument("--draft", type=Path, help="evaluate this exported drafter, not the newest checkpoint")
    parser.add_argument(
        "--prompts",
        choices=("held-out", "by-kind"),
        default="held-out",
        help="evaluate on the held-out conversations of --data, or on this package's 80 prompts of four kinds",
    )
    parser.add_argument("--results", type=Path, help="evaluate: also write the scores to this file, JSON lines")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's default)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--held-out-percent", type=int, default=5)
    parser.add_argument("--held-out-limit", type=int, default=0, help="evaluate on the first N only")
    shape = parser.add_argument_group("drafter shape")
    shape.add_argument(
        "--target-layers",
        type=layer_ids,
        help="features: output of these layers, default: five spread over the target's (1,8,15,22,28 of 30)",
    )
    shape.add_argument(
        "--start-layers",
        type=layer_ids,
        help="target layers that the drafter's start from, default: the last three (27,28,29 of 30)",
    )
    shape.add_argument("--random-start", action="store_true", help="start from noise instead; only their number counts")
    shape.add_argument("--block-size", type=int, default=8)
    shape.add_argument("--mask-token", default="<reponame>", help="a token that text never holds")
    data = parser.add_argument_group("generation")
    data.add_argument("--conversations", type=int, default=1000, help="how many --data shall hold")
    data.add_argument("--server", help="let a running SGLang server of the target write, e.g. http://127.0.0.1:30000")
    data.add_argument("--generation-batch", type=int, default=64)
    data.add_argument("--turn-temperature", type=float, default=1.0, help="of the user turns that the target writes")
    data.add_argument("--turn-top-p", type=float, default=0.95, help="likewise; 1 spares a sort of the vocabulary")
    data.add_argument("--sampled-share", type=float, default=0.25, help="share of batches answered at temperature 1")
    data.add_argument("--max-tokens", type=int, default=384, help="per conversation")
    _add_plan_flags(parser.add_argument_group("training"))
    return parser


def _add_plan_flags(group: Any) -> None:
    defaults = TrainingPlan(steps=2000)
    group.add_argument("--steps", type=int, default=defaults.steps)
    group.add_argument("--rows", type=int, default=defaults.rows, help="conversations per step")
    group.add_argument("--anchors", type=int, default=defaults.anchors_per_row, help="blocks per conversation")
    group.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    group.add_argument("--optimizer", choices=("muon", "adamw"), default=defaults.optimizer)
    group.add_argument("--cooldown", type=float, default=defaults.cooldown, help="share of steps that cool down")
    group.add_argument("--soft-share", type=float, default=defaults.soft_share)
    group.add_argument("--depth-decay", type=float, default=defaults.depth_decay)
    group.add_argument(
        "--confidence-floor", type=float, help="weight positions by the chance to be reached, at least this per step"
    )
    group.add_argument(
        "--anchor-uncertainty", type=float, default=0.0, help="0 to 1: prefer anchors where the target is unsure"
    )
    group.add_argument(
        "--feature-noise", type=float, default=0.0, help="uniform noise on unit-size features, to remember them less"
    )
    group.add_argument("--sampled-vocabulary", type=int, default=defaults.sampled_vocabulary)
    group.add_argument("--evaluate-every", type=int, default=defaults.evaluate_every)
    group.add_argument("--checkpoint-every", type=int, default=defaults.checkpoint_every)
    group.add_argument(
        "--allow-changed-plan", action="store_true", help="go on from a checkpoint of another plan or of other data"
    )
    group.add_argument("--seed", type=int, default=defaults.seed)
    group.add_argument("--float32", action="store_true", help="no bfloat16 matrix products")


def training_plan(args: argparse.Namespace) -> TrainingPlan:
    """The numbers of the training stage."""
    return TrainingPlan(
        steps=args.steps,
        rows=args.rows,
        anchors_per_row=args.anchors,
        learning_rate=args.learning_rate,
        optimizer=args.optimizer,
        cooldown=args.cooldown,
        soft_share=args.soft_share,
        depth_decay=args.depth_decay,
        confidence_floor=args.confidence_floor,
        anchor_uncertainty=args.anchor_uncertainty,
        feature_noise=args.feature_noise,
        sampled_vocabulary=args.sampled_vocabulary,
        evaluate_every=args.evaluate_every,
        checkpoint_every=args.checkpoint_every,
        seed=args.seed,
        bfloat16=not args.float32,
    )


def layer_ids(text: str) -> tuple[int, ...]:
    """Layer numbers of a comma-separated list.

    Raises:
        argparse.ArgumentTypeError: anything else.
    """
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"layers must be numbers from 0 with commas between, such as 1,8,15, got {text!r}."
        ) from None
