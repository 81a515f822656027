"""Sampled requests with a grammar and penalties: the joint law of three tokens is plain decoding's.

The exact law comes from Hugging Face's logits of the same weights and from the definitions of penalties and masks,
written down here once more. The small support makes a chi-square test of a few hundred answers sharp, and it has to
reject the rules that speculation is tempted by: the state of the tree's root at every node.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from deploy.local.client import post
from tests.e2e.conformance.conftest import Both
from tests.e2e.conformance.exceptions import REFUSED

PROMPT = "Eat at a tea tent at ten, a neat tea at ten, at a tent ate a net at ten eat a ta"
LETTERS = "eat "
REGEX = "(e[at]|a[t ]|t[ea]| [ate])[eat ]"
SIZES = {"frequency_penalty": 1.6, "presence_penalty": 1.4, "repetition_penalty": 1.5}
TEMPERATURE = 4.0  # the tiny target is sure of itself; every continuation has to have its share
NUM_SAMPLES = 800
PER_REQUEST = 50

Path = tuple[int, ...]
Law = dict[Path, float]


@dataclass(frozen=True)
class Rule:
    """What a token's distribution hangs on: letters that a mask allows after a path, and the tokens penalized there."""

    allows: Callable[[str], str]
    penalized: Callable[[Path], Path]


def allowed_after(text: str) -> str:
    """The letters with which the regex can go on."""
    return "".join(
        letter for letter in LETTERS if any(re.fullmatch(REGEX, (text + letter).ljust(3, fill)[:3]) for fill in LETTERS)
    )


def any_letter(_text: str) -> str:
    """Without a grammar the support is bounded by a bias instead, see `BIASED`."""
    return LETTERS


BIASED = {str(ord(letter)): 100.0 for letter in LETTERS}
EXACT = {
    "grammar": Rule(allowed_after, lambda _path: ()),
    "penalties": Rule(any_letter, lambda path: path),
    "both": Rule(allowed_after, lambda path: path),
}
WRONG = {
    # The first token is the prefill's, so that the root of the first tree follows one token.
    "grammar": Rule(lambda text: allowed_after(text[:1]), lambda _path: ()),
    "penalties": Rule(any_letter, lambda path: path[:1]),
    "both": Rule(allowed_after, lambda path: path[:1]),
}
SAMPLING: Mapping[str, dict[str, Any]] = {
    "grammar": {"regex": REGEX},
    "penalties": {**SIZES, "logit_bias": BIASED},
    "both": {**SIZES, "regex": REGEX},
}


@pytest.fixture(scope="module")
def logits_after(both: Both) -> Callable[[Path], torch.Tensor]:
    """The target's own logits after the prompt and a path, float32."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(both.pair.model, dtype=torch.float32)
    known: dict[Path, torch.Tensor] = {}

    def after(path: Path) -> torch.Tensor:
        if path not in known:
            with torch.inference_mode():
                known[path] = model(torch.tensor([[*PROMPT.encode(), *path]])).logits[0, -1].double()
        return known[path]

    return after


def penalize(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Penalties as SGLang defines them: of the tokens that were generated, in the order of its penalizers."""
    logits = logits.clone()
    for token, count in Counter(tokens).items():
        logits[token] -= SIZES["frequency_penalty"] * count + SIZES["presence_penalty"]
        logits[token] *= SIZES["repetition_penalty"] if logits[token] < 0 else 1 / SIZES["repetition_penalty"]
    return logits


def law_of(rule: Rule, logits_after: Callable[[Path], torch.Tensor]) -> Law:
    """The joint law of three tokens under a rule."""
    law: Law = {(): 1.0}
    for _ in range(3):
        longer: Law = {}
        for path, probability in law.items():
            letters = rule.allows(bytes(path).decode())
            ids = torch.tensor([ord(letter) for letter in letters])
            logits = penalize(logits_after(path), rule.penalized(path))[ids]
            for token, share in zip(ids.tolist(), torch.softmax(logits / TEMPERATURE, -1).tolist(), strict=True):
                longer[(*path, token)] = probability * share
        law = longer
    return law


def chi_square(counts: Counter[Path], law: Law) -> tuple[float, float]:
    """The statistic and the value that it exceeds with a probability of 2e-4 (Wilson and Hilferty's approximation).

    Cells that expect fewer than five are counted as one.
    """
    total = counts.total()
    large = {path for path, share in law.items() if share * total >= 5}
    cells = [(counts[path], law[path] * total) for path in large]
    rest = total - sum(seen for seen, _ in cells), total * (1 - sum(law[path] for path in large))
    cells += [rest] if rest[1] > 0.5 else []
    freedom = len(cells) - 1
    bound = freedom * (1 - 2 / (9 * freedom) + 3.54 * (2 / (9 * freedom)) ** 0.5) ** 3
    return sum((seen - expected) ** 2 / expected for seen, expected in cells), bound


def sampled(url: str, sampling: Mapping[str, Any]) -> tuple[Counter[Path], int]:
    """Tokens of many answers and how many of them were drafts that the target accepted."""
    body = {
        "text": PROMPT,
        "sampling_params": {"temperature": TEMPERATURE, "max_new_tokens": 3, "n": PER_REQUEST, **sampling},
    }
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(url, "/generate", body), range(NUM_SAMPLES // PER_REQUEST)))
    flat = [one for answer in answers for one in answer]
    accepted = sum(one["meta_info"].get("spec_num_correct_drafts", 0) for one in flat)
    return Counter(tuple(one["output_ids"]) for one in flat), accepted


def refused(kind: str) -> bool:
    """True while DDTREE lacks what the request asks for."""
    return bool(
        {"grammar": {"grammars"}, "penalties": {"penalties"}, "both": {"grammars", "penalties"}}[kind] & REFUSED.keys()
    )


@pytest.mark.parametrize("kind", [kind for kind in EXACT if not refused(kind)])
def test_three_tokens_follow_the_law_of_plain_decoding(
    kind: str, both: Both, logits_after: Callable[[Path], torch.Tensor]
) -> None:
    law = law_of(EXACT[kind], logits_after)
    for server in (both.plain, both.ddtree):
        counts, accepted = sampled(server.url, SAMPLING[kind])
        assert set(counts) <= set(law)
        statistic, bound = chi_square(counts, law)
        assert statistic < bound, server.url
    assert accepted > NUM_SAMPLES / 10


@pytest.mark.parametrize("kind", EXACT)
def test_the_state_of_the_root_at_every_node_would_be_noticed(
    kind: str, logits_after: Callable[[Path], torch.Tensor]
) -> None:
    """Counts that follow the wrong rule exactly: the test above rejects them."""
    law = law_of(EXACT[kind], logits_after)
    wrong = Counter({path: round(NUM_SAMPLES * share) for path, share in law_of(WRONG[kind], logits_after).items()})
    outside = sum(count for path, count in wrong.items() if path not in law)
    statistic, bound = chi_square(wrong, law)
    assert outside > NUM_SAMPLES / 20 or statistic > 2 * bound
