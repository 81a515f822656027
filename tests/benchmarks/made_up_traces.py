"""Traces of a drafter whose law is known: trees of its most probable prefixes, walked by tokens that are drawn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np

DEPTH, TOKENS = 3, 3


def prefixes(marginals: np.ndarray, budget: int) -> list[tuple[tuple[int, ...], float]]:
    """The most probable prefixes by brute force, each behind its parent."""
    found = [
        (tokens, float(np.prod([marginals[place, token] for place, token in enumerate(tokens)])))
        for depth in range(1, DEPTH + 1)
        for tokens in itertools.product(range(TOKENS), repeat=depth)
    ]
    return sorted(found, key=lambda one: (-one[1], len(one[0])))[:budget]


def trace_line(request: str, marginals: np.ndarray, budget: int, drawn: tuple[int, ...]) -> dict[str, Any]:
    """A round as the server writes it; `drawn` are the tokens that the target says, one per depth."""
    nodes = prefixes(marginals, budget)
    index = {(): 0} | {tokens: place for place, (tokens, _) in enumerate(nodes, 1)}
    path = [0]
    for depth in range(1, DEPTH + 1):
        if drawn[:depth] not in index:
            break
        path.append(index[drawn[:depth]])
    return {
        "batch_size": 1,
        "total_ms": 1.0,
        "request_ids": [request],
        "commit_lens": [len(path)],
        "token_ids": [[9, *(tokens[-1] for tokens, _ in nodes)]],
        "parents": [[-1, *(index[tokens[:-1]] for tokens, _ in nodes)]],
        "path_probs": [[1.0, *(prob for _, prob in nodes)]],
        "accept_index": [[*path, *[-1] * (DEPTH + 1 - len(path))]],
    }


def write_trace(path: Path, requests: int, rounds: int, budget: int, sharpness: float = 1.0, seed: int = 0) -> Path:
    """Rounds whose target draws from the drafter's law; above 1 the drafter says a sharper one than it draws from."""
    random = np.random.default_rng(seed)
    lines = []
    for request, _ in itertools.product(range(requests), range(rounds)):
        true = random.dirichlet(np.ones(TOKENS), size=DEPTH)
        drawn = tuple(int(random.choice(TOKENS, p=law)) for law in true)
        said = true**sharpness / (true**sharpness).sum(1, keepdims=True)
        lines.append(json.dumps(trace_line(f"request-{request}", said, budget, drawn)))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
