"""The evaluate stage: score a drafter on held-out conversations or on prompts by kind, show it, and write it down."""

from __future__ import annotations

import argparse
import json
from functools import reduce
from typing import Any

import torch

from ddtree_sglang.demo.manifest import sha256_of
from ddtree_sglang.training.data.conversations import Conversations, split_held_out
from ddtree_sglang.training.data.held_out_prompts import HELD_OUT_PROMPTS
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import load_drafter
from ddtree_sglang.training.model.target_check import target_fingerprint
from ddtree_sglang.training.score.evaluation import Evaluation, evaluate_drafter
from ddtree_sglang.training.score.results import collect_provenance, weights_digest, write_results
from ddtree_sglang.training.score.scoring import KindScore, answer_prompts, score_table
from ddtree_sglang.training.stage_inputs import (
    given_conversations,
    given_features,
    load_target,
    load_tokenizer,
    target_folder,
    trained_drafter,
)


def evaluate(args: argparse.Namespace) -> None:
    """Score the drafter of `--draft` or the newest checkpoint; prints a table, writes `--results`."""
    if args.results is not None:
        args.results.parent.mkdir(parents=True, exist_ok=True)  # before the long part
    model, scale, drafter = _drafter_to_score(args)
    target = load_target(args, torch.float32)
    _check_fit(model, target)
    cache, conversations, kinds = _text_to_score(args, target, model.config.target_layer_ids)
    indices = _indices_to_score(args, conversations)
    embedding = target.get_input_embeddings().weight.detach()
    head = target.get_output_embeddings().weight.detach()
    model.to(args.device)
    scores = []
    for kind in dict.fromkeys(kinds[index] for index in indices):
        chosen = [index for index in indices if kinds[index] == kind]
        result = evaluate_drafter(model, embedding, head, conversations, cache, chosen, scale)
        scores.append(KindScore(kind, result))
    if len(scores) > 1:
        scores.append(KindScore("all", reduce(Evaluation.merged, (score.evaluation for score in scores))))
    records = [score.record() for score in scores]
    for record in records:
        print(json.dumps(record))
    print(score_table(scores))
    if args.results is not None:
        target_digest = target_fingerprint(target_folder(args))
        facts = {
            "drafter": drafter,
            "target": target_digest,
            "conversations_sha256": conversations.digest(),
            "scored": len(indices),
        }
        write_results(args.results, collect_provenance(args, **facts), records)


def _drafter_to_score(args: argparse.Namespace) -> tuple[DFlashDrafter, torch.Tensor, dict[str, Any]]:
    """The drafter, the factors of its features, and what identifies it."""
    if args.draft is None:
        trained = trained_drafter(args)
        _check_split(args, trained.held_out_percent)
        identity: dict[str, Any] = {"checkpoint_step": trained.step, "weights_sha256": weights_digest(trained.model)}
        return trained.model, trained.feature_scale, identity
    model = load_drafter(args.draft)
    identity = {
        "folder": args.draft.name,
        "model.safetensors_sha256": sha256_of(args.draft / "model.safetensors"),
        "weights_sha256": weights_digest(model),
    }
    # An exported drafter has the scale in its projection.
    return model, torch.ones(model.config.feature_size), identity


def _check_fit(model: DFlashDrafter, target: Any) -> None:
    names = ("hidden_size", "vocab_size")
    found = {name: (getattr(model.config, name), getattr(target.config, name)) for name in names}
    found["num_target_layers"] = (model.config.num_target_layers, target.config.num_hidden_layers)
    wrong = [f"{name} {own} and {its}" for name, (own, its) in found.items() if own != its]
    if wrong:
        raise ValueError(f"the drafter must be one for this target, they differ in {', '.join(wrong)}: pass its own.")


def _check_split(args: argparse.Namespace, trained_with: int | None) -> None:
    if args.prompts == "held-out" and trained_with is not None and args.held_out_percent > trained_with:
        raise ValueError(
            f"only what the checkpoint was not trained on may be scored: it held out {trained_with} %, got "
            f"--held-out-percent {args.held_out_percent}. Pass {trained_with} or less."
        )


def _text_to_score(
    args: argparse.Namespace, target: Any, layers: tuple[int, ...]
) -> tuple[FeatureCache, Conversations, list[str]]:
    """Features after the drafter's own layers, the conversations, and the kind of each."""
    if args.prompts == "by-kind":
        fingerprint, path = target_fingerprint(target_folder(args)), args.work / "by-kind.npz"
        tokenizer, answering = load_tokenizer(args), f"{fingerprint} float32"
        conversations, kinds = answer_prompts(target, tokenizer, HELD_OUT_PROMPTS, path, fingerprint=answering)
        folder = args.work / "by-kind-features"
        cache = build_feature_cache(conversations, target, layers, folder, fingerprint=fingerprint)
        return cache, conversations, kinds
    conversations = given_conversations(args)
    return given_features(args, layers), conversations, _kinds_of(conversations)


def _kinds_of(conversations: Conversations) -> list[str]:
    """Greedy and sampled answers apart where the file tells them apart: they are not equally hard to draft."""
    if conversations.sampled is None:
        return ["held out"] * len(conversations)
    names = {0: "held out, greedy", 1: "held out, sampled", -1: "held out, unmarked"}
    return [names.get(mark, names[-1]) for mark in conversations.sampled.tolist()]


def _indices_to_score(args: argparse.Namespace, conversations: Conversations) -> list[int]:
    if args.prompts == "by-kind":
        return list(range(len(conversations)))
    _, held_out = split_held_out(conversations, args.held_out_percent)
    return held_out[: args.held_out_limit or None]
