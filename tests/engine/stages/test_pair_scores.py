"""Heads that score pairs: SGLang's modules with random weights give the drafters' laws, and trees of them are exact."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.candidates import DraftCandidates, LogitTransform, pair_conditionals
from tests.core.test_no_host_sync import NoHostRead
from tests.core.toy_target import VOCAB, decode_greedily, decode_planted

pytestmark = pytest.mark.sglang

B, D, H, RANK = 3, 4, 16, 5
PROMPTS = [[3, 1, 4, 1, 5], [9, 2], [6, 5, 3, 5, 8, 9, 7]]
NUM_TOKENS = 24
KINDS = ("selector", "lattice", "vanilla", "gated")


def random_(module: torch.nn.Module, scale: float = 1.0) -> torch.nn.Module:
    """With every parameter drawn anew, since SGLang's modules begin as zeros or as whatever memory held."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.requires_grad_(False)


def selector(top_k: int) -> Any:
    from sglang.srt.models.dflash import CandidateSelector

    return random_(CandidateSelector(hidden_size=H, vocab_size=VOCAB, state_rank=RANK, top_k=top_k))


def markov(kind: str) -> Any:
    from sglang.srt.models.dspark import build_markov_head

    config = SimpleNamespace(markov_rank=RANK, markov_head_type=kind, vocab_size=VOCAB, hidden_size=H)
    return random_(build_markov_head(config))


def lattice(top_k: int) -> Any:
    from sglang.srt.models.lilicorr import LiLiCorrHead
    from sglang.srt.speculative.lilicorr_utils import LiLiCorrConfig

    config = LiLiCorrConfig(
        candidate_topk=top_k,
        hidden_size=8,
        num_layers=2,
        num_heads=2,
        mlp_ratio=2.0,
        factor_dim=6,
        vector_eps=1e-6,
        logit_scale=7.0,
    )
    return random_(LiLiCorrHead(model_hidden_size=H, block_size=D + 1, rms_norm_eps=1e-6, config=config), 0.5)


def embedding() -> Any:
    return random_(torch.nn.Embedding(VOCAB, H))


def head() -> Any:
    """An LM head of which state t is token t's alone, so that a test can say what a drafter proposes."""
    weight = torch.eye(VOCAB, H)
    method = SimpleNamespace(apply=lambda layer, x, bias: x @ layer.weight.T)
    return SimpleNamespace(weight=weight, quant_method=method)


def scorer_of(kind: str, top_k: int) -> Any:
    from ddtree_sglang.engine.stages import pair_scores

    if kind == "selector":
        return pair_scores.SelectorScorer(selector(top_k))
    if kind == "lattice":
        made = pair_scores.LatticeScorer(lattice(top_k), embedding())
        made.prepare(20)
        return made
    return pair_scores.MarkovScorer(markov(kind), top_k)


def drafted(top_k: int, seed: int = 0) -> tuple[torch.Tensor, Any, DraftCandidates]:
    """States of a batch's drafted positions, its roots, and its candidates."""
    from ddtree_sglang.engine.stages.candidates import BlockRoots

    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(B, D, H, generator=generator)
    roots = BlockRoots(torch.randint(0, VOCAB, (B,), generator=generator), torch.tensor([7, 2, 11]))
    logprobs = (2 * states[..., :VOCAB]).log_softmax(-1).topk(top_k, -1)
    return states, roots, DraftCandidates(logprobs.indices, logprobs.values)


def law_of(scorer: Any, top_k: int) -> tuple[torch.Tensor, torch.Tensor, Any, DraftCandidates]:
    states, roots, ranked = drafted(top_k)
    return pair_conditionals(scorer.scores(states, roots, ranked), ranked.topk_logprobs), states, roots, ranked


def over_candidates(law: torch.Tensor, ranked: DraftCandidates) -> torch.Tensor:
    """The law given that the token is among the candidates."""
    return law - ranked.topk_logprobs.logsumexp(-1)[..., None, None]


def test_scores_that_ignore_the_parent_give_the_factorised_law() -> None:
    _, _, ranked = drafted(5)
    scores = ranked.topk_logprobs.unsqueeze(2).expand(-1, -1, 5, -1) + 3.0
    torch.testing.assert_close(pair_conditionals(scores, ranked.topk_logprobs), scores - 3.0)


