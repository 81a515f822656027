"""The selector stage: give a trained, frozen drafter a head that scores pairs of candidates, and export both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from ddtree_sglang.demo.manifest import write_manifest
from ddtree_sglang.training.data.conversations import HeldOutConfig, load_conversations, split_held_out
from ddtree_sglang.training.features.token_states import token_states
from ddtree_sglang.training.fit.config import TrainingConfig
from ddtree_sglang.training.fit.drafted_blocks import DraftedBlocks, DraftRecord, drafted_blocks
from ddtree_sglang.training.fit.selector_fit import SelectorConfig, SelectorTrainer
from ddtree_sglang.training.fit.selector_head import SelectorHead
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter, load_drafter
from ddtree_sglang.training.model.target_check import target_fingerprint
from ddtree_sglang.training.score.results import weights_digest
from ddtree_sglang.training.stages.features import compute_features
from ddtree_sglang.training.stages.target import TargetFolder


def train_selector(
    target: TargetFolder,
    data: Path,
    work: Path,
    draft: Path,
    output: Path,
    selector: SelectorConfig,
    training: TrainingConfig,
    held_out: HeldOutConfig,
) -> None:
    """Train a selector for the drafter in the folder `draft`, whose weights stay, and write both to `output`.

    Computes features and drafts into `work` unless they are there.

    Raises:
        ValueError: the drafter has a selector already, or what `work` holds is of something else.
        DiskFullError: there is no room for features or a checkpoint.
    """
    drafter = load_drafter(draft)
    if drafter.config.selector_rank:
        raise ValueError(f"a selector is trained for a drafter without one, {draft} has one: pass the plain drafter.")
    fingerprint = target_fingerprint(target.folder)
    conversations = load_conversations(data)
    cache = compute_features(target, conversations, drafter.config.target_layer_ids, work, training.dtype)
    source = target.load(training.dtype)
    begin = getattr(target.tokenizer(), "bos_token_id", None)
    first = target.end_ids()[0] if begin is None else int(begin)
    states = token_states(source, first, work / "token-states.pt", f"{fingerprint} {training.dtype}")
    source = target.load(torch.float32)
    embedding = source.get_input_embeddings().weight.detach()
    rows_of_head = source.get_output_embeddings().weight.detach()
    del source

    def drafted(indices: list[int]) -> DraftedBlocks:
        record = DraftRecord(
            weights_digest(drafter),
            fingerprint,
            selector.top_k,
            selector.anchors,
            str(training.dtype).removeprefix("torch."),
        )
        products = rows_of_head.to(training.dtype)
        model = drafter.to(target.device)
        return drafted_blocks(model, embedding, products, conversations, cache, indices, record, work / "drafts")

    train_part, held_out_part = split_held_out(conversations, held_out.percent)
    blocks = drafted(train_part)
    head = SelectorHead(states, rows_of_head.cpu(), blocks, selector.rank, selector.strength)
    print(f"{len(blocks)} blocks, {sum(p.numel() for p in head.parameters())} parameters", flush=True)
    SelectorTrainer(
        head=head,
        train=blocks,
        held_out=drafted(held_out_part),
        config=replace(selector, seed=training.seed),
        folder=work / "selector",
        log_every=training.log_every,
        checkpoint_every=training.checkpoint_every,
        identity=f"{weights_digest(drafter)} {conversations.digest()} {held_out.percent}",
    ).run()
    export_drafter(with_selector(drafter.cpu(), head, selector), output, training.dtype)
    write_manifest(output)
    print(output)


def with_selector(drafter: DFlashDrafter, head: SelectorHead, selector: SelectorConfig) -> DFlashDrafter:
    """The drafter and its head as one model."""
    shape = replace(drafter.config, selector_rank=selector.rank, selector_top_k=selector.top_k)
    model = DFlashDrafter(shape)
    tables = {f"candidate_selector.{name}": value for name, value in head.tables().state_dict().items()}
    model.load_state_dict(drafter.state_dict() | tables)
    return model.eval()
