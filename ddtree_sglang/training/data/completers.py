"""Two ways to have the target continue texts: in this process through Hugging Face, or through a running server.

A server batches continuously, so a row that ends early costs no more time; start the server as for plain decoding. In
this process all rows of a batch run in lock step, so a batch takes as long as its longest row.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any, Protocol

import torch


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; temperature 0 is greedy."""

    temperature: float = 0.0
    top_p: float = 1.0


GREEDY = Sampling()


class Completer(Protocol):
    """The target, as self-generation sees it."""

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens with which the target ends, at least one."""

    def complete(self, prompts: list[list[int]], new_tokens: int, sampling: Sampling) -> list[list[int]]:
        """Continuations of up to `new_tokens` ids in the order of the prompts, with their end token if reached."""


@dataclass(frozen=True)
class LocalCompleter:
    """Hugging Face `generate` in this process; torch's seed decides what is sampled."""

    target: Any

    @property
    def end_ids(self) -> tuple[int, ...]:
        """The tokens with which the target ends."""
        return end_token_ids(self.target.generation_config, self.target.config)

    @torch.inference_mode()
    def complete(self, prompts: list[list[int]], new_tokens: int, sampling: Sampling) -> list[list[int]]:
        """Continue all prompts as one batch, padded on the left, each up to `new_tokens` ids or its end token."""
        longest, end_ids = max(map(len, prompts)), self.end_ids
        ids = torch.tensor([[end_ids[0]] * (longest - len(p)) + p for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        how: dict[str, Any] = {"do_sample": False}
        if sampling.temperature > 0:
            how = {"do_sample": True, "temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
        out = self.target.generate(
            ids.to(self.target.device),
            attention_mask=mask.to(self.target.device),
            max_new_tokens=max(1, new_tokens),
            pad_token_id=end_ids[0],
            eos_token_id=list(end_ids),
            **how,
        )
        rows = out[:, longest:].tolist()
        return [_up_to_end(row, end_ids) for row in rows]


@dataclass(frozen=True)
class ServerCompleter:
    """An SGLang server's native `/generate`, which takes and gives token ids; no seed repeats what it samples."""

    url: str
    end_ids: tuple[int, ...]
    timeout_s: float = 3600.0

    def complete(self, prompts: list[list[int]], new_tokens: int, sampling: Sampling) -> list[list[int]]:
        """Continue all prompts in one request, each up to `new_tokens` ids or its end token.

        Raises:
            ValueError: the server refused, or could not be reached; the message says why.
        """
        parameters = {
            "max_new_tokens": max(1, new_tokens),
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop_token_ids": list(self.end_ids),
        }
        body = json.dumps({"input_ids": prompts, "sampling_params": parameters}).encode()
        request = urllib.request.Request(self.url.rstrip("/") + "/generate", body, {"Content-Type": "application/json"})
        # A server beside the trainer, so no proxy stands between.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=self.timeout_s) as response:
                answers = json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(f"{self.url} refused a batch: {error.read().decode()[:500]}") from error
        except OSError as error:
            raise ValueError(
                f"--server must be a running SGLang server, {self.url} is not reachable: {error}"
            ) from error
        return [self._ids(answer) for answer in answers]

    def _ids(self, answer: dict[str, Any]) -> list[int]:
        ids = list(answer["output_ids"])
        reason = answer["meta_info"]["finish_reason"]
        if reason["type"] == "stop" and (not ids or ids[-1] not in self.end_ids):
            matched = reason.get("matched")
            ids.append(matched if matched in self.end_ids else self.end_ids[0])
        return ids


def end_token_ids(*sources: Any) -> tuple[int, ...]:
    """The end tokens that the first of these configurations (or a tokenizer) names: one id, or several as Llama 3 does.

    Raises:
        ValueError: none names any.
    """
    for source in sources:
        ids = getattr(source, "eos_token_id", None)
        if ids is not None:
            return tuple(ids) if isinstance(ids, list | tuple) else (int(ids),)
    raise ValueError("the target must say with which token it ends: put eos_token_id into its generation_config.json.")


def _up_to_end(row: list[int], end_ids: tuple[int, ...]) -> list[int]:
    """The row up to its first end token, which stays."""
    length = next((place + 1 for place, token in enumerate(row) if token in end_ids), len(row))
    return row[:length]
