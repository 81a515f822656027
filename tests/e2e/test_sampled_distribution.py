"""Sampling through the whole server: the joint law of the first three tokens is the target's.

The exact law comes from the target itself under Hugging Face: temperature 1, top-k 3, so 27 continuations.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from tests.e2e.asking import ask_all
from tests.e2e.servers import Pair, Server

PROMPT = "My favourite animal is the"
TOP_K = 3
NUM_SAMPLES = 640
# 26 degrees of freedom at most: chi-square above 60 has a probability of 2e-4.
CRITICAL = 60.0


def exact_law(pair: Pair) -> dict[tuple[int, ...], float]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(pair.model, dtype=torch.float32)
    tokens = AutoTokenizer.from_pretrained(pair.model)(PROMPT)["input_ids"]
    law: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(3):
        longer = {}
        for path, probability in law.items():
            with torch.inference_mode():
                logits = model(torch.tensor([[*tokens, *path]])).logits[0, -1]
            values, ids = logits.topk(TOP_K)
            for token, share in zip(ids.tolist(), torch.softmax(values.double(), -1).tolist(), strict=True):
                longer[(*path, token)] = probability * share
        law = longer
    return law


def chi_square(counts: Counter[tuple[int, ...]], law: dict[tuple[int, ...], float]) -> float:
    """Cells that expect fewer than five are counted as one."""
    total = counts.total()
    small = [path for path, share in law.items() if share * total < 5]
    cells = [(counts[path], share * total) for path, share in law.items() if path not in set(small)]
    if small:
        cells.append((sum(counts[path] for path in small), total * sum(law[path] for path in small)))
    return sum((seen - expected) ** 2 / expected for seen, expected in cells if expected > 0)


def test_first_three_tokens_follow_the_targets_law(ddtree: Server, pair: Pair) -> None:
    law = exact_law(pair)
    answers = ask_all(
        ddtree.url, [PROMPT] * NUM_SAMPLES, 16, max_new_tokens=3, temperature=1.0, top_k=TOP_K, ignore_eos=True
    )
    counts = Counter(tuple(answer["output_ids"]) for answer in answers)
    assert set(counts) <= set(law)
    assert chi_square(counts, law) < CRITICAL
    # The test can tell: always taking the most probable continuation would fail it by far.
    best = max(law, key=lambda path: law[path])
    assert chi_square(Counter({best: NUM_SAMPLES}), law) > CRITICAL
    assert sum(answer["meta_info"]["spec_verify_ct"] for answer in answers) > 0