def test_a_law_of_pairs_never_exceeds_what_the_candidates_cover() -> None:
    law, _, _, ranked = law_of(scorer_of("selector", 5), 5)
    covered = ranked.topk_logprobs.exp().sum(-1)
    torch.testing.assert_close(law.exp().sum(-1), covered.unsqueeze(-1).expand(-1, -1, 5))
    assert float(covered.max()) < 1


def test_impossible_candidates_stay_impossible_and_make_nothing_else_so() -> None:
    states, roots, ranked = drafted(5)
    ranked.topk_logprobs[:, :, 3:] = -torch.inf
    law = pair_conditionals(scorer_of("selector", 5).scores(states, roots, ranked), ranked.topk_logprobs)
    assert (law[..., 3:] == -torch.inf).all()
    assert law[..., :3].isfinite().all()


def test_the_selectors_law_is_that_of_sglangs_lattice() -> None:
    module = selector(5)
    law, states, roots, ranked = law_of(scorer_of("selector", 5), 5)
    torch.compiler.set_stance("force_eager")
    try:
        scores = module.build_lattice(
            candidate_ids=ranked.topk_ids,
            unary_logits=ranked.topk_logprobs + 4.0,
            hidden_states=states,
            anchor_token_ids=roots.token_ids,
        )
    finally:
        torch.compiler.set_stance("default")
    torch.testing.assert_close(over_candidates(law, ranked), scores.log_softmax(-1))


@pytest.mark.parametrize("kind", ["vanilla", "gated"])
def test_a_markov_heads_law_is_its_step_by_step_bias(kind: str) -> None:
    module = markov(kind)
    law, states, roots, ranked = law_of(scorer_of(kind, 5), 5)
    found = over_candidates(law, ranked)
    for d in range(D):
        for parent in range(5):
            before = roots.token_ids if d == 0 else ranked.topk_ids[:, d - 1, parent]
            bias, _ = module.step_bias(before, hidden_states=states[:, d], state=None)
            expected = (ranked.topk_logprobs[:, d] + bias.gather(1, ranked.topk_ids[:, d])).log_softmax(-1)
            torch.testing.assert_close(found[:, d, parent], expected)


def test_the_lattices_law_walks_as_sglangs_sampler_does() -> None:
    """Greedy and drawn: the same tokens, and the same probabilities along them."""
    top_k = 4
    scorer, module, table = scorer_of("lattice", top_k), lattice(top_k), embedding()
    module.materialize_inference_buffers(torch.device("cpu"), torch.float32)
    anchors = torch.randn(B, H, generator=torch.Generator().manual_seed(5))
    states, roots, ranked = drafted(top_k)
    scorer.keep(roots.rows, anchors)
    law = over_candidates(pair_conditionals(scorer.scores(states, roots, ranked), ranked.topk_logprobs), ranked)
    for greedy in (True, False):
        tokens, probs = module.select_with_proposal(
            token_embeddings=table(ranked.topk_ids),
            candidate_tokens=ranked.topk_ids,
            candidate_log_probs=ranked.topk_logprobs,
            pass_hidden=states,
            anchor_hidden=anchors,
            anchor_valid=torch.ones(B, dtype=torch.bool),
            uniforms=torch.full((B, D), 0.6),
            temperatures=torch.ones(B),
            greedy_mask=torch.full((B,), greedy),
        )
        parent = torch.zeros(B, dtype=torch.int64)
        for d in range(D):
            row = law[torch.arange(B), d, parent]
            if not greedy:
                torch.testing.assert_close(row.exp(), probs[:, d])
            elif d == 0:
                assert torch.equal(ranked.topk_ids[torch.arange(B), 0, row.argmax(-1)], tokens[:, 0])
            parent = (ranked.topk_ids[:, d] == tokens[:, d : d + 1]).int().argmax(-1)
            assert not greedy or torch.equal(parent, row.argmax(-1))


@pytest.mark.parametrize("kind", KINDS)
def test_scores_read_no_value_on_the_host(kind: str) -> None:
    scorer = scorer_of(kind, 4)
    states, roots, ranked = drafted(4)
    with NoHostRead():
        scorer.keep(roots.rows, states[:, 0])
        pair_conditionals(scorer.scores(states, roots, ranked), ranked.topk_logprobs)


