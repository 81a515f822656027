"""One `meta_info` for an answer that several attempts produced.

Each attempt reports SGLang's `meta_info` of its own part: its prompt includes the answer so far, and its counters begin
at zero. The names are those of `TokenizerManager._handle_batch_output` and `_calculate_spec_decoding_metrics`
(sglang/srt/managers/tokenizer_manager.py). SGLang sends speculative counters with the last output only, so an attempt
whose replica was lost often has none. Ratios are over the attempts that have them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

SUMMED = ("spec_verify_ct", "spec_num_correct_drafts", "spec_num_proposed_drafts", "num_retractions")
HISTOGRAMS = ("spec_correct_drafts_histogram", "spec_cap_lens_histogram")
# Averages per verification; an attempt is weighted by its number of verifications.
PER_VERIFY = ("spec_cap_length", "spec_block_accept_length")
# Not merged: `ResumableAnswer` or the HTTP side computes them for the whole answer.
_REPLACED = frozenset(
    {
        "id",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "output_token_logprobs",
        "output_token_logprobs_length",
        "output_top_logprobs",
        "e2e_latency",
        "response_sent_to_client_ts",
    }
)


@dataclass
class AttemptReport:
    """Number of tokens that one attempt added to the answer, and its latest `meta_info`."""

    num_tokens: int = 0
    meta: dict[str, Any] = field(default_factory=dict)


def merge_reports(reports: Sequence[AttemptReport]) -> dict[str, Any]:
    """SGLang's `meta_info` for the whole answer, without the fields of `_REPLACED`."""
    metas = [report.meta for report in reports if report.meta]
    merged = {name: value for name, value in (metas[-1] if metas else {}).items() if name not in _REPLACED}
    if len(metas) < 2:
        return merged
    for meta in metas:
        if "cached_tokens" in meta:
            # Later attempts count the answer so far too; only the first to report counts the client's prompt alone.
            merged["cached_tokens"] = meta["cached_tokens"]
            merged.pop("cached_tokens_details", None)
            merged |= {name: value for name, value in meta.items() if name == "cached_tokens_details"}
            break
    for name in SUMMED:
        if any(name in meta for meta in metas):
            merged[name] = sum(meta.get(name, 0) for meta in metas)
    for name in HISTOGRAMS:
        columns = [meta[name] for meta in metas if name in meta]
        if columns:
            merged[name] = [sum(cells) for cells in zip_longest(*columns, fillvalue=0)]
    if any("reasoning_tokens" in meta for meta in metas):
        merged["reasoning_tokens"] = _reasoning_tokens(reports)
    return merged | _ratios([report for report in reports if report.meta.get("spec_verify_ct")])


def accept_length(num_tokens: float, num_verifies: int) -> float | None:
    """Tokens per verification, the bonus token included (SGLang's `spec_accept_length`); None without verifications."""
    return num_tokens / num_verifies if num_verifies else None


def _ratios(reports: Sequence[AttemptReport]) -> dict[str, float]:
    """Acceptance over the attempts that reported their verifications."""
    mean = accept_length(sum(map(_num_generated, reports)), sum(report.meta["spec_verify_ct"] for report in reports))
    if mean is None:
        return {}
    ratios = {"spec_accept_length": mean}
    num_proposed = sum(report.meta.get("spec_num_proposed_drafts", 0) for report in reports)
    if num_proposed:
        num_correct = sum(report.meta.get("spec_num_correct_drafts", 0) for report in reports)
        ratios["spec_accept_rate"] = num_correct / num_proposed
    for name in PER_VERIFY:
        told = [report.meta for report in reports if name in report.meta]
        if told:
            weight = sum(meta["spec_verify_ct"] for meta in told)
            ratios[name] = sum(meta[name] * meta["spec_verify_ct"] for meta in told) / weight
    return ratios


def _reasoning_tokens(reports: Sequence[AttemptReport]) -> int:
    """Tokens up to the end of the reasoning.

    An attempt counts its tokens as reasoning until it generates the end marker itself. So the first attempt that
    generated more tokens than it counted saw the end, and the counts of later attempts are wrong and left out.
    """
    total = 0
    for report in reports:
        counted = report.meta.get("reasoning_tokens", 0)
        total += counted
        if counted < _num_generated(report):
            break
    return total


def _num_generated(report: AttemptReport) -> int:
    """Tokens by the engine's own count, on which its other counters are based.

    More than the answer kept, if a stop string across two attempts cut the rest.
    """
    counted: int = report.meta.get("completion_tokens", report.num_tokens)
    return counted
