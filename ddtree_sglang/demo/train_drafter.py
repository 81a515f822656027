"""Train a DFlash drafter for a Hugging Face causal language model: features, training, evaluation, export.

    python -m ddtree_sglang.demo.train_drafter features --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.demo.train_drafter train    --target M --data FILE.npz --work DIR --steps 2000
    python -m ddtree_sglang.demo.train_drafter evaluate --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.demo.train_drafter export   --work DIR --output FOLDER

Each stage can be stopped and started again: features are computed once per `--work` folder, training goes on
from the newest checkpoint there, evaluation and export read that checkpoint. `train` runs the features stage
itself when it is missing. Recipe: block drafting over several target features (DFlash, arXiv 2602.06036),
trained on the target's own answers against the target's own distributions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.demo.checkpoint import load_checkpoint
from ddtree_sglang.demo.conversations import Conversations, load_conversations, split_held_out
from ddtree_sglang.demo.drafter_config import DrafterConfig, drafter_config_for
from ddtree_sglang.demo.drafter_init import start_from_target
from ddtree_sglang.demo.drafter_model import DFlashDrafter
from ddtree_sglang.demo.evaluation import evaluate_drafter
from ddtree_sglang.demo.export import export_drafter
from ddtree_sglang.demo.features import FeatureCache, build_feature_cache, unit_feature_scale
from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.demo.training import Trainer, TrainingPlan


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; the exit status is 0 on success and 2 on bad input."""
    args = _parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = {"features": _features, "train": _train, "evaluate": _evaluate, "export": _export}
    try:
        stages[args.stage](args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m ddtree_sglang.demo.train_drafter",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=("features", "train", "evaluate", "export"))
    parser.add_argument("--work", type=Path, required=True, help="folder for features and checkpoints")
    parser.add_argument("--target", type=Path, help="Hugging Face folder of the target")
    parser.add_argument("--data", type=Path, help="conversations, .npz of tokens, offsets, answer_start")
    parser.add_argument("--output", type=Path, help="folder to export to")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (0: torch's default)")
    parser.add_argument("--held-out-percent", type=int, default=5)
    parser.add_argument("--held-out-limit", type=int, default=0, help="evaluate on the first N only")
    shape = parser.add_argument_group("drafter shape")
    shape.add_argument("--target-layers", default="1,8,15,22,28", help="features: output of these layers")
    shape.add_argument(
        "--start-layers", default="27,28,29", help="target layers that the drafter's start from"
    )
    shape.add_argument("--block-size", type=int, default=8)
    shape.add_argument("--mask-token", default="<reponame>", help="a token that text never holds")
    _add_plan_flags(parser.add_argument_group("training"))
    return parser


def _add_plan_flags(group: Any) -> None:
    defaults = TrainingPlan(steps=2000)
    group.add_argument("--steps", type=int, default=defaults.steps)
    group.add_argument("--rows", type=int, default=defaults.rows, help="conversations per step")
    group.add_argument(
        "--anchors", type=int, default=defaults.anchors_per_row, help="blocks per conversation"
    )
    group.add_argument("--learning-rate", type=float, default=defaults.learning_rate)
    group.add_argument("--optimizer", choices=("muon", "adamw"), default=defaults.optimizer)
    group.add_argument(
        "--cooldown", type=float, default=defaults.cooldown, help="share of steps that cool down"
    )
    group.add_argument("--soft-share", type=float, default=defaults.soft_share)
    group.add_argument("--depth-decay", type=float, default=defaults.depth_decay)
    group.add_argument("--sampled-vocabulary", type=int, default=defaults.sampled_vocabulary)
    group.add_argument("--evaluate-every", type=int, default=defaults.evaluate_every)
    group.add_argument("--checkpoint-every", type=int, default=defaults.checkpoint_every)
    group.add_argument("--seed", type=int, default=defaults.seed)
    group.add_argument("--float32", action="store_true", help="no bfloat16 matrix products")


def _plan(args: argparse.Namespace) -> TrainingPlan:
    return TrainingPlan(
        steps=args.steps,
        rows=args.rows,
        anchors_per_row=args.anchors,
        learning_rate=args.learning_rate,
        optimizer=args.optimizer,
        cooldown=args.cooldown,
        soft_share=args.soft_share,
        depth_decay=args.depth_decay,
        sampled_vocabulary=args.sampled_vocabulary,
        evaluate_every=args.evaluate_every,
        checkpoint_every=args.checkpoint_every,
        seed=args.seed,
        bfloat16=not args.float32,
    )


def _layer_ids(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(","))


def _load_target(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    if args.target is None:
        raise ValueError("this stage needs the target: pass --target FOLDER.")
    return AutoModelForCausalLM.from_pretrained(args.target, dtype=dtype).eval()


def _conversations(args: argparse.Namespace) -> Conversations:
    if args.data is None:
        raise ValueError("this stage needs conversations: pass --data FILE.npz.")
    return load_conversations(args.data)


def _features(args: argparse.Namespace) -> FeatureCache:
    conversations, folder = _conversations(args), args.work / "features"
    if (folder / "meta.json").exists():
        return FeatureCache(folder).require(conversations, _layer_ids(args.target_layers))
    target = _load_target(args, torch.bfloat16 if not args.float32 else torch.float32)
    return build_feature_cache(conversations, target, _layer_ids(args.target_layers), folder)


def _train(args: argparse.Namespace) -> None:
    cache, conversations = _features(args), _conversations(args)
    train, held_out = split_held_out(conversations, args.held_out_percent)
    target = _load_target(args, torch.float32)
    if target.config.hidden_size != cache.spec.hidden_size:
        raise ValueError(
            f"the target's hidden size must be that of the features in {args.work}, got "
            f"{target.config.hidden_size} and {cache.spec.hidden_size}: name another --work folder."
        )
    torch.manual_seed(args.seed)
    model = DFlashDrafter(_drafter_config(args, target))
    start_from_target(model, target, _layer_ids(args.start_layers))
    embedding = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    head = head if args.float32 else head.to(torch.bfloat16)
    scale = unit_feature_scale(cache)
    del target
    shown = held_out[: args.held_out_limit or None]
    trainer = Trainer(
        model, embedding, head, conversations, cache, train, scale, _plan(args), args.work / "checkpoints"
    )
    trainer.evaluate = lambda drafter: evaluate_drafter(
        drafter, embedding, head, conversations, cache, shown, scale
    ).summary()
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{parameters / 1e6:.2f} M parameters, {len(train)} training, {len(held_out)} held-out conversations"
    )
    trainer.run()


def _drafter_config(args: argparse.Namespace, target: Any) -> DrafterConfig:
    from transformers import AutoTokenizer

    mask_id = AutoTokenizer.from_pretrained(args.target).get_vocab().get(args.mask_token)
    if mask_id is None:
        raise ValueError(f"the mask token must be in the target's vocabulary, {args.mask_token!r} is not.")
    return drafter_config_for(
        target.config,
        mask_token_id=mask_id,
        mask_token=args.mask_token,
        target_layer_ids=_layer_ids(args.target_layers),
        num_layers=len(_layer_ids(args.start_layers)),
        block_size=args.block_size,
    )


def _trained(args: argparse.Namespace) -> tuple[DFlashDrafter, torch.Tensor]:
    saved = load_checkpoint(args.work / "checkpoints")
    if saved is None:
        raise ValueError(f"no checkpoint in {args.work / 'checkpoints'}: run the train stage first.")
    model = DFlashDrafter(DrafterConfig.from_hf_config(saved["config"]))
    model.load_state_dict(saved["model"])
    print(f"checkpoint of step {saved['step']}, {saved['seconds']:.0f} s of training", flush=True)
    return model.eval(), saved["feature_scale"]


def _evaluate(args: argparse.Namespace) -> None:
    cache, conversations = _features(args), _conversations(args)
    model, scale = _trained(args)
    target = _load_target(args, torch.float32)
    embedding = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    _, held_out = split_held_out(conversations, args.held_out_percent)
    held_out = held_out[: args.held_out_limit or None]
    result = evaluate_drafter(model, embedding, head, conversations, cache, held_out, scale)
    intervals = {
        name: [round(value, 3) for value in score.confidence_interval()]
        for name, score in result.scores.items()
    }
    print(json.dumps({"conversations": len(held_out), **result.summary(), "interval_95": intervals}))


def _export(args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("export needs a folder: pass --output FOLDER.")
    model, scale = _trained(args)
    with torch.no_grad():
        # The engine hands over raw features: their scale moves into the projection.
        model.fc.weight.mul_(scale)
    export_drafter(model, args.output, torch.float32 if args.float32 else torch.bfloat16)
    write_manifest(args.output)
    print(args.output)


if __name__ == "__main__":
    sys.exit(main())