def test_features_of_the_last_token_follow_their_request() -> None:
    """The next batch has lost a request and holds the others in another order; an idle one between them has none."""
    from ddtree_sglang.engine.stages.candidates import BlockRoots

    scorer = scorer_of("lattice", 4)
    states, roots, ranked = drafted(4)
    anchors = torch.randn(B, H)
    scorer.keep(roots.rows, anchors)
    whole = scorer.scores(states, roots, ranked)
    scorer.keep(roots.rows[:0], anchors)
    order = torch.tensor([2, 0])
    fewer = DraftCandidates(ranked.topk_ids[order], ranked.topk_logprobs[order])
    found = scorer.scores(states[order], BlockRoots(roots.token_ids[order], roots.rows[order]), fewer)
    torch.testing.assert_close(found, whole[order])
    scorer.keep(roots.rows, anchors.roll(1, 0))
    assert not torch.allclose(scorer.scores(states, roots, ranked)[:, 0], whole[:, 0])


Planter = Callable[[list[list[int]], torch.Tensor], Any]


def planter(kind: str, top_k: int, num_nodes: int, first_state: int = 1) -> Planter:
    """Rounds of the product's stage: a block's random states, half of which propose what will come, to trees."""
    from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, VocabShard
    from ddtree_sglang.engine.stages.trees import HostTrees, WantedTrees

    scorer = scorer_of(kind, top_k)
    shard = VocabShard(head(), VOCAB, 0, LogitTransform(), None)
    trees = HostTrees(CandidateRanking(shard, scorer.top_k, D + first_state, scorer, first_state))
    generator = torch.Generator().manual_seed(1)
    rows = torch.arange(len(PROMPTS))

    def plant(coming: list[list[int]], roots: torch.Tensor) -> Any:
        hidden = torch.randn(len(coming), D + first_state, H, generator=generator)
        for request, tokens in enumerate(coming):
            for d, token in enumerate(tokens[:D]):
                if torch.rand((), generator=generator) < 0.7:
                    hidden[request, d + first_state, token] += 4.0
        scorer.keep(rows, hidden[:, 0])
        out = SimpleNamespace(logits_output=SimpleNamespace(hidden_states=hidden.flatten(0, 1)))
        return trees.draft(out, BlockRoots(roots, rows), WantedTrees(num_nodes))(
            roots, torch.zeros(len(coming)).long()
        ).tree

    return plant


@pytest.mark.parametrize("kind", KINDS)
def test_of_more_candidates_the_best_have_the_pairs_that_they_have_alone(kind: str) -> None:
    from ddtree_sglang.engine.stages.candidates import BlockRoots, CandidateRanking, VocabShard

    scorer = scorer_of(kind, 4)
    ranking = CandidateRanking(VocabShard(head(), VOCAB, 0, LogitTransform(), None), scorer.top_k, D + 1, scorer)
    hidden, roots = torch.randn(2 * (D + 1), H), BlockRoots(torch.tensor([3, 1]), torch.tensor([0, 1]))
    scorer.keep(roots.rows, torch.randn(2, H))
    alone, wider = ranking.rank(hidden, roots), ranking.wider(7).rank(hidden, roots)
    assert wider.topk_ids.shape == (2, D, 7)
    assert alone.pair_logprobs is not None
    assert wider.pair_logprobs is not None
    torch.testing.assert_close(wider.pair_logprobs, alone.pair_logprobs)
    assert torch.equal(wider.scored().topk_ids, alone.topk_ids)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("top_k", "num_nodes"), [(1, D + 1), (4, 3), (4, 17)], ids=["chain", "small", "tree"])
def test_what_is_committed_is_plain_decodings(kind: str, top_k: int, num_nodes: int) -> None:
    greedy = [decode_greedily(prompt, NUM_TOKENS + 2 * D) for prompt in PROMPTS]
    outputs, rounds = decode_planted(PROMPTS, greedy, planter(kind, top_k, num_nodes), D, NUM_TOKENS)
    assert outputs == [tokens[:NUM_TOKENS] for tokens in greedy]
    lengths = torch.stack([accepted.commit_lens for accepted in rounds])
    assert lengths.unique().numel() >= min(3, num_nodes - 1), "the test must see short and long paths"


def test_a_drafter_that_proposes_the_next_token_everywhere_is_read_one_row_earlier() -> None:
    """At row 0 the drafter's hints are where they are looked for; read from row 1 they propose the wrong positions."""
    greedy = [decode_greedily(prompt, NUM_TOKENS + 2 * D) for prompt in PROMPTS]
    _, right = decode_planted(PROMPTS, greedy, planter("vanilla", 4, 17, first_state=0), D, NUM_TOKENS)
    _, usual = decode_planted(PROMPTS, greedy, planter("vanilla", 4, 17), D, NUM_TOKENS)
    assert abs(len(right) - len(usual)) <= 4


