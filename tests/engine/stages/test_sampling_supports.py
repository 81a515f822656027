"""Supports of what a round emits: plain decoding's, row for row, whichever nodes were accepted."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.engine.stages.sampling_supports import NodeSupports
from ddtree_sglang.engine.stages.target_choice import choose_target_tokens
from tests.engine.stages.test_target_choice import sampling_info

pytestmark = pytest.mark.sglang

B, N, V, P = 3, 4, 6, 3
PATH = AcceptedPath(
    accept_index=torch.tensor([[0, 2, -1], [0, -1, -1], [0, 1, 3]]),
    num_correct_drafts=torch.tensor([1, 0, 2]),
    commit_lens=torch.tensor([2, 1, 3]),
    token_ids=torch.tensor([[4, 5, 0], [1, 0, 0], [2, 3, 1]]),
    bonus_ids=torch.tensor([5, 1, 1]),
)


def asking(requests: list[int], with_logprobs: list[int] | None, **more: Any) -> Any:
    """Three requests, those of `requests` ask for supports, those of them at `with_logprobs` for all of it."""
    three = {
        "temperatures": torch.full((B, 1), 0.8),
        "top_ps": torch.full((B,), 0.95),
        "top_ks": torch.tensor([3, 6, 2], dtype=torch.int32),
        "min_ps": torch.tensor([0.0, 0.1, 0.0]),
        "sampling_seed": None,
    }
    return sampling_info(
        **three,
        sampling_mask_batch_indices=torch.tensor(requests),
        sampling_support_logprobs_capture_indices=None if with_logprobs is None else torch.tensor(with_logprobs),
        **more,
    )


class PlainSampler:
    """SGLang's own torch sampler and description of supports, without a server around it."""

    sampling_mask_max_tokens = V
    tp_sync_group = cp_sync_group = None

    def __call__(self, output: Any, info: Any, *, positions: torch.Tensor, **_: Any) -> torch.Tensor:
        from sglang.srt.layers.sampler import (
            Sampler,
            _SamplingMaskCapture,
            _select_sampling_mask_rows,
            top_k_top_p_min_p_sampling_from_probs_torch,
        )

        probs = torch.softmax(output.next_token_logits / info.temperatures, -1)
        tokens, filtered, ids, weight = top_k_top_p_min_p_sampling_from_probs_torch(
            probs, info.top_ks, info.top_ps, info.min_ps, True, None, positions, return_filtered_probs=True
        )
        rows = info.sampling_mask_batch_indices
        capture = _SamplingMaskCapture(
            *(_select_sampling_mask_rows(one, rows) for one in (filtered, ids, weight)), rows
        )
        output.sampling_mask_output = Sampler._build_sampling_mask_output(
            self, tokens, capture, info.sampling_support_logprobs_capture_indices
        )
        self.output, self.tokens = output.sampling_mask_output, tokens
        return tokens


@pytest.mark.parametrize(
    ("requests", "with_logprobs"), [([0, 1, 2], None), ([0, 2], [1]), ([2], [0]), ([1, 2], [0, 1])]
)
def test_supports_are_those_that_the_sampler_describes_for_each_accepted_nodes_row(
    requests: list[int], with_logprobs: list[int] | None
) -> None:
    info, sampler = asking(requests, with_logprobs), PlainSampler()
    supports = NodeSupports.of(info, sampler, N)  # type: ignore[arg-type]
    assert supports is not None
    logits = torch.randn(B * N, V, generator=torch.Generator().manual_seed(0))
    choose_target_tokens(logits, info, torch.zeros(B, N, dtype=torch.int64), supports, keep_logits=False)  # type: ignore[arg-type]
    made, described = supports.of_path(PATH), sampler.output
    assert made.num_accept_tokens is not None
    assert made.num_accept_tokens.tolist() == PATH.commit_lens[requests].tolist()
    for place, request in enumerate(requests):
        for depth in range(int(PATH.commit_lens[request])):
            row = place * N + int(PATH.accept_index[request, depth])
            assert torch.equal(made.token_ids[place, depth], described.token_ids[row])
            assert made.lengths[place, depth] == described.lengths[row]
            assert made.selected_logprobs[place, depth] == described.selected_logprobs[row]
            assert made.statuses[place, depth] == 0
    for number, place in enumerate(with_logprobs or []):
        for depth in range(int(PATH.commit_lens[requests[place]])):
            row = number * N + int(PATH.accept_index[requests[place], depth])
            assert made.support_logprobs is not None
            assert torch.equal(made.support_logprobs[number, depth], described.support_logprobs[row])


