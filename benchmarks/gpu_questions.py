"""What the servers of `gpu_proof` are asked: sets of questions by name, and the answers as they go into a record.

Prompts are token ids, so that the tiny pair needs no text and both servers of a comparison see the same thing. The same
name, pair and scale give the same questions on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from benchmarks.gpu_cases import LIMIT_CONTEXT_LEN
from benchmarks.harness.gpu_setting import Scale
from deploy.local.client import post

TOP = 4
"""Most probable tokens that a plain server gives with every token: a difference within them can be judged as a tie."""
GREEDY: dict[str, Any] = {"temperature": 0.0, "ignore_eos": True}
SAMPLED: dict[str, Any] = {"temperature": 1.5, "top_k": 3, "ignore_eos": True}
_WORD = {"type": "string", "pattern": "^[a-p]{1,12}$"}
FEATURES: dict[str, dict[str, Any]] = {
    "penalties": {"frequency_penalty": 0.7, "presence_penalty": 0.4},
    "repetition": {"repetition_penalty": 1.2},
    "bias": {"logit_bias": {str(byte): 4.0 for byte in range(97, 105)}},
    "least": {"stop_token_ids": list(range(64)), "min_new_tokens": 12, "ignore_eos": False},
    "stop": {"stop": ["e", "th"], "ignore_eos": False},
    "regex": {"regex": "([a-z]{2,6} ){3,6}", "ignore_eos": False},
    "ebnf": {"ebnf": 'root ::= ("ab" | "ac" [0-9]+ ",")+ "."', "ignore_eos": False},
    "schema": {
        "json_schema": json.dumps({"type": "object", "properties": {"a": _WORD, "b": _WORD}, "required": ["a", "b"]}),
        "ignore_eos": False,
    },
    "regex-penalized": {"regex": "[a-h]{10,40}", "frequency_penalty": 0.9, "ignore_eos": False},
}
"""What a request may ask for that changes logits or ends below a node: name -> sampling parameters, all greedy.

No request both adds a penalty and scales by one: without overlap scheduling SGLang keeps its penalizers in a set
(penaltylib/orchestrator.py), and which of the two it applies first differs from one server to the next."""


@dataclass(frozen=True)
class Question:
    """`key` is the same for the same question to another server; `new_tokens` None leaves the end to the context."""

    key: str
    prompt: tuple[int, ...]
    new_tokens: int | None
    sampling: dict[str, Any] = field(default_factory=lambda: dict(GREEDY))


@dataclass(frozen=True)
class Wave:
    """Questions that are asked together, `at_once` of them at any time."""

    name: str
    questions: tuple[Question, ...]
    at_once: int


def made_up_prompts(count: int, length: int, seed: int) -> list[tuple[int, ...]]:
    """Random bytes; lengths from `length` on, so that prefixes of a batch differ."""
    chosen = random.Random(seed)
    return [tuple(chosen.randrange(256) for _ in range(length + index % 13)) for index in range(count)]


def waves(asked: str, scale: Scale, prompts: Sequence[Sequence[int]] | None) -> list[Wave]:
    """The waves of the set `asked`. `prompts` are a real model's; None for random ones of the tiny pair."""
    return _SETS[asked](scale, None if prompts is None else [tuple(one) for one in prompts])


Prompts = list[tuple[int, ...]] | None


def _few(scale: Scale, prompts: Prompts) -> list[Wave]:
    chosen = (prompts or made_up_prompts(4, 44, 3))[:4]
    return [Wave("few", tuple(Question(f"few-{i}", one, 16) for i, one in enumerate(chosen)), 4)]


