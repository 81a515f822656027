"""One request decoded by SGLang's own result processing, a token a step or a run a step, without a model.

What the target chooses is a script. A run's tokens are cut as a round cuts them: by `walk_tree` on the device, by
`engine.run_ends` on the host.
"""

from __future__ import annotations

import inspect
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch

from ddtree_sglang.core import RoundEnds, walk_tree
from tests.core.tree_cases import make_tree

PROMPT_LEN, RUN_LEN, THINK_END = 6, 8, 4999


@dataclass(frozen=True)
class Ended:
    """What an answer is made of, once its request has ended."""

    token_ids: list[int]
    finish_reason: Any
    completion_tokens: int
    reasoning_tokens: int
    logprobs: list[tuple[float, int]]
    top_logprobs: list[Any]
    hidden_rows: list[int]
    kv_key_len: int
    supports: list[int]  # the tokens of those that came with the answer, where they are asked for
    is_cached: bool


class Decoding:
    """SGLang's processing of decode results, with the hooks of `run_ends` and `grammar_ends` around it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from sglang.srt.managers import schedule_batch
        from sglang.srt.managers.scheduler_components import batch_result_processor as module

        from ddtree_sglang.engine import grammar_ends, run_ends

        self._class = module.SchedulerBatchResultProcessor
        self._req = schedule_batch.Req
        self._spec = SimpleNamespace(speculative_algorithm="DDTREE")
        quiet = SimpleNamespace(enable_metrics=False)
        monkeypatch.setattr(module, "get_observability", lambda: quiet)
        monkeypatch.setattr(schedule_batch, "get_serving", lambda: SimpleNamespace(strip_thinking_cache=False))
        monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: self._spec)
        monkeypatch.setattr(self._class, "_handle_finish_state_updated_req", lambda *_, **__: None)
        monkeypatch.setattr(
            self._class, "_handle_sampling_mask_abort", lambda _self, req: setattr(req, "skip_radix_cache_insert", True)
        )
        for owner, name, hook in (
            (self._class, "process_batch_result_decode", run_ends.cut_before_supports_are_read),
            (self._class, "_resolve_spec_v2_tokens", run_ends.cut_before_tokens_are_resolved),
            (self._class, "advance_grammar_fsm", run_ends.cut_before_grammars_advance),
            (self._class, "_accept_grammar_tokens", grammar_ends.accept_run),
            (self._req, "update_finish_state", run_ends.end_as_plain),
        ):
            # Without what a plugin hooked there, if an earlier test of this process loaded it.
            monkeypatch.setattr(owner, name, _around(inspect.unwrap(getattr(owner, name)), hook))

    def stock(self) -> None:
        """From now on another algorithm serves: the hooks pass through, and rounds cut no path."""
        self._spec.speculative_algorithm = "DFLASH"

    def request(self, tokenizer: Any, *, think_end: bool = False, supported: bool = False, **sampling: Any) -> Any:
        """A request after its prefill's first token is still to come; with `supported` it asks for sampling masks."""
        from sglang.srt.sampling.sampling_params import SamplingParams

        eos = sampling.pop("eos_token_ids", set())
        params = SamplingParams(**sampling)
        params.normalize(tokenizer)
        req = self._req(
            "r",
            "",
            array("q", range(PROMPT_LEN)),
            params,
            return_logprob=True,
            top_logprobs_num=1,
            return_sampling_mask=supported,
        )
        req.tokenizer, req.eos_token_ids, req.vocab_size = tokenizer, eos, 1 << 20
        req.logprob.output_token_logprobs_val, req.logprob.output_token_logprobs_idx = [], []
        req.logprob.output_top_logprobs_val, req.logprob.output_top_logprobs_idx = [], []
        req.return_hidden_states, req.require_reasoning = True, think_end
        req.kv.kv_committed_len = PROMPT_LEN
        return req

    def decode(
        self, req: Any, script: Sequence[int], runs: Sequence[int] | None, statuses: Sequence[int] | None = None
    ) -> Ended:
        """Decode to the end: a token a step on a plain server where `runs` is None, else runs of those lengths in turn.

        A run that the device cuts is shorter. `statuses` are those of the tokens' supports, place by place.
        """
        serving = self._spec.speculative_algorithm
        self._spec.speculative_algorithm = None if runs is None else serving
        try:
            return self._decode(req, script, runs, statuses)
        finally:
            self._spec.speculative_algorithm = serving

    def _decode(
        self, req: Any, script: Sequence[int], runs: Sequence[int] | None, statuses: Sequence[int] | None
    ) -> Ended:
        processor = self.processor()
        req.output_ids.append(script[0])
        processor._maybe_update_reasoning_tokens(req, script[0])
        req.update_finish_state()
        self._logprobs_of_prefill(req, script[0])
        step = 0
        while not req.finished():
            at = len(req.output_ids)
            run = list(script[at : at + (1 if runs is None else runs[step % len(runs)])])
            if self._spec.speculative_algorithm == "DDTREE":
                run = run[: device_cut(req, script[at - 1], run)]
            result = result_of(run, at, is_run=runs is not None)
            if statuses is not None:
                result.logits_output.sampling_mask_output = supports_of(run, statuses[at:], is_run=runs is not None)
            spec = SimpleNamespace(is_none=lambda: runs is None)
            if runs is None:
                req.kv.kv_committed_len += 1
            processor.process_batch_result_decode(batch_of(req, spec), result)
            step += 1
        return self._ended(req)

    @staticmethod
    def _logprobs_of_prefill(req: Any, token: int) -> None:
        req.logprob.output_token_logprobs_val.append(-float(token))
        req.logprob.output_token_logprobs_idx.append(token)
        req.logprob.output_top_logprobs_val.append([-float(token)])
        req.logprob.output_top_logprobs_idx.append([token])
        req.hidden_states = [[0.0]]

    @staticmethod
    def _ended(req: Any) -> Ended:
        tokens = list(req.output_ids_through_stop)
        return Ended(
            token_ids=list(req.output_ids),
            finish_reason=req.finished_reason.to_json(),
            completion_tokens=len(tokens),
            reasoning_tokens=req.reasoning_tokens,
            logprobs=list(
                zip(req.logprob.output_token_logprobs_val, req.logprob.output_token_logprobs_idx, strict=True)
            ),
            top_logprobs=list(req.logprob.output_top_logprobs_val),
            hidden_rows=[int(row[0]) for row in req.hidden_states],
            kv_key_len=req.owned_kv_len(),
            supports=req.sampling_mask_rows.view().token_ids.tolist() if req.return_sampling_mask else [],
            is_cached=not req.skip_radix_cache_insert,
        )

    def processor(self) -> Any:
        """SGLang's, of which only what counts tokens is real."""
        processor = object.__new__(self._class)
        for name in self._class.__dataclass_fields__:
            object.__setattr__(processor, name, MagicMock())
        object.__setattr__(processor, "enable_overlap", False)
        object.__setattr__(processor, "enable_overlap_mlx", False)
        model = SimpleNamespace(think_end_ids=[THINK_END], self_opened_think_start_ids=None)
        object.__setattr__(processor, "model_config", model)
        metrics = SimpleNamespace(num_generated_tokens=0, forward_ct_decode=0)
        for name in ("update_spec_metrics", "snapshot_spec_decode_metrics", "report_decode_stats"):
            setattr(metrics, name, lambda *_, **__: None)
        object.__setattr__(processor, "metrics_reporter", metrics)
        return processor


