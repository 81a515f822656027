"""Of the same states SGLang's own DSpark chain and a tree of DDTREE's that is a chain propose the same tokens."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.engine.admission.drafter_checks import check_drafter_fits_target
from tests.core.toy_target import VOCAB

pytestmark = pytest.mark.sglang

B, GAMMA, H, RANK = 5, 8, 16, 3
CONFIG: dict[str, Any] = {
    "architectures": ["Qwen3DSparkModel"],
    "model_type": "qwen3",
    "block_size": GAMMA,
    "markov_rank": RANK,
    "markov_head_type": "gated",
    "hidden_size": H,
    "vocab_size": VOCAB,
    "num_hidden_layers": 1,
    "dflash_config": {"mask_token_id": 4},
}
TARGET = {"hidden_size": H, "vocab_size": VOCAB, "num_hidden_layers": 10}
SHARP = 12.0
"""Times a random logit: the best token of a position has nearly all of its law, so that the best tree is a chain."""


def random_(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def draft_model(from_anchor: bool) -> Any:
    """What both read of SGLang's model: its own head, and where it proposes; the logits are a product's."""
    from sglang.srt.models.dspark import build_markov_head

    markov = build_markov_head(SimpleNamespace(**CONFIG)).requires_grad_(False)
    for seed, parameter in enumerate(markov.parameters()):
        parameter.copy_(SHARP**0.5 * random_(*parameter.shape, seed=seed))
    return SimpleNamespace(
        markov_head=markov,
        confidence_head=None,
        sample_from_anchor=from_anchor,
        attach_shared_modules=lambda **_: None,
        compute_base_logits=lambda hidden: (hidden @ lm_head().weight.T, hidden),
    )


def lm_head() -> Any:
    method = SimpleNamespace(apply=lambda head, hidden, _bias: hidden @ head.weight.T)
    return SimpleNamespace(weight=SHARP * random_(VOCAB, H, seed=9), quant_method=method)


def chain_of_sglang(model: Any, hidden: torch.Tensor, roots: torch.Tensor) -> torch.Tensor:
    """`[B, gamma]`, by the sampler that is the end of its drafter's graph."""
    from sglang.srt.speculative.dspark_components.dspark_draft import DraftNoise
    from sglang.srt.speculative.dspark_components.dspark_draft_sampler import DsparkDraftSampler

    sampler = DsparkDraftSampler(
        model=model,
        gamma=GAMMA,
        max_bs=B,
        device="cpu",
        noise=DraftNoise(key=0, offset=torch.zeros(1, dtype=torch.int64)),
        tp_sync=SimpleNamespace(sync=lambda _site, tokens: tokens),
        greedy_draft=True,
    )
    ids = torch.full((B, sampler.query_token_num), 4)
    ids[:, 0] = roots
    sampler(hidden.view(B * sampler.query_token_num, H), ids.flatten())
    return sampler.out.view(B, GAMMA)


@pytest.mark.parametrize("from_anchor", [True, False])
def test_a_tree_that_is_a_chain_proposes_what_sglangs_chain_does(from_anchor: bool) -> None:
    from ddtree_sglang.engine.stages.candidates import BlockRoots
    from ddtree_sglang.engine.stages.ranking import make_ranking
    from ddtree_sglang.engine.stages.trees import HostTrees, WantedTrees

    config = CONFIG | {"sample_from_anchor": from_anchor}
    shape, model = check_drafter_fits_target(config, TARGET), draft_model(from_anchor)
    hidden, roots = random_(B * shape.block_size, H, seed=1), torch.tensor([3, 1, 4, 1, 5])
    runner = SimpleNamespace(model=model, model_config=SimpleNamespace(hf_config=config))
    target, group = SimpleNamespace(lm_head=lm_head()), SimpleNamespace(world_size=1)
    trees = HostTrees(make_ranking(runner, target, None, group, VOCAB, shape.block_size))
    out = SimpleNamespace(logits_output=SimpleNamespace(hidden_states=hidden))
    build = trees.draft(out, BlockRoots(roots, torch.arange(B)), WantedTrees(GAMMA + 1))
    built = build(roots, torch.zeros(B, dtype=torch.int64))
    tree = built.tree
    assert tree.parents.tolist() == B * [[-1, *range(GAMMA)]]
    assert torch.equal(tree.token_ids[:, 1:], chain_of_sglang(model, hidden, roots))
    # The target sees a whole path, and all of it can be accepted.
    assert torch.equal(built.mask.cells, torch.ones(B, GAMMA + 1, GAMMA + 1).tril().bool())
    targets = torch.cat((tree.token_ids[:, 1:], torch.full((B, 1), 2)), dim=1)
    commit = trees.walk(built, targets, torch.zeros(B, dtype=torch.int64), RoundEnds.none(B, roots.device))
    assert commit.path.commit_lens.tolist() == B * [GAMMA + 1]
