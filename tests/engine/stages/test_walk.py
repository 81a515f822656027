"""The engine's kernel path gives what core's walk gives; the kernel itself is played by a plain Python port."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ddtree_sglang.core import build_draft_tree, complete_tree, walk_tree
from ddtree_sglang.engine.stages.walk import walk_with_engine_kernel

pytestmark = pytest.mark.sglang


def play_kernel(**arguments: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """What SGLang's `verify_tree_greedy` documents: first child, then siblings, until the target's token is found."""
    accept_index, counts = arguments["accept_index"], arguments["accept_token_num"]
    candidates, target = arguments["candidates"], arguments["target_predict"]
    for b in range(candidates.shape[0]):
        node, path = 0, [0]
        while len(path) < accept_index.shape[1]:
            child = int(arguments["retrieve_next_token"][b, node])
            while child >= 0 and candidates[b, child] != target[b, node]:
                child = int(arguments["retrieve_next_sibling"][b, child])
            if child < 0:
                break
            node = child
            path.append(node)
        for j, one in enumerate(path):
            accept_index[b, j] = arguments["retrieve_index"][b, one]
        counts[b] = len(path) - 1
    return arguments["predicts"], accept_index, counts


@pytest.mark.parametrize("seed", range(20))
def test_kernel_path_equals_core_walk(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.kernels.ops.speculative import spec_tree

    monkeypatch.setattr(spec_tree, "verify_tree_greedy_func", play_kernel)
    generator = torch.Generator().manual_seed(seed)
    batch_size, depth, vocab, num_nodes = 3, 4, 5, 12
    logprobs = torch.log_softmax(torch.randn(batch_size, depth, vocab, generator=generator), -1)
    values, ids = logprobs.sort(-1, descending=True)
    tree = build_draft_tree(ids, values, torch.zeros(batch_size, dtype=torch.int64), num_nodes)
    target = torch.randint(0, vocab, (batch_size, num_nodes), generator=generator)
    built = complete_tree(tree, torch.tensor([3, 9, 4]))
    got = walk_with_engine_kernel(built, target, depth + 1)
    expected = walk_tree(tree, target, depth + 1)
    for name in ("accept_index", "num_correct_drafts", "commit_lens", "token_ids", "bonus_ids"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name