def test_a_greedy_batchs_tokens_are_their_own_supports() -> None:
    info = asking([0, 2], [1], is_all_greedy=True)
    supports = NodeSupports.of(info, PlainSampler(), N)  # type: ignore[arg-type]
    assert supports is not None
    choose_target_tokens(torch.randn(B * N, V), info, torch.zeros(B, N, dtype=torch.int64), supports, keep_logits=False)  # type: ignore[arg-type]
    made = supports.of_path(PATH)
    assert made.token_ids.tolist() == [[[4], [5], [0]], [[2], [3], [1]]]
    assert made.lengths.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert made.selected_logprobs.tolist() == [[0.0] * 3] * 2
    assert made.support_logprobs is not None
    assert made.support_logprobs.shape == (1, P, 1)
    assert made.statuses.tolist() == [[0] * 3] * 2


def test_a_batch_that_asks_for_none_is_left_to_the_sampler_itself() -> None:
    assert NodeSupports.of(None, PlainSampler(), N) is None  # type: ignore[arg-type]
    assert NodeSupports.of(SimpleNamespace(sampling_mask_batch_indices=None), PlainSampler(), N) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(("requests", "with_logprobs"), [([0, 2], [1]), ([1, 2], [0, 1]), ([0], None)])
def test_along_paths_that_are_drawn_node_by_node_supports_are_those_of_each_draw(
    requests: list[int], with_logprobs: list[int] | None
) -> None:
    """As where a batch has processors: requests that ask beside one that does not, paths of different lengths."""
    from ddtree_sglang.engine.stages.node_processors import rows_of

    full = {requests[place] for place in with_logprobs or []}
    info = asking(
        requests,
        with_logprobs,
        return_sampling_masks=[one in requests for one in range(B)],
        return_sampling_support_logprobs=[one in full for one in range(B)],
    )
    sampler = PlainSampler()
    supports = NodeSupports.of(info, sampler, N)  # type: ignore[arg-type]
    assert supports is not None
    logits = torch.randn(B * N, V, generator=torch.Generator().manual_seed(0))
    drawn: dict[tuple[int, int], tuple[Any, int, int]] = {}
    for depth in range(P):
        walking = [one for one in range(B) if depth < int(PATH.commit_lens[one])]
        rows = torch.tensor([one * N + int(PATH.accept_index[one, depth]) for one in walking])
        output = SimpleNamespace(next_token_logits=logits[rows], sampling_mask_output=None)
        draw = supports.at(walking, rows)
        if any(one in requests for one in walking):
            draw(output, rows_of(info, walking), positions=rows)
            described = [one for one in walking if one in requests]
            for place, one in enumerate(described):
                number = [other for other in described if other in full].index(one) if one in full else -1
                drawn[one, depth] = sampler.output, place, number
        else:
            assert draw is sampler
    made = supports.of_path(PATH)
    for (one, depth), (output, place, number) in drawn.items():
        index = requests.index(one)
        assert torch.equal(made.token_ids[index, depth], output.token_ids[place])
        assert made.lengths[index, depth] == output.lengths[place]
        assert made.selected_logprobs[index, depth] == output.selected_logprobs[place]
        if one in full:
            assert made.support_logprobs is not None
            assert torch.equal(made.support_logprobs[sorted(full).index(one), depth], output.support_logprobs[number])
    assert len(drawn) == int(PATH.commit_lens[requests].sum())


def test_sglang_reads_them_as_one_support_per_emitted_token() -> None:
    """By its own reading of a speculative result (batch_result_processor.py), for both modes of log-probabilities."""
    from sglang.srt.managers.scheduler_components.batch_result_processor import SchedulerBatchResultProcessor

    info, sampler = asking([0, 2], [1]), PlainSampler()
    supports = NodeSupports.of(info, sampler, N)  # type: ignore[arg-type]
    assert supports is not None
    logits = torch.randn(B * N, V, generator=torch.Generator().manual_seed(0))
    choose_target_tokens(logits, info, torch.zeros(B, N, dtype=torch.int64), supports, keep_logits=False)  # type: ignore[arg-type]
    described = sampler.output
    output = SimpleNamespace(sampling_mask_output=supports.of_path(PATH))
    reqs = [
        SimpleNamespace(return_sampling_mask=asks, sampling_logprobs_mode=mode)
        for asks, mode in ((True, "selected"), (False, "selected"), (True, "support"))
    ]
    SchedulerBatchResultProcessor.materialize_sampling_mask_output(reqs, output)
    assert output.next_token_sampling_mask_status == [0, None, 0]
    for place, request in enumerate((0, 2)):
        masks, logprobs = output.next_token_sampling_mask_idx[request], output.next_token_sampling_logprobs[request]
        assert len(masks) == len(logprobs) == int(PATH.commit_lens[request])
        for depth, (mask, values) in enumerate(zip(masks, logprobs, strict=True)):
            row = place * N + int(PATH.accept_index[request, depth])
            length = int(described.lengths[row])
            assert mask.tolist() == described.token_ids[row, :length].tolist()
            full = int(PATH.accept_index[2, depth]) if request == 2 else 0
            wanted = (
                described.support_logprobs[full, :length]
                if request == 2
                else described.selected_logprobs[row : row + 1]
            )
            assert values.tolist() == wanted.tolist()
