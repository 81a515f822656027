"""Train a DFlash drafter for a Hugging Face causal language model: data, features, training, scores, export.

    python -m ddtree_sglang.training generate --target M --data FILE.npz --work DIR --conversations N
    python -m ddtree_sglang.training features --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.training train    --target M --data FILE.npz --work DIR --steps 2000
    python -m ddtree_sglang.training evaluate --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.training export   --work DIR --output FOLDER
    python -m ddtree_sglang.training all      --target M --data FILE.npz --work DIR --output FOLDER

Each stage can be stopped and started again: features are computed once per `--work` folder, training goes on
from the newest checkpoint there, evaluation and export read that checkpoint. `train` runs the features stage
itself when it is missing; `all` runs every stage, and scores what it exported on prompts of four kinds.
A run goes on only with its own data, split and plan: `--allow-changed-plan` allows other data and another plan, never
another split. `evaluate --results FILE` writes the scores down. Targets: any of Llama's shape, see `target_check.py`.
Recipe: block drafting over several target features (DFlash, arXiv 2602.06036),
trained on the target's own answers against the target's own distributions.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict

import torch

from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.training.data.completers import Completer, LocalCompleter, Sampling, ServerCompleter
from ddtree_sglang.training.data.conversations import split_held_out
from ddtree_sglang.training.data.self_generation import GenerationPlan, generate_conversations
from ddtree_sglang.training.evaluate_stage import evaluate
from ddtree_sglang.training.features.cache import unit_feature_scale
from ddtree_sglang.training.fit.checkpoint import load_checkpoint
from ddtree_sglang.training.fit.loop import Trainer
from ddtree_sglang.training.fit.run_record import check_resumable
from ddtree_sglang.training.flags import build_parser, training_plan
from ddtree_sglang.training.model.drafter_init import start_from_target
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from ddtree_sglang.training.score.evaluation import evaluate_drafter
from ddtree_sglang.training.stage_inputs import (
    drafter_shape,
    folder_end_ids,
    given_conversations,
    given_features,
    load_target,
    load_tokenizer,
    trained_drafter,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; the exit status is 0 on success and 2 on bad input."""
    args = build_parser(__doc__ or "").parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = {
        "generate": _generate,
        "features": _features,
        "train": _train,
        "evaluate": evaluate,
        "export": _export,
        "all": _all,
    }
    try:
        stages[args.stage](args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _generate(args: argparse.Namespace) -> None:
    if args.data is None:
        raise ValueError("generation needs a file to write: pass --data FILE.npz.")
    tokenizer = load_tokenizer(args)
    plan = GenerationPlan(
        args.conversations,
        args.generation_batch,
        args.max_tokens,
        turns=Sampling(args.turn_temperature, args.turn_top_p),
        sampled_share=args.sampled_share,
        seed=args.seed,
    )
    completer: Completer
    if args.server is not None:
        completer = ServerCompleter(args.server, folder_end_ids(args, tokenizer))
    else:
        completer = LocalCompleter(load_target(args, torch.float32 if args.float32 else torch.bfloat16))
    generate_conversations(completer, tokenizer, args.data, plan)


def _features(args: argparse.Namespace) -> None:
    given_features(args, drafter_shape(args)[0].target_layer_ids)


def _train(args: argparse.Namespace) -> None:
    shape, start_layers = drafter_shape(args)
    conversations = given_conversations(args)
    train, held_out = split_held_out(conversations, args.held_out_percent)
    plan = training_plan(args)
    saved = load_checkpoint(args.work / "checkpoints")
    if saved is not None:  # asked before the features, which may take hours
        percent = args.held_out_percent
        check_resumable(saved, asdict(plan), conversations, percent, allow_changes=args.allow_changed_plan)
    cache = given_features(args, shape.target_layer_ids)
    target = load_target(args, torch.float32)
    if target.config.hidden_size != cache.spec.hidden_size:
        raise ValueError(
            f"the target's hidden size must be that of the features in {args.work}, got "
            f"{target.config.hidden_size} and {cache.spec.hidden_size}: name another --work folder."
        )
    torch.manual_seed(args.seed)
    model = DFlashDrafter(shape)
    if not args.random_start:
        start_from_target(model, target, start_layers)
    model.to(args.device)
    embedding = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    head = head if args.float32 else head.to(torch.bfloat16)
    scale = unit_feature_scale(cache)
    del target
    shown = held_out[: args.held_out_limit or None]
    trainer = Trainer(
        model,
        embedding,
        head,
        conversations,
        cache,
        train,
        scale,
        plan,
        args.work / "checkpoints",
        args.held_out_percent,
    )
    trainer.evaluate = lambda drafter: evaluate_drafter(
        drafter, embedding, head, conversations, cache, shown, scale
    ).summary()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(train)} training, {len(held_out)} held-out conversations")
    trainer.run()


def _export(args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("export needs a folder: pass --output FOLDER.")
    trained = trained_drafter(args)
    model = trained.model
    with torch.no_grad():
        # The engine hands over raw features: their scale moves into the projection.
        model.fc.weight.mul_(trained.feature_scale)
    export_drafter(model, args.output, torch.float32 if args.float32 else torch.bfloat16)
    write_manifest(args.output)
    print(args.output)


def _all(args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("the last stage exports: pass --output FOLDER.")
    drafter_shape(args)  # what does not fit is said before the first conversation is written
    for stage in (_generate, _train, _export):
        stage(args)
    args.draft, args.prompts = args.output, "by-kind"
    evaluate(args)


if __name__ == "__main__":
    sys.exit(main())
