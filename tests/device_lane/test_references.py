"""The reference itself: its noise is the engine's, and it knows which requests rounding could change."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.device_lane.draws import seeded_noise
from tests.device_lane.pairs import EOS_TOKEN, TinyPair, make_pair, one_thread, random_prompts
from tests.device_lane.references import MIN_MARGIN, Asked, Reference, Round, follow, histogram


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(make_pair(tmp_path_factory.mktemp("pair"), "qwen3", 4))


def test_seeded_noise_is_the_engines() -> None:
    """Its kernel, interpreted: SGLang's own function takes another way for a host tensor."""
    triton = pytest.importorskip("triton")
    if not triton.knobs.runtime.interpret:
        pytest.skip("runs in Triton's interpreter: TRITON_INTERPRET=1")
    from sglang.kernels.ops.sampling.murmur_hash import murmur_hash32_kernel

    seeds, positions = torch.tensor([0, 7, 2**31 + 5, 2**40 + 3]), torch.tensor([0, 11, 200, 4095])
    columns = torch.arange(32)
    hashed = torch.empty((4, 32), dtype=torch.uint32)
    murmur_hash32_kernel[(4, 1)](seeds.to(torch.uint64), positions, columns, hashed, 4, 32, BLOCK_SIZE=1024)
    uniform = hashed.double() / torch.iinfo(torch.uint32).max
    expected = -(-uniform.log().clamp(max=-(2.0**-32))).log()
    for row in range(4):
        torch.testing.assert_close(seeded_noise(int(seeds[row]), int(positions[row]), 32), expected[row])


def test_draws_follow_the_seed_and_the_restricted_distribution(reference: Reference) -> None:
    prompt = tuple(random_prompts(1, 5, 0)[0].tolist())
    answers = {reference.expect(Asked(prompt, 6, 1.0, 8, seed)).output_ids for seed in range(12)}
    assert len(answers) > 9
    greedy = reference.expect(Asked(prompt, 6)).output_ids
    assert reference.expect(Asked(prompt, 6, 1.0, 1, 3)).output_ids == greedy


def test_answer_ends_at_the_first_stop(reference: Reference) -> None:
    asked = Asked(tuple(random_prompts(1, 5, 1)[0].tolist()), 10)
    full = reference.expect(asked)
    token = next(token for token in full.output_ids[3:] if token not in (*full.output_ids[:3], EOS_TOKEN))
    stopped = reference.expect(replace(asked, stop_token_ids=(token,), ignore_eos=False))
    length = full.output_ids.index(token) + 1
    assert stopped.output_ids == full.output_ids[:length]
    assert stopped.finish_reason == "stop"
    assert full.finish_reason == "length"
    assert len(stopped.logprobs) == length


def test_rounds_emit_the_answer_and_no_fewer_nodes_accept_more(reference: Reference) -> None:
    asked = Asked(tuple(random_prompts(1, 7, 2)[0].tolist()), 16)
    emitted = {nodes: [one.commit_len for one in reference.rounds(asked, nodes)] for nodes in (1, 2, 4, 17, 65)}
    assert emitted[1] == [1] * 15
    for lens in emitted.values():
        assert sum(lens[:-1]) < 15 <= sum(lens)
    assert len(emitted[65]) <= len(emitted[4]) < 15


def test_close_call_is_not_clear(reference: Reference) -> None:
    requests = [Asked(tuple(random_prompts(1, 6, seed)[0].tolist()), 10, 1.0, 8, seed) for seed in range(60)]
    clear = [asked for asked in requests if reference.is_clear(asked, (17,))]
    close = [asked for asked in requests if reference.expect(asked).margin < MIN_MARGIN]
    assert 30 < len(clear) < 60
    assert close
    assert not set(close) & set(clear)


def test_histogram_counts_rounds_by_correct_drafts() -> None:
    rounds = [Round(commit_len, tuple(range(commit_len))) for commit_len in (1, 3, 1)]
    assert histogram(rounds) == [2, 0, 1]
    assert histogram([]) == []
    assert Round(3, (0, 2, 5)).moves
    assert not Round(3, (0, 1, 2)).moves


def test_steps_of_one_token_come_between_rounds(reference: Reference) -> None:
    """Every way to get four tokens behind the first by rounds of the lengths that trees give, and by single ones."""

    class Known(Reference):
        def rounds_anywhere(self, asked: Asked, num_nodes: int, noise: torch.Generator | None = None) -> list[Round]:
            return [Round(commit_len, ()) for commit_len in (2, 1, 3)]

    ways = Known(reference.pair).with_steps_of_one_token(Asked(tuple(range(5, 9)), 4), 4)
    # One token comes with the prefill. Behind it a round of 2 and then one of 3, cut short; or steps instead of either.
    assert ways == {(0, 1, 1), (0, 1), (0, 0, 1), (1, 0, 1), (1,), ()}


def test_rounds_anywhere_are_those_of_the_plain_order_where_it_comes_by(reference: Reference) -> None:
    asked = Asked(tuple(random_prompts(1, 6, 3)[0].tolist()), 12)
    anywhere, done = reference.rounds_anywhere(asked, 9), 1
    for one in reference.rounds(asked, 9):
        assert anywhere[done - 1] == one
        done += one.commit_len
    assert tuple(histogram(reference.rounds(asked, 9))) in reference.with_steps_of_one_token(asked, 9)


def test_follow_answers_on_the_path_alone() -> None:
    class Tree:
        # 5 -> {7 -> 9, 8}
        token_ids = torch.tensor([[5, 7, 8, 9]])
        parents = torch.tensor([[-1, 0, 0, 1]])
        depths = torch.tensor([[0, 1, 1, 2]])

    assert follow(Tree, [5, 8, 9, 4]).tolist() == [[8, 0, 9, 0]]
    assert follow(Tree, [5, 7, 9, 4]).tolist() == [[7, 9, 0, 4]]


def test_one_thread_gives_back_what_it_took(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
    assert isinstance(make_pair(tmp_path, "llama", 4), TinyPair)
