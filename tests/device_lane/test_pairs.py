"""The tiny pairs show faults: answers hang on early tokens and on every row of the cache, and accepted nodes move."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.device_lane.pairs import Architecture, TinyPair, greedy, make_pair, random_prompts
from tests.device_lane.references import Asked, Reference, Round

PROMPT_LEN = 9
NUM_TOKENS = 12


@pytest.fixture(scope="module", params=[("qwen3", 4), ("llama", 8)], ids=["qwen3", "llama"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    architecture, block_size = request.param
    return make_pair(tmp_path_factory.mktemp(architecture), architecture, block_size)


def share_changed(changed: torch.Tensor, original: torch.Tensor) -> float:
    """Of rows of tokens, the share that differs somewhere."""
    return float((changed != original).any(dim=1).float().mean())


def test_first_token_of_a_prompt_decides_what_follows(pair: TinyPair) -> None:
    prompts = random_prompts(64, PROMPT_LEN, 5)
    others = prompts.clone()
    others[:, 0] = (others[:, 0] + 7) % 30
    answers, changed = (greedy(pair.target, one, 6)[:, PROMPT_LEN:] for one in (prompts, others))
    assert share_changed(changed, answers) > 0.9


@torch.inference_mode()
def test_every_row_of_the_cache_decides_what_follows(pair: TinyPair) -> None:
    """A row of another request in its place, as a wrong slot would put there."""
    prompts = random_prompts(48, PROMPT_LEN, 6)
    answers = greedy(pair.target, prompts, 8)[:, PROMPT_LEN:]
    cache = pair.target(prompts, use_cache=True).past_key_values
    shares = []
    for row in range(PROMPT_LEN):
        wrong = copy.deepcopy(cache)
        for layer in wrong.layers:
            for values in (layer.keys, layer.values):
                values[:, :, row] = values.roll(1, dims=0)[:, :, row]
        tokens = answers[:, :1]
        for _ in range(7):
            logits = pair.target(tokens[:, -1:], past_key_values=wrong, use_cache=True).logits
            tokens = torch.cat([tokens, logits[:, -1:].argmax(-1)], dim=1)
        shares.append(share_changed(tokens, answers))
    assert min(shares) > 0.6, shares
    assert sum(shares) / len(shares) > 0.75, shares


def test_answers_run_in_no_circle_and_use_the_vocabulary(pair: TinyPair) -> None:
    answers = greedy(pair.target, random_prompts(64, PROMPT_LEN, 7), 24)[:, PROMPT_LEN:]
    circles = [(answers[:, 12:] == answers[:, 12 - period : 24 - period]).all(dim=1) for period in range(1, 7)]
    assert float(torch.stack(circles).any(dim=0).float().mean()) < 0.2
    assert len(answers.unique()) > 24


def accept_length(rounds: list[Round]) -> float:
    return sum(one.commit_len for one in rounds) / len(rounds)


def test_drafter_hits_now_and_then_and_accepted_nodes_move(pair: TinyPair) -> None:
    reference = Reference(pair)
    requests = [
        Asked(tuple(random_prompts(1, length, length)[0].tolist()), NUM_TOKENS, temperature, seed=length)
        for length in range(3, 13)
        for temperature in (0.0, 1.0)
    ]
    by_nodes = {
        nodes: [one for asked in requests for one in reference.rounds(asked, nodes)] for nodes in (4, 8, 17, 65)
    }
    lengths = [accept_length(by_nodes[nodes]) for nodes in (4, 8, 17, 65)]
    assert lengths == sorted(lengths)
    assert 1.2 < lengths[0] < 2.5
    assert 1.5 < lengths[2] < 3
    assert lengths[3] < pair.block_size - 0.5
    chain = [one for asked in requests for one in reference.chain_rounds(asked)]
    assert 1.1 < accept_length(chain) < lengths[2]
    for nodes, least in ((4, 0.1), (17, 0.4), (65, 0.6)):
        assert sum(one.moves for one in by_nodes[nodes]) / len(by_nodes[nodes]) > least
    assert max(one.commit_len for one in by_nodes[17]) == 4 or pair.block_size > 4


@pytest.mark.parametrize("architecture", ["qwen3", "llama"])
def test_same_seed_gives_the_same_pair(architecture: Architecture, tmp_path: Path) -> None:
    for name in ("one", "other"):
        make_pair(tmp_path / name, architecture, 4, seed=3)
    for role in ("target", "draft"):
        first, second = (load_file(tmp_path / name / role / "model.safetensors") for name in ("one", "other"))
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)
