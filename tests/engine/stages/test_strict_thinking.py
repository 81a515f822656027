"""Thinking budgets that the engine enforces itself: each node is masked by how far its own path has thought."""

from __future__ import annotations

from typing import Any

import pytest

from ddtree_sglang.core.node_masks import fill_node_masks
from tests.engine.stages.test_node_grammar import THINK_END, differences, tokenizer, walk_in_flat_order

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
        apply_vocab_mask_fn=backend.apply_vocab_mask,
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
