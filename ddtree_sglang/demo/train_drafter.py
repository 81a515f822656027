"""Train a DFlash drafter for a Hugging Face causal language model: data, features, training, scores, export.

    python -m ddtree_sglang.demo.train_drafter generate --target M --data FILE.npz --work DIR --conversations N
    python -m ddtree_sglang.demo.train_drafter features --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.demo.train_drafter train    --target M --data FILE.npz --work DIR --steps 2000
    python -m ddtree_sglang.demo.train_drafter evaluate --target M --data FILE.npz --work DIR
    python -m ddtree_sglang.demo.train_drafter export   --work DIR --output FOLDER
    python -m ddtree_sglang.demo.train_drafter all      --target M --data FILE.npz --work DIR --output FOLDER

Each stage can be stopped and started again: features are computed once per `--work` folder, training goes on
from the newest checkpoint there, evaluation and export read that checkpoint. `train` runs the features stage
itself when it is missing; `all` runs every stage, and scores what it exported on prompts of four kinds.
Recipe: block drafting over several target features (DFlash, arXiv 2602.06036),
trained on the target's own answers against the target's own distributions.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from ddtree_sglang.demo.checkpoint import load_checkpoint
from ddtree_sglang.demo.completers import Completer, LocalCompleter, Sampling, ServerCompleter
from ddtree_sglang.demo.conversations import Conversations, load_conversations, split_held_out
from ddtree_sglang.demo.drafter_config import DrafterConfig, drafter_config_for
from ddtree_sglang.demo.drafter_init import start_from_target
from ddtree_sglang.demo.drafter_model import DFlashDrafter
from ddtree_sglang.demo.evaluation import Evaluation, evaluate_drafter
from ddtree_sglang.demo.export import export_drafter, load_drafter
from ddtree_sglang.demo.features import FeatureCache, build_feature_cache, unit_feature_scale
from ddtree_sglang.demo.held_out_prompts import HELD_OUT_PROMPTS
from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.demo.scoring import KindScore, answer_prompts, score_table
from ddtree_sglang.demo.self_generation import GenerationPlan, generate_conversations
from ddtree_sglang.demo.train_flags import build_parser, layer_ids, training_plan
from ddtree_sglang.demo.training import Trainer


def main(argv: Sequence[str] | None = None) -> int:
    """Run one stage; the exit status is 0 on success and 2 on bad input."""
    args = build_parser(__doc__ or "").parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    stages = {
        "generate": _generate,
        "features": _features,
        "train": _train,
        "evaluate": _evaluate,
        "export": _export,
        "all": _all,
    }
    try:
        stages[args.stage](args)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _target_folder(args: argparse.Namespace) -> Path:
    folder: Path | None = args.target
    if folder is None:
        raise ValueError("this stage needs the target: pass --target FOLDER.")
    return folder


def _load_target(args: argparse.Namespace, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(_target_folder(args), dtype=dtype).to(args.device).eval()


def _tokenizer(args: argparse.Namespace) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(_target_folder(args))


def _conversations(args: argparse.Namespace) -> Conversations:
    if args.data is None:
        raise ValueError("this stage needs conversations: pass --data FILE.npz.")
    return load_conversations(args.data)


def _generate(args: argparse.Namespace) -> None:
    if args.data is None:
        raise ValueError("generation needs a file to write: pass --data FILE.npz.")
    tokenizer = _tokenizer(args)
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
        completer = ServerCompleter(args.server, tokenizer.eos_token_id)
    else:
        completer = LocalCompleter(_load_target(args, torch.float32 if args.float32 else torch.bfloat16))
    generate_conversations(completer, tokenizer, args.data, plan)


def _features(args: argparse.Namespace) -> FeatureCache:
    conversations, folder = _conversations(args), args.work / "features"
    layers = layer_ids(args.target_layers)
    if (folder / "meta.json").exists():
        cache = FeatureCache(folder)
        if cache.held_conversations(conversations, layers) == len(conversations):
            return cache
    target = _load_target(args, torch.bfloat16 if not args.float32 else torch.float32)
    return build_feature_cache(conversations, target, layers, folder)


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
    if not args.random_start:
        start_from_target(model, target, layer_ids(args.start_layers))
    model.to(args.device)
    embedding = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    head = head if args.float32 else head.to(torch.bfloat16)
    scale = unit_feature_scale(cache)
    del target
    shown = held_out[: args.held_out_limit or None]
    trainer = Trainer(
        model, embedding, head, conversations, cache, train, scale, training_plan(args), args.work / "checkpoints"
    )
    trainer.evaluate = lambda drafter: evaluate_drafter(
        drafter, embedding, head, conversations, cache, shown, scale
    ).summary()
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{parameters / 1e6:.2f} M parameters, {len(train)} training, {len(held_out)} held-out conversations")
    trainer.run()


def _drafter_config(args: argparse.Namespace, target: Any) -> DrafterConfig:
    mask_id = _tokenizer(args).get_vocab().get(args.mask_token)
    if mask_id is None:
        raise ValueError(f"the mask token must be in the target's vocabulary, {args.mask_token!r} is not.")
    return drafter_config_for(
        target.config,
        mask_token_id=mask_id,
        mask_token=args.mask_token,
        target_layer_ids=layer_ids(args.target_layers),
        num_layers=len(layer_ids(args.start_layers)),
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


def _drafter_to_score(args: argparse.Namespace) -> tuple[DFlashDrafter, torch.Tensor]:
    """The folder of `--draft`, or the newest checkpoint; and the factors of its features."""
    if args.draft is None:
        return _trained(args)
    model = load_drafter(args.draft)
    # An exported drafter has the scale in its projection.
    return model, torch.ones(model.config.feature_size)


def _evaluate(args: argparse.Namespace) -> None:
    model, scale = _drafter_to_score(args)
    model.to(args.device)
    target = _load_target(args, torch.float32)
    if args.prompts == "by-kind":
        conversations, kinds = answer_prompts(target, _tokenizer(args), HELD_OUT_PROMPTS, args.work / "by-kind.npz")
        folder = args.work / "by-kind-features"
        cache = build_feature_cache(conversations, target, model.config.target_layer_ids, folder)
    else:
        cache, conversations = _features(args), _conversations(args)
        kinds = ["held out"] * len(conversations)
    indices = _to_score(args, conversations)
    embedding = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    scores = []
    for kind in dict.fromkeys(kinds[index] for index in indices):
        chosen = [index for index in indices if kinds[index] == kind]
        result = evaluate_drafter(model, embedding, head, conversations, cache, chosen, scale)
        scores.append(KindScore(kind, result))
    if len(scores) > 1:
        scores.append(KindScore("all", reduce(Evaluation.merged, (score.evaluation for score in scores))))
    for score in scores:
        print(json.dumps(score.record()))
    print(score_table(scores))


def _to_score(args: argparse.Namespace, conversations: Conversations) -> list[int]:
    if args.prompts == "by-kind":
        return list(range(len(conversations)))
    _, held_out = split_held_out(conversations, args.held_out_percent)
    return held_out[: args.held_out_limit or None]


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


def _all(args: argparse.Namespace) -> None:
    if args.output is None:
        raise ValueError("the last stage exports: pass --output FOLDER.")
    for stage in (_generate, _train, _export):
        stage(args)
    args.draft, args.prompts = args.output, "by-kind"
    _evaluate(args)


if __name__ == "__main__":
    sys.exit(main())
