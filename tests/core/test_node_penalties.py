"""Every node has the logits that plain decoding has after the node's path, bit for bit; and so answers are plain's."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from ddtree_sglang.core import DraftTree, build_draft_tree, commit_round
from ddtree_sglang.core.node_penalties import (
    EMITTED,
    END,
    PenaltyState,
    count_tokens,
    counted_penalties,
    penalize_nodes,
)
from tests.core.plain_penalties import Asked, PlainPenalties, ToyModel, V, decode_plainly, random_asked
from tests.core.tree_cases import make_tree

PATH_LEN = 5
Penalize = Callable[[torch.Tensor, PenaltyState, torch.Tensor, DraftTree], None]


def state_of(asked: Sequence[Asked | None], vocab_size: int = V) -> tuple[PenaltyState, torch.Tensor]:
    """Rows of requests before their first token, in another order than their slots; and the slots."""
    slots = torch.arange(len(asked)) * 2 + 1
    state = PenaltyState.empty(2 * len(asked) + 1, len(asked) + 1, vocab_size, "cpu")
    for name in ("sums", "marks", "lens", "frequency", "presence", "repetition", "min_lens"):
        getattr(state, name).fill_(7)  # what nobody may read
    for index, one in enumerate(asked):
        if one is None:
            continue
        row = len(asked) - index
        state.slot_rows[slots[index]] = row
        state.sums[row], state.marks[row], state.lens[row] = 0.0, 0, 0
        state.marks[row, list(one.ends)] = END
        state.frequency[row], state.presence[row] = one.frequency, one.presence
        state.repetition[row], state.min_lens[row] = one.repetition, one.min_len
    return state, slots


def path_of(tree: DraftTree, request: int, node: int) -> list[int]:
    """Tokens from the root to the node."""
    tokens = []
    while node >= 0:
        tokens.append(int(tree.token_ids[request, node]))
        node = int(tree.parents[request, node])
    return tokens[::-1]


def random_tree(generator: torch.Generator, batch_size: int, num_nodes: int) -> DraftTree:
    """Of few tokens, so that many stand on a path twice."""
    logprobs = torch.log_softmax(2 * torch.randn(batch_size, PATH_LEN - 1, V, generator=generator), -1)
    top = logprobs.topk(4, -1)
    roots = torch.randint(0, V, (batch_size,), generator=generator)
    return build_draft_tree(top.indices, top.values, roots, num_nodes)


def count_all(state: PenaltyState, slots: torch.Tensor, tokens: Sequence[Sequence[int]]) -> None:
    """Tokens of each request, as many, in rounds of one."""
    for column in zip(*tokens, strict=True):
        roots = torch.tensor(column)
        count_tokens(state, slots, roots, torch.zeros(len(roots), 1, dtype=torch.int64), torch.ones_like(roots))


def plain_rows(
    asked: Sequence[Asked | None], before: Sequence[Sequence[int]], tree: DraftTree, logits: torch.Tensor
) -> torch.Tensor:
    """What plain decoding makes of each node's row."""
    rows = logits.clone().view(tree.batch_size, tree.num_nodes, -1)
    for request, one in enumerate(asked):
        for node in range(tree.num_nodes):
            if one is None:
                continue
            penalties = PlainPenalties(one, rows.shape[-1])
            for token in (*before[request], *path_of(tree, request, node)):
                penalties.count(token)
            rows[request, node] = penalties.adjusted(rows[request, node])
    return rows.view(logits.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_each_node_has_plain_decodings_logits_bit_for_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for case in range(150):
        batch_size, num_nodes = 1 + case % 4, (1, 2, 7, 12)[case % 4]
        asked = [
            None if torch.rand(1, generator=generator) < 0.2 else random_asked(generator) for _ in range(batch_size)
        ]
        before = torch.randint(0, V, (batch_size, case % 12), generator=generator).tolist()
        state, slots = state_of(asked)
        count_all(state, slots, before)
        tree = random_tree(generator, batch_size, num_nodes)
        logits = (3 * torch.randn(batch_size * num_nodes, V, generator=generator)).to(dtype)
        expected = plain_rows(asked, before, tree, logits)
        penalize_nodes(logits, state, slots, tree)
        assert torch.equal(logits, expected), case


def decode_in_rounds(
    model: ToyModel,
    prompts: Sequence[Sequence[int]],
    asked: Sequence[Asked],
    num_tokens: int,
    penalize: Penalize = penalize_nodes,
) -> list[list[int]]:
    """Greedy answers by trees of 12 nodes that an informed drafter proposes, penalties counted round after round."""
    state, slots = state_of(asked)
    answers = [decode_plainly(model, prompt, one, 1) for prompt, one in zip(prompts, asked, strict=True)]
    generator = torch.Generator().manual_seed(len(prompts))
    while min(map(len, answers)) < num_tokens:
        drafted = torch.randn(len(prompts), PATH_LEN - 1, V, generator=generator)
        for request, (prompt, one) in enumerate(zip(prompts, asked, strict=True)):
            # Near to what comes: plain decoding's own answer, at every other depth.
            so_far = len(answers[request])
            coming = decode_plainly(model, prompt, one, so_far + PATH_LEN - 1)[so_far:]
            for depth, token in enumerate(coming):
                drafted[request, depth, token] += 3.0 * ((depth + request) % 3 > 0)
        top = torch.log_softmax(drafted, -1).topk(4, -1)
        tree = build_draft_tree(top.indices, top.values, torch.tensor([answer[-1] for answer in answers]), 12)
        logits = torch.stack(
            [
                model.logits([*prompts[request], *answers[request][:-1], *path_of(tree, request, node)])
                for request in range(len(prompts))
                for node in range(tree.num_nodes)
            ]
        )
        penalize(logits, state, slots, tree)
        commit = commit_round(tree, logits.argmax(-1).view(len(prompts), -1), torch.zeros_like(slots), PATH_LEN)
        count_tokens(state, slots, tree.token_ids[:, 0], commit.path.token_ids, commit.path.commit_lens)
        for request, (answer, length) in enumerate(zip(answers, commit.path.commit_lens.tolist(), strict=True)):
            answer += commit.path.token_ids[request, :length].tolist()
    return [answer[:num_tokens] for answer in answers]


def random_requests(seed: int, how_many: int) -> tuple[ToyModel, list[list[int]], list[Asked]]:
    generator = torch.Generator().manual_seed(seed)
    prompts = torch.randint(0, V, (how_many, 2), generator=generator).tolist()
    return ToyModel.of_seed(seed), prompts, [random_asked(generator) for _ in range(how_many)]


def plain_answers(seed: int, how_many: int, num_tokens: int) -> tuple[list[list[int]], list[list[int]]]:
    """Answers of plain decoding, and of rounds."""
    model, prompts, asked = random_requests(seed, how_many)
    plain = [decode_plainly(model, prompt, one, num_tokens) for prompt, one in zip(prompts, asked, strict=True)]
    return plain, decode_in_rounds(model, prompts, asked, num_tokens)


def test_answers_are_plain_decodings_over_two_hundred_requests() -> None:
    for seed in range(50):
        plain, mine = plain_answers(seed, 4, 24)
        assert mine == plain, seed


def relaxed(logits: torch.Tensor, state: PenaltyState, slots: torch.Tensor, tree: DraftTree) -> None:
    """SGLang's rule for a speculated run: the state at the root, at every node (eagle_utils.py)."""
    roots = DraftTree(tree.token_ids[:, :1], tree.parents[:, :1], tree.depths[:, :1], tree.logprobs[:, :1])
    for node in range(tree.num_nodes):
        rows = logits[node :: tree.num_nodes].clone()
        penalize_nodes(rows, state, slots, roots)
        logits[node :: tree.num_nodes] = rows


def test_the_engines_relaxed_rule_gives_other_answers() -> None:
    model, prompts, asked = random_requests(0, 20)
    plain = [decode_plainly(model, prompt, one, 24) for prompt, one in zip(prompts, asked, strict=True)]
    other = decode_in_rounds(model, prompts, asked, 24, relaxed)
    assert sum(a != b for a, b in zip(plain, other, strict=True)) >= 5


def test_a_sum_of_penalties_is_not_their_product() -> None:
    """0.1 added ten times is 1.0000001 in float32, which a multiplication does not give."""
    state, slots = state_of([Asked(frequency=0.1)])
    count_all(state, slots, [[4] * 7])
    tree = make_tree([4, 4, 4], [-1, 0, 1])
    logits = torch.zeros(3, V)
    penalize_nodes(logits, state, slots, tree)
    assert float(logits[2, 4]) == -1.0000001192092896
    assert float(logits[2, 4]) != float(-(torch.tensor(0.1) * 10))


def test_presence_and_repetition_count_a_token_once_and_scale_last() -> None:
    state, slots = state_of([Asked(presence=1.0, repetition=2.0)])
    tree = make_tree([4, 4, 5], [-1, 0, 1])
    logits = torch.full((3, V), 3.0)
    penalize_nodes(logits, state, slots, tree)
    assert logits[:, 4].tolist() == [1.0, 1.0, 1.0]
    assert logits[:, 5].tolist() == [3.0, 3.0, 1.0]
    assert float(logits[2, 6]) == 3.0


def test_ends_are_barred_until_the_path_is_long_enough() -> None:
    """Two tokens emitted, the root the third: one more makes four."""
    state, slots = state_of([Asked(min_len=4, ends=(0, 9))])
    count_all(state, slots, [[1, 2]])
    logits = torch.zeros(3, V)
    penalize_nodes(logits, state, slots, make_tree([3, 3, 0], [-1, 0, 0]))
    assert (logits == -torch.inf).nonzero().tolist() == [[0, 0], [0, 9]]


def test_padding_and_requests_without_penalties_change_nothing_else() -> None:
    state, slots = state_of([None, Asked(frequency=1.0)])
    tree = random_tree(torch.Generator().manual_seed(3), 2, 12)
    logits = torch.randn(24, V)
    before = logits.clone()
    penalize_nodes(logits, state, slots, tree)
    assert torch.equal(logits[:12], before[:12])
    assert not torch.equal(logits[12:], before[12:])
    unchanged = (state.sums[0].clone(), state.marks[0].clone())
    count_tokens(state, slots, tree.token_ids[:, 0], torch.zeros(2, 3, dtype=torch.int64), torch.tensor([2, 2]))
    assert torch.equal(state.sums[0], unchanged[0])
    assert torch.equal(state.marks[0], unchanged[1])


def test_a_rounds_last_token_is_the_next_root_and_counted_then() -> None:
    state, slots = state_of([Asked(frequency=1.0)])
    count_tokens(state, slots, torch.tensor([7]), torch.tensor([[7, 8, 9, 0, 0]]), torch.tensor([3]))
    assert state.sums[1].nonzero().flatten().tolist() == [7, 8]
    assert float(state.sums[1, 7]) == 2.0
    assert (state.marks[1] & EMITTED).nonzero().flatten().tolist() == [7, 8]
    assert int(state.lens[1]) == 3


def test_what_a_prefill_adds_and_scales_is_plain_decodings() -> None:
    generator = torch.Generator().manual_seed(5)
    for length in range(30):
        asked = random_asked(generator)
        before = torch.randint(0, V, (1, length), generator=generator).tolist()
        state, slots = state_of([asked])
        count_all(state, slots, before)
        plain = PlainPenalties(asked)
        for token in before[0]:
            plain.count(token)
        logits = 3 * torch.randn(V, generator=generator)
        additive, scaling = (part[0] for part in counted_penalties(state, [1]))
        mine = logits + additive
        assert torch.equal(torch.where(mine < 0, mine * scaling, mine / scaling), plain.adjusted(logits))


def test_rows_stay_when_there_is_room_for_more() -> None:
    state, slots = state_of([Asked(frequency=0.5), Asked(repetition=1.5, min_len=3, ends=(2,))])
    count_all(state, slots, [[1, 1], [2, 3]])
    grown = state.grown(9)
    assert grown.num_rows == 9
    tree = random_tree(torch.Generator().manual_seed(1), 2, 7)
    logits = torch.randn(14, V)
    other = logits.clone()
    penalize_nodes(logits, state, slots, tree)
    penalize_nodes(other, grown, slots, tree)
    assert torch.equal(logits, other)


@pytest.mark.parametrize(
    ("logits", "slots", "told"),
    [
        (torch.zeros(6, V), torch.zeros(2, dtype=torch.int64), r"one row per node"),
        (torch.zeros(3, V + 1), torch.zeros(1, dtype=torch.int64), r"one row per node"),
        (torch.zeros(3, V), torch.zeros(2, dtype=torch.int64), r"one per request"),
    ],
)
def test_wrong_shapes_are_named(logits: torch.Tensor, slots: torch.Tensor, told: str) -> None:
    state, _ = state_of([Asked()])
    with pytest.raises(ValueError, match=told):
        penalize_nodes(logits, state, slots, make_tree([1, 2, 3], [-1, 0, 0]))
    with pytest.raises(ValueError, match="one per request"):
        count_tokens(state, torch.zeros(2), torch.zeros(1), torch.zeros(1, 2), torch.ones(1))
