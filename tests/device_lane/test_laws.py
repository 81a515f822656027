"""Draws from a law pass, and those from another one are noticed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.device_lane.laws import FARTHEST, Law, distance, laws, problems_of_draws
from tests.device_lane.pairs import make_pair, random_prompts
from tests.device_lane.references import Asked, Reference

ASKED = Asked(tuple(random_prompts(1, 5, 0)[0].tolist()), 12, temperature=1.5, top_k=5)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(make_pair(tmp_path_factory.mktemp("pair"), "qwen3", 4))


def drawn(reference: Reference, pick: Any, seed: int) -> dict[str, Any]:
    """An answer whose tokens `pick` takes from their laws, with these laws as supports."""
    generator, tokens, told = torch.Generator().manual_seed(seed), [], []
    for _ in range(ASKED.max_new_tokens):
        *_, law = laws(reference, ASKED, [*tokens, 0])
        assert law is not None
        tokens.append(pick(law, generator))
        told.append(law)
    meta = {
        "output_token_sampling_mask": [list(law) for law in told],
        "output_token_sampling_logprobs": [list(law.values()) for law in told],
    }
    return {"output_ids": tokens, "meta_info": meta}


def by_law(law: Law, generator: torch.Generator) -> int:
    shares = torch.tensor([math.exp(one) for one in law.values()])
    return list(law)[int(torch.multinomial(shares, 1, generator=generator))]


def best(law: Law, _: torch.Generator) -> int:
    return max(law, key=lambda token: law[token])


def any_of_them(law: Law, generator: torch.Generator) -> int:
    return list(law)[int(torch.randint(len(law), (1,), generator=generator))]


def distance_of(reference: Reference, pick: Any) -> float:
    found = []
    for seed in range(5):
        tokens = drawn(reference, pick, seed)["output_ids"]
        found += [(token, law) for token, law in zip(tokens, laws(reference, ASKED, tokens), strict=True) if law]
    return distance(found)


def test_draws_of_the_law_are_near_it_and_others_are_not(reference: Reference) -> None:
    assert abs(distance_of(reference, by_law)) < 3
    assert distance_of(reference, best) < -FARTHEST
    assert distance_of(reference, any_of_them) > FARTHEST
    assert distance([]) == 0.0


def test_answers_supports_are_held_to_the_laws(reference: Reference) -> None:
    answer = drawn(reference, by_law, 0)
    assert problems_of_draws(ASKED, answer, reference, with_supports=True) == []
    answer["meta_info"]["output_token_sampling_logprobs"][3][0] -= 0.01
    assert "token 3 was drawn from" in problems_of_draws(ASKED, answer, reference, with_supports=True)[0]
    assert problems_of_draws(ASKED, answer, reference, with_supports=False) == []


def test_a_token_outside_its_support_is_noticed(reference: Reference) -> None:
    answer = drawn(reference, by_law, 1)
    law = laws(reference, ASKED, answer["output_ids"])[4]
    assert law is not None
    answer["output_ids"][4] = next(token for token in range(30) if token not in law)
    assert "token 4 is" in problems_of_draws(ASKED, answer, reference, with_supports=False)[0]


def test_what_rounding_decides_has_no_law() -> None:
    class Level:
        def target(self, _asked: Asked) -> Any:
            return lambda row, use_cache: type("Out", (), {"logits": torch.zeros(1, row.shape[1], 32)})

    assert laws(Level(), ASKED, [3, 4]) == [None, None]  # type: ignore[arg-type]