def _many(scale: Scale, prompts: Prompts) -> list[Wave]:
    chosen = (prompts or made_up_prompts(scale.prompts, 40, 1))[: scale.prompts]
    asked = tuple(Question(f"many-{i}", one, scale.new_tokens) for i, one in enumerate(chosen))
    return [Wave("many@1", asked[: max(1, len(asked) // 4)], 1), Wave("many@8", asked, 8)]


def _again(scale: Scale, prompts: Prompts) -> list[Wave]:
    """Long prompts, asked again when the prefix cache has most of each."""
    asked = tuple(Question(f"again-{i}", one, 24) for i, one in enumerate(made_up_prompts(8, 150, 13)))
    return [Wave("again-first", asked, 8), Wave("again-cached", asked, 8)]


def _limit(scale: Scale, prompts: Prompts) -> list[Wave]:
    """Requests that end at the context limit among short ones that look at their own first tokens meanwhile.

    Neighbours are asked alone, too: what a request answers must not depend on who ends beside it.
    """
    long = made_up_prompts(4, LIMIT_CONTEXT_LEN - 32, 5)
    short = made_up_prompts(12, 16, 6)
    ends = [Question(f"end-{i}", one, None) for i, one in enumerate(long)]
    beside = [Question(f"beside-{i}", one, 36) for i, one in enumerate(short)]
    mixed = [one for i, end in enumerate(ends) for one in (beside[3 * i], end, beside[3 * i + 1], beside[3 * i + 2])]
    return [
        Wave("limit-alone", tuple(beside[:6]), 1),
        Wave("limit", tuple(mixed), 8),
        Wave("limit-again", tuple(mixed), 8),
    ]


def _sampled(scale: Scale, prompts: Prompts) -> list[Wave]:
    """Samples of the first three tokens after one prompt, greedy requests among them."""
    prompt = made_up_prompts(1, 48, 9)[0]
    law = [Question(f"law-{i}", prompt, 3, dict(SAMPLED)) for i in range(scale.samples)]
    greedy = [Question(f"many-{i}", one, 12) for i, one in enumerate(made_up_prompts(8, 40, 1))]
    every = max(1, len(law) // len(greedy))
    mixed = list(law)
    for index, one in enumerate(greedy):
        mixed.insert(index * (every + 1), one)
    return [Wave("sampled", tuple(mixed), 8)]


def _features(scale: Scale, prompts: Prompts) -> list[Wave]:
    """Requests of every kind in one batch, and bare ones among them; first each alone.

    SGLang's overlap scheduling penalizes a token for what the host knew a step before (schedule_batch.py counts its
    `output_ids[-1]`, the prompt's last token first), and otherwise where a request joins: so the plain server of this
    set runs without overlap (gpu_cases). A run of equal letters under a penalty tells the two apart.
    """
    asked = []
    for index, prompt in enumerate(made_up_prompts(4, 40, 13)):
        asked.append(Question(f"bare-{index}", prompt, scale.new_tokens))
        for name, parameters in FEATURES.items():
            asked.append(Question(f"{name}-{index}", prompt, 2 * scale.new_tokens, GREEDY | parameters))
    return [Wave("features@1", tuple(asked), 1), Wave("features", tuple(asked), 8)]


def _crowd(scale: Scale, prompts: Prompts) -> list[Wave]:
    """As many requests at once as the server takes, half of them sampled: the largest transient buffers."""
    chosen = made_up_prompts(32, 400, 11)
    kinds = (GREEDY, {"temperature": 1.0, "ignore_eos": True})
    return [
        Wave("crowd", tuple(Question(f"crowd-{i}", one, 32, dict(kinds[i % 2])) for i, one in enumerate(chosen)), 32)
    ]


_SETS: dict[str, Callable[[Scale, Prompts], list[Wave]]] = {
    "few": _few,
    "many": _many,
    "again": _again,
    "limit": _limit,
    "sampled": _sampled,
    "features": _features,
    "crowd": _crowd,
}


def ask(url: str, wave: Wave, with_top: bool, timeout_s: float) -> list[dict[str, Any]]:
    """The answers to a wave, in order; `with_top` for plain servers. Raises ClientError as `post` does."""
    with ThreadPoolExecutor(wave.at_once) as pool:
        return list(pool.map(lambda one: _ask_one(url, one, with_top, timeout_s), wave.questions))


def _ask_one(url: str, question: Question, with_top: bool, timeout_s: float) -> dict[str, Any]:
    body: dict[str, Any] = {
        "input_ids": list(question.prompt),
        "sampling_params": {**question.sampling, "max_new_tokens": question.new_tokens},
    }
    is_greedy = not question.sampling["temperature"]
    if with_top and is_greedy:
        body |= {"return_logprob": True, "top_logprobs_num": TOP}
    answer = post(url, "/generate", body, timeout_s)
    meta = answer["meta_info"]
    found = {
        "key": question.key,
        "prompt_len": len(question.prompt),
        "ids": [int(token) for token in answer["output_ids"]],
        "rounds": int(meta.get("spec_verify_ct", 0)),
        "finish": str((meta.get("finish_reason") or {}).get("type")),
    }
    if "output_top_logprobs" in meta:
        found["top"] = [
            [[round(float(p), 4), int(token)] for p, token, *_ in one] for one in meta["output_top_logprobs"]
        ]
    return found
