"""How a drafter is ranked follows from the model that SGLang has loaded."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang

TOP_K, BLOCK = 40, 8
GROUP = SimpleNamespace(world_size=1)
EMBEDDING, LM_HEAD = SimpleNamespace(), SimpleNamespace(weight=torch.zeros(50, 4))


def ranking_of(model: Any, **dflash: Any) -> Any:
    from ddtree_sglang.engine.stages.ranking import make_ranking

    config = {"num_hidden_layers": 1, "dflash_config": dflash}
    runner = SimpleNamespace(model=model, model_config=SimpleNamespace(hf_config=config))
    return make_ranking(runner, SimpleNamespace(lm_head=LM_HEAD), EMBEDDING, GROUP, TOP_K, BLOCK)


def drafter(**heads: Any) -> Any:
    return SimpleNamespace(**{"candidate_selector": None, "lilicorr": None, **heads})


def test_a_plain_drafter_has_no_scorer_and_the_candidates_that_were_asked_for() -> None:
    ranking = ranking_of(drafter(), output_multiplier=0.5)
    assert ranking.scorer is None
    assert (ranking.top_k, ranking.block_size, ranking.first_state) == (TOP_K, BLOCK, 1)
    assert (ranking.depth, ranking.max_path_len) == (BLOCK - 1, BLOCK)
    assert ranking.shard.transform.scale == 0.5
    assert ranking.empty_candidates(2, torch.device("cpu")).pair_logprobs is None


def test_a_selector_ranks_as_many_candidates_as_it_was_trained_for() -> None:
    ranking = ranking_of(drafter(candidate_selector=SimpleNamespace(top_k=16)))
    assert type(ranking.scorer).__name__ == "SelectorScorer"
    assert (ranking.top_k, ranking.first_state) == (16, 1)
    assert ranking.empty_candidates(2, torch.device("cpu")).pair_logprobs.shape == (2, BLOCK - 1, 16, 16)
    wider = ranking.wider(256)
    assert (wider.top_k, wider.scorer, wider.first_state) == (256, ranking.scorer, 1)


@pytest.mark.parametrize(("from_anchor", "first_state", "depth"), [(True, 0, BLOCK), (False, 1, BLOCK - 1)])
def test_a_dspark_drafter_gets_the_targets_modules_and_is_read_where_it_proposes(
    from_anchor: bool, first_state: int, depth: int
) -> None:
    given: dict[str, Any] = {}
    model = drafter(markov_head=SimpleNamespace(), sample_from_anchor=from_anchor, attach_shared_modules=given.update)
    ranking = ranking_of(model)
    assert given == {"embed_tokens": EMBEDDING, "lm_head": LM_HEAD}
    assert type(ranking.scorer).__name__ == "MarkovScorer"
    assert (ranking.top_k, ranking.first_state) == (32, first_state)
    assert ranking.wider(256).first_state == first_state
    assert (ranking.depth, ranking.max_path_len) == (depth, depth + 1)
    assert ranking.empty_candidates(2, torch.device("cpu")).topk_ids.shape == (2, depth, 32)


def test_a_domino_head_is_refused() -> None:
    fields = {"projector_type": "domino", "shift_label": True, "pure_draft_prefix_len": 1, "gru_hidden_dim": 4}
    with pytest.raises(DDTreeConfigError, match="Domino head, whose scores depend on the whole path"):
        ranking_of(drafter(), **fields, emb_dim=4)


def test_a_target_without_a_head_at_its_top_cannot_be_ranked_through() -> None:
    """Why such a target is refused once it is loaded (`engine.admission.target_checks`)."""
    from ddtree_sglang.engine.stages.ranking import make_ranking

    runner = SimpleNamespace(model=drafter(), model_config=SimpleNamespace(hf_config={"num_hidden_layers": 1}))
    with pytest.raises(AttributeError, match="lm_head"):
        make_ranking(runner, SimpleNamespace(), EMBEDDING, GROUP, TOP_K, BLOCK)


def test_sglangs_domino_proposes_other_tokens_than_its_states_alone() -> None:
    """What the refusal is for: a tree of such a drafter's states would leave its head out."""
    from sglang.srt.speculative.domino_utils import domino_greedy_rollout

    torch.manual_seed(0)
    vocabulary, width, blocks = 20, 8, 16
    head, states = torch.randn(vocabulary, width), torch.randn(blocks, BLOCK, width)
    gru = torch.nn.GRU(width, width, batch_first=True)
    project = torch.nn.Sequential(
        torch.nn.Linear(2 * width, width), torch.nn.SiLU(), torch.nn.Linear(width, vocabulary)
    )
    with torch.no_grad():
        project[2].weight.mul_(10)
    proposed = domino_greedy_rollout(
        draft_hidden=states,
        bonus_tokens=torch.zeros(blocks, dtype=torch.int64),
        target_embedding=torch.nn.Embedding(vocabulary, width),
        lm_head_weight=head,
        prefix_gru=gru,
        embed_proj=project,
        vocab_size=vocabulary,
        shift_label=False,
        candidate_pool_size=0,
        in_cuda_graph=False,
    )
    alone = (states[:, 1:] @ head.T).argmax(-1)
    assert torch.equal(proposed[:, 0], alone[:, 0])
    assert not torch.equal(proposed, alone)