def _around(original: Any, hook: Any) -> Any:
    return lambda *args, **kwargs: hook(original, *args, **kwargs)


def batch_of(req: Any, spec: Any) -> Any:
    mode = SimpleNamespace(is_decode=lambda: True, is_extend=lambda: False)
    return SimpleNamespace(
        reqs=[req],
        spec_algorithm=spec,
        return_logprob=True,
        has_grammar=req.grammar is not None,
        forward_mode=mode,
        batch_size=lambda: 1,
    )


def result_of(run: Sequence[int], at: int, *, is_run: bool) -> Any:
    """The result of a forward that chose these tokens for the places from `at` on."""
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.utils import GenerationBatchResult

    padded = [*run, *[0] * (RUN_LEN - len(run))] if is_run else list(run)
    values = -torch.tensor(padded, dtype=torch.float32)
    logits = LogitsProcessorOutput(
        next_token_logits=None,
        next_token_logprobs=values.view(1, -1) if is_run else values,
        next_token_top_logprobs_val=[values[i : i + 1] for i in range(len(padded))],
        next_token_top_logprobs_idx=[torch.tensor([token]) for token in padded],
        hidden_states=torch.arange(at, at + len(padded), dtype=torch.float32).view(-1, 1),
    )
    result = GenerationBatchResult(logits_output=logits, next_token_ids=torch.tensor(padded))
    if is_run:
        result.accept_lens = torch.tensor([len(run)], dtype=torch.int32)
        result.speculative_output_stride = RUN_LEN
    return result


def supports_of(run: Sequence[int], statuses: Sequence[int], *, is_run: bool) -> Any:
    """Each token as its own support, with these statuses."""
    from sglang.srt.layers.logits_processor import SamplingMaskOutput

    width = RUN_LEN if is_run else 1
    tokens = torch.tensor([*run, *[0] * (width - len(run))], dtype=torch.int32)
    shape = (1, width) if is_run else (1,)
    return SamplingMaskOutput(
        token_ids=tokens.view(*shape, 1),
        lengths=torch.ones(shape, dtype=torch.int32),
        selected_logprobs=-tokens.float().view(shape),
        support_logprobs=None,
        statuses=torch.tensor([*statuses, *[0] * width][:width], dtype=torch.int32).view(shape),
        num_accept_tokens=torch.tensor([len(run)]) if is_run else None,
    )


def device_cut(req: Any, root: int, run: Sequence[int]) -> int:
    """How many tokens of a run a round commits: a chain that holds all of them is walked."""
    from ddtree_sglang.engine.stages.round_ends import end_token_ids, limit_len

    tree = make_tree([root, *run[:-1]], list(range(-1, len(run) - 1)))
    ends = RoundEnds(
        torch.tensor([end_token_ids(req)], dtype=torch.int64).view(1, -1),
        torch.tensor([limit_len(req)]),
        torch.tensor([len(run)]),
    )
    prefix_lens = torch.tensor([req.seqlen - 1])
    return int(walk_tree(tree, torch.tensor([list(run)]), len(run), ends, prefix_lens).commit_lens)
