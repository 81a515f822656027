"""The target's own greedy answers with what a drafter proposes at each of their positions, computed once and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness.prompts import Prompt
from ddtree_sglang.core.request_ngrams import Floats, Ints
from ddtree_sglang.training.features.build import build_feature_cache
from ddtree_sglang.training.fit.anchor_batches import gather_batch
from ddtree_sglang.training.model.drafting import draft_blocks
from ddtree_sglang.training.model.export import load_drafter
from ddtree_sglang.training.model.target_check import target_fingerprint
from ddtree_sglang.training.score.results import weights_digest
from ddtree_sglang.training.score.scoring import answer_prompts
from ddtree_sglang.training.stages.target import TargetFolder


@dataclass(frozen=True)
class DraftedAnswer:
    """A prompt with its answer; A anchors: the answer's tokens but the last, each the root of a block."""

    kind: str
    tokens: Ints  # [T], the prompt's first
    start: int  # index of the answer's first token
    topk_ids: Ints  # [A, D, K] best first
    topk_logprobs: Floats  # [A, D, K] over the whole vocabulary

    @property
    def num_anchors(self) -> int:
        """A."""
        return len(self.topk_ids)

    def known(self, anchor: int) -> Ints:
        """The text of a request whose round begins at this anchor: its tokens up to the root, which is the last."""
        return self.tokens[: self.start + anchor + 1]

    def following(self, anchor: int) -> Ints:
        """The answer's tokens after the root, which nothing that drafts may read."""
        return self.tokens[self.start + anchor + 1 :]

    def labels(self) -> Ints:
        """`[A, D]`: the answer's token at each drafted position, -1 past its end."""
        depth = self.topk_ids.shape[1]
        padded = np.concatenate([self.tokens, np.full(depth, -1)])
        return np.stack([padded[self.start + 1 + d :][: self.num_anchors] for d in range(depth)], axis=1)


def drafted_answers(
    model: Path, draft: Path, prompts: Sequence[Prompt], new_tokens: int, top_k: int, work: Path
) -> list[DraftedAnswer]:
    """Answer, compute features, draft at every position; what `work` already holds is read.

    Answers of fewer than two tokens have no round, and are left out.

    Raises:
        ValueError: `work` holds answers to other prompts, of another target, or blocks of another drafter.
    """
    work.mkdir(parents=True, exist_ok=True)
    drafter = load_drafter(draft)
    digest = weights_digest(drafter)
    target = TargetFolder(model, "cpu")
    source = target.load(torch.float32)
    fingerprint = target_fingerprint(model)
    asked: dict[str, list[str]] = {}
    for prompt in prompts:
        asked.setdefault(prompt.dataset, []).append(prompt.text)
    conversations, kinds = answer_prompts(
        source, target.tokenizer(), asked, work / "answers.npz", new_tokens, fingerprint=f"{fingerprint} float32"
    )
    layers = drafter.config.target_layer_ids
    cache = build_feature_cache(conversations, source, layers, work / "features", fingerprint=fingerprint)
    embedding = source.get_input_embeddings().weight.detach()
    head = source.get_output_embeddings().weight.detach()
    answers = []
    for index, kind in enumerate(kinds):
        tokens, start = conversations.token_ids(index).numpy(), int(conversations.answer_start[index])
        if len(tokens) - start < 2:
            continue
        path = work / f"blocks-{index}-{top_k}-{digest[:12]}.npz"
        if not path.exists():
            anchors = torch.arange(start, len(tokens) - 1)
            batch = gather_batch(conversations, cache, [index], [anchors], drafter.config.num_drafts)
            with torch.inference_mode():
                drafts = draft_blocks(
                    drafter, embedding, head, batch.features.float(), batch.anchors, batch.anchor_tokens, top_k
                )
            _save(path, ids=drafts.topk_ids.numpy().astype(np.int32), logprobs=drafts.topk_logprobs.numpy())
        with np.load(path) as blocks:
            answers.append(DraftedAnswer(kind, tokens, start, blocks["ids"].astype(np.int64), blocks["logprobs"]))
    return answers


def _save(path: Path, **arrays: npt.NDArray[np.generic]) -> None:
    """In one step: a killed run leaves no half of a file."""
    partial = path.with_name(path.stem + ".partial.npz")
    np.savez(partial, **arrays)  # type: ignore[arg-type]  # numpy's stub takes names for its own flag
    partial.replace(path)