@pytest.mark.parametrize("kind", ["selector", "vanilla", "gated"])
def test_a_head_of_a_smaller_vocabulary_has_no_row_for_a_candidate(kind: str) -> None:
    """Why a drafter's vocabulary has to be the target's: its candidates come from the target's head."""
    states, roots, ranked = drafted(5)
    scorer = scorer_of(kind, 5)
    for parameter in scorer._selector.parameters() if kind == "selector" else scorer._markov.parameters():
        if len(parameter) == VOCAB:
            parameter.data = parameter.data[: int(ranked.topk_ids.max())]
    with pytest.raises(IndexError, match=r"out of (range|bounds)"):
        scorer.scores(states, roots, ranked)


@pytest.mark.parametrize("kind", ["vanilla", "gated"])
def test_rows_of_a_quantized_table_are_read_as_they_are_stored(kind: str) -> None:
    """Why a quantized Markov table is refused: its codes give another order of candidates."""
    states, roots, ranked = drafted(5)
    scorer = scorer_of(kind, 5)
    right = scorer.scores(states, roots, ranked)
    table = scorer._markov.markov_w1
    scale = table.weight.abs().max() / 127
    table.weight = torch.nn.Parameter((table.weight / scale).round().to(torch.int8), requires_grad=False)
    wrong = scorer.scores(states, roots, ranked)
    assert (wrong - right).abs().max() > 1


@pytest.mark.parametrize(("kind", "depends"), [("vanilla", False), ("gated", False), ("rnn", True)])
def test_a_recurrent_head_scores_a_candidate_by_more_than_the_token_before(kind: str, depends: bool) -> None:
    """Why it is refused: trees have one score for a candidate and its parent, whatever was before that one."""
    states = torch.randn(2, 1, H, generator=torch.Generator().manual_seed(0)).expand(-1, 2, -1)
    head, state = markov(kind), None
    if kind == "rnn":
        state = head.init_state(states[0])
    # Two requests: other tokens first, then the same one.
    for tokens, hidden in ((torch.tensor([1, 2]), states[0]), (torch.tensor([3, 3]), states[1])):
        bias, state = head.step_bias(tokens, hidden_states=hidden, state=state)
    assert (not torch.allclose(bias[0], bias[1])) == depends


def padded(ranked: DraftCandidates, top_k: int) -> DraftCandidates:
    """As a device and the ranks of a group have them: of K columns, what is missing with id 0 and -inf."""
    missing = (0, top_k - ranked.topk_ids.shape[-1])
    pad = torch.nn.functional.pad
    return DraftCandidates(pad(ranked.topk_ids, missing), pad(ranked.topk_logprobs, missing, value=-torch.inf))


@pytest.mark.parametrize("kind", ["selector", "vanilla", "gated"])
def test_a_vocabulary_of_fewer_tokens_than_candidates_is_ranked_whole(kind: str) -> None:
    """By a CPU, which has no more columns than tokens, and with the same law by a device, which fills up."""
    top_k = VOCAB + 5
    law, states, roots, ranked = law_of(scorer_of(kind, top_k), VOCAB)
    filled = padded(ranked, top_k)
    wide = pair_conditionals(scorer_of(kind, top_k).scores(states, roots, filled), filled.topk_logprobs)
    torch.testing.assert_close(wide[..., :VOCAB, :VOCAB], law)
    assert (wide[..., VOCAB:] == -torch.inf).all()
    greedy = [decode_greedily(prompt, NUM_TOKENS + 2 * D) for prompt in PROMPTS]
    outputs, _ = decode_planted(PROMPTS, greedy, planter(kind, top_k, 17), D, NUM_TOKENS)
    assert outputs == [tokens[:NUM_TOKENS] for tokens in greedy]


def test_a_lattice_has_no_law_of_fewer_candidates_than_it_was_trained_for() -> None:
    """Why a vocabulary of fewer tokens is refused: its columns are fixed, and one of -inf makes all of them NaN."""
    top_k = VOCAB + 5
    states, roots, ranked = drafted(VOCAB)
    with pytest.raises(ValueError, match=f"built for candidate_topk={top_k} but the lattice carries {VOCAB}"):
        scorer_of("lattice", top_k).scores(states, roots, ranked)
    assert bool(scorer_of("lattice", top_k).scores(states, roots, padded(ranked, top_k)).isnan().all())
