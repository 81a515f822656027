"""Thinking budgets that the engine enforces itself: each node is masked by how far its own path has thought."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.node_masks import fill_node_masks
from ddtree_sglang.cpu_platform.triton_replacements import apply_token_mask
from tests.engine.stages.test_node_grammar import (
    THINK_END,
    batch_of,
    check_planted,
    differences,
    grammars_of,
    tokenizer,
    walk_in_flat_order,
)

pytestmark = pytest.mark.sglang

__all__ = ["tokenizer"]
EXCLUDED = [100, 101]
"""Tokens that must not be written while thinking."""


@pytest.fixture(scope="module")
def backend(tokenizer: Any) -> Any:
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend

    size, ends = len(tokenizer), [tokenizer.eos_token_id]
    return XGrammarGrammarBackend(tokenizer, vocab_size=size, model_eos_token_ids=ends)


def strict(backend: Any, budget: int) -> Any:
    """What `--enable-strict-thinking` attaches to a request without a grammar (grammar_manager.py)."""
    from sglang.srt.constrained.reasoner_grammar_backend import ReasonerGrammarObject

    made = ReasonerGrammarObject(
        None,
        THINK_END,
        think_excluded_token_ids=EXCLUDED,
        max_think_tokens=budget,
        enable_token_filter=True,
        token_filter_fn=backend.set_token_filter,
        allocate_vocab_mask_fn=backend.allocate_vocab_mask,
        move_vocab_mask_fn=backend.move_vocab_mask,
        apply_vocab_mask_fn=apply_token_mask,  # what the CPU platform puts in the place of the backend's
    )
    made.maybe_init_reasoning(True)
    return made


@pytest.mark.parametrize("budget", [-1, 0, 1, 2, 4, 7])
def test_each_node_is_masked_as_plain_decoding_masks_after_its_path(
    budget: int,
    backend: Any,
    tokenizer: Any,
) -> None:
    size, end = len(tokenizer), tokenizer.eos_token_id
    for seed in range(12):
        assert differences(strict(backend, budget), seed, size, end, fill_node_masks) == [], seed


def test_one_state_for_the_whole_tree_is_seen_to_be_wrong(backend: Any, tokenizer: Any) -> None:
    size, end = len(tokenizer), tokenizer.eos_token_id
    found = [differences(strict(backend, 4), seed, size, end, walk_in_flat_order) for seed in range(12)]
    assert any(found)


@pytest.mark.parametrize("budget", [-1, 0, 1, 2, 3])
def test_planted_trees_stay_within_the_budget(budget: int, backend: Any, tokenizer: Any) -> None:
    """Beside a request without a budget: a tree's nodes are what may follow, masked as after its path."""
    size, num_nodes = len(tokenizer), 9
    common = [*THINK_END, *EXCLUDED, *range(300, 330)]
    ids = torch.tensor([common] * 3).expand(2, 3, len(common)).contiguous()
    logprobs, order = (
        torch.randn(ids.shape, generator=torch.Generator().manual_seed(1)).log_softmax(-1).sort(descending=True)
    )
    template = strict(backend, budget)
    grammars = grammars_of(batch_of((None, False), (template.copy(), False), size=size), None)
    tree = grammars.plant(DraftCandidates(ids.gather(2, order), logprobs), num_nodes, torch.tensor([3, 4]))
    paths = check_planted(grammars, tree, template, size)
    if budget == 0:
        assert [path[0] for path in paths if path][:1] == [THINK_END[0]]
