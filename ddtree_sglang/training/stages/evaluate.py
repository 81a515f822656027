"""The evaluate stage: score a drafter on held-out conversations or on prompts by kind, show it, and write it down."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ddtree_sglang.demo.manifest import sha256_of
from ddtree_sglang.training.data.conversations import (
    Conversations,
    HeldOutConfig,
    load_conversations,
    split_held_out,
)
from ddtree_sglang.training.data.held_out_prompts import HELD_OUT_PROMPTS
from ddtree_sglang.training.described import described
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.features.cache import FeatureCache
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import load_drafter
from ddtree_sglang.training.model.target_check import target_fingerprint
from ddtree_sglang.training.score.evaluation import Evaluation, evaluate_drafter
from ddtree_sglang.training.score.results import collect_provenance, weights_digest, write_results
from ddtree_sglang.training.score.scoring import KindScore, answer_prompts, score_table
from ddtree_sglang.training.stages.export import trained_drafter
from ddtree_sglang.training.stages.features import compute_features
from ddtree_sglang.training.stages.start import check_fit
from ddtree_sglang.training.stages.target import TargetFolder


@dataclass(frozen=True)
class ScoringConfig:
    """Which drafter is scored, on what, and where the scores go."""

    draft: Path | None = described(
        None,
        "folder of an exported drafter: evaluate scores it (default: the newest checkpoint), selector adds a head",
    )
    prompts: str = described(
        "held-out",
        "what to score on: held-out conversations of --data, or the recipe's own 80 prompts of four kinds",
        choices=("held-out", "by-kind"),
    )
    results: Path | None = described(None, "file that the scores are written to as well, as JSON lines")


class _TextToScore(NamedTuple):
    cache: FeatureCache
    conversations: Conversations
    kinds: list[str]  # of each conversation
    indices: list[int]  # of the conversations to score


def evaluate(
    target: TargetFolder,
    data: Path | None,
    work: Path,
    scoring: ScoringConfig,
    held_out: HeldOutConfig,
    dtype: torch.dtype,
    arguments: Mapping[str, Any],
) -> None:
    """Score a drafter, print a table, and write the scores down where a file for them is named.

    Args:
        data: file of conversations; needed for held-out ones.
        work: folder of the checkpoint, the features and the answers by kind.
        dtype: of the cached features of held-out conversations.
        arguments: what the record of the scores says they were asked for with.

    Raises:
        ValueError: the drafter is another target's, `data` is missing, or the checkpoint was trained on held-out text.
    """
    if scoring.results is not None:
        scoring.results.parent.mkdir(parents=True, exist_ok=True)  # before the long part
    model, scale, drafter = _drafter_to_score(work, scoring, held_out.percent)
    source = target.load(torch.float32)
    check_fit(model, source)
    layers = model.config.target_layer_ids
    if scoring.prompts == "by-kind":
        text = _prompts_by_kind(target, source, work, layers)
    else:
        text = _held_out_text(target, data, work, held_out, layers, dtype)
    scores = _score(model.to(target.device), source, text, scale)
    records = [score.record() for score in scores]
    for record in records:
        print(json.dumps(record))
    print(score_table(scores))
    if scoring.results is not None:
        facts = {
            "drafter": drafter,
            "target": target_fingerprint(target.folder),
            "conversations_sha256": text.conversations.digest(),
            "scored": len(text.indices),
        }
        write_results(scoring.results, collect_provenance(arguments, **facts), records)


def _score(model: DFlashDrafter, source: Any, text: _TextToScore, scale: torch.Tensor) -> list[KindScore]:
    """One score per kind, and one of all together where there are several kinds."""
    cache, conversations, kinds, indices = text
    embedding = source.get_input_embeddings().weight.detach()
    head = source.get_output_embeddings().weight.detach()
    scores = []
    for kind in dict.fromkeys(kinds[index] for index in indices):
        chosen = [index for index in indices if kinds[index] == kind]
        result = evaluate_drafter(model, embedding, head, conversations, cache, chosen, scale)
        scores.append(KindScore(kind, result))
    if len(scores) > 1:
        scores.append(KindScore("all", reduce(Evaluation.merged, (score.evaluation for score in scores))))
    return scores


def _drafter_to_score(
    work: Path, scoring: ScoringConfig, held_out_percent: int
) -> tuple[DFlashDrafter, torch.Tensor, dict[str, Any]]:
    """The drafter, the factors [F*H] of its features, and what identifies it."""
    if scoring.draft is None:
        trained = trained_drafter(work)
        if scoring.prompts == "held-out":
            _check_split(held_out_percent, trained.held_out_percent)
        identity: dict[str, Any] = {"checkpoint_step": trained.step, "weights_sha256": weights_digest(trained.model)}
        return trained.model, trained.feature_scale, identity
    model = load_drafter(scoring.draft)
    identity = {
        "folder": scoring.draft.name,
        "model.safetensors_sha256": sha256_of(scoring.draft / "model.safetensors"),
        "weights_sha256": weights_digest(model),
    }
    # An exported drafter has the scale in its projection.
    return model, torch.ones(model.config.feature_size), identity


def _check_split(percent: int, trained_with: int | None) -> None:
    if trained_with is not None and percent > trained_with:
        raise ValueError(
            f"only what the checkpoint was not trained on may be scored: it held out {trained_with} %, got "
            f"--held-out-percent {percent}. Pass {trained_with} or less."
        )


def _prompts_by_kind(target: TargetFolder, source: Any, work: Path, layers: tuple[int, ...]) -> _TextToScore:
    """The recipe's own prompts, answered by the target, and its features after the drafter's own layers."""
    fingerprint = target_fingerprint(target.folder)
    conversations, kinds = answer_prompts(
        source, target.tokenizer(), HELD_OUT_PROMPTS, work / "by-kind.npz", fingerprint=f"{fingerprint} float32"
    )
    folder = work / "by-kind-features"
    cache = build_feature_cache(conversations, source, layers, folder, fingerprint=fingerprint)
    return _TextToScore(cache, conversations, kinds, list(range(len(conversations))))


def _held_out_text(
    target: TargetFolder,
    data: Path | None,
    work: Path,
    held_out: HeldOutConfig,
    layers: tuple[int, ...],
    dtype: torch.dtype,
) -> _TextToScore:
    if data is None:
        raise ValueError("held-out conversations come from a file: pass --data FILE.npz, or --prompts by-kind.")
    conversations = load_conversations(data)
    cache = compute_features(target, conversations, layers, work, dtype)
    _, indices = split_held_out(conversations, held_out.percent)
    return _TextToScore(cache, conversations, _kinds_of(conversations), indices[: held_out.limit or None])


def _kinds_of(conversations: Conversations) -> list[str]:
    """Greedy and sampled answers apart where the file tells them apart: they are not equally hard to draft."""
    if conversations.sampled is None:
        return ["held out"] * len(conversations)
    names = {0: "held out, greedy", 1: "held out, sampled", -1: "held out, unmarked"}
    return [names.get(mark, names[-1]) for mark in conversations.sampled.tolist()]
