"""The target's choice per node: SGLang's own sampler, with each request's parameters at each of its nodes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.stages.target_choice import NodeAdjustments, choose_target_tokens, repeat_for_nodes

pytestmark = pytest.mark.sglang

B, N, V = 2, 3, 6


def sampling_info(**changes: Any) -> Any:
    from sglang.srt.sampling.sampling_batch_info import SamplingBatchInfo

    fields: dict[str, Any] = {
        "temperatures": torch.tensor([[0.5], [2.0]]),
        "top_ps": torch.tensor([1.0, 0.9]),
        "top_ks": torch.tensor([1, 4], dtype=torch.int32),
        "min_ps": torch.tensor([0.0, 0.1]),
        "is_all_greedy": False,
        "is_any_greedy": True,
        "need_top_p_sampling": True,
        "need_top_k_sampling": True,
        "need_min_p_sampling": True,
        "vocab_size": V,
        "sampling_seed": torch.tensor([7, 8]),
        "device": "cpu",
    }
    return SamplingBatchInfo(**{**fields, **changes})


def test_parameters_are_repeated_request_by_request() -> None:
    repeated = repeat_for_nodes(sampling_info(), N)
    assert repeated.temperatures.tolist() == [[0.5]] * N + [[2.0]] * N
    assert repeated.top_ks.tolist() == [1] * N + [4] * N
    assert repeated.sampling_seed.tolist() == [7] * N + [8] * N
    assert repeated.min_ps.shape == repeated.top_ps.shape == (B * N,)


def test_greedy_batch_takes_the_argmax_and_never_asks_the_sampler() -> None:
    logits = torch.randn(B * N, V)
    positions = torch.zeros(B, N, dtype=torch.int64)

    def sampler(*args: Any, **kwargs: Any) -> torch.Tensor:
        raise AssertionError("greedy needs no sampler")

    got = choose_target_tokens(logits, sampling_info(is_all_greedy=True), positions, sampler, keep_logits=True)
    assert torch.equal(got, logits.argmax(-1).view(B, N))
    assert torch.equal(choose_target_tokens(logits, None, positions, sampler, keep_logits=False), got)


@pytest.mark.parametrize("keep_logits", [True, False])
def test_sampler_gets_each_nodes_position_and_a_copy_of_logits_that_are_read_later(keep_logits: bool) -> None:
    logits = torch.randn(B * N, V)
    before = logits.clone()
    seen = SimpleNamespace()

    def sampler(output: Any, info: Any, **kwargs: Any) -> torch.Tensor:
        output.next_token_logits.zero_()
        seen.positions, seen.info = kwargs["positions"], info
        return torch.arange(B * N, dtype=torch.int32)

    positions = torch.tensor([[10, 11, 11], [20, 21, 22]])
    got = choose_target_tokens(logits, sampling_info(), positions, sampler, keep_logits=keep_logits)
    assert seen.positions.tolist() == [10, 11, 11, 20, 21, 22]
    assert got.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert got.dtype == torch.int64
    # Log-probabilities are read from the logits afterwards; without them a copy would be made for nobody.
    assert torch.equal(logits, before) == keep_logits
    assert bool((logits == 0).all()) != keep_logits


def test_logit_bias_of_a_request_counts_at_all_of_its_nodes() -> None:
    bias = torch.zeros(B, V)
    bias[0, 5], bias[1, 0] = 100.0, 100.0
    info = sampling_info(is_all_greedy=True, logit_bias=bias)
    positions = torch.zeros(B, N, dtype=torch.int64)
    got = choose_target_tokens(torch.randn(B * N, V), info, positions, lambda: None, keep_logits=False)
    assert got.tolist() == [[5] * N, [0] * N]


def test_logit_bias_is_added_to_rows_that_are_part_of_wider_ones() -> None:
    bias = torch.randn(B, V)
    wide = torch.randn(B * N, V + 3)
    logits, before = wide[:, :V], wide.clone()
    info = sampling_info(is_all_greedy=True, logit_bias=bias)
    choose_target_tokens(logits, info, torch.zeros(B, N, dtype=torch.int64), lambda: None, keep_logits=False)
    assert torch.equal(logits, before[:, :V] + bias.repeat_interleave(N, dim=0))
    assert torch.equal(wide[:, V:], before[:, V:])


def test_adjustments_come_in_plain_decodings_order() -> None:
    """Penalties, grammar, the request's bias, processors (sampling_batch_info.py, `apply_logits_bias`)."""
    seen: list[tuple[str, float]] = []

    def change(name: str) -> Any:
        def apply(logits: torch.Tensor) -> None:
            seen.append((name, float(logits[0, 5])))
            logits.mul_(2.0)

        return apply

    def processors(logits: torch.Tensor) -> torch.Tensor:
        change("processors")(logits)
        return torch.full((B, N), 4)

    info = sampling_info(is_all_greedy=True, logit_bias=torch.ones(B, V))
    got = choose_target_tokens(
        torch.ones(B * N, V),
        info,
        torch.zeros(B, N, dtype=torch.int64),
        lambda: None,
        keep_logits=False,
        adjustments=NodeAdjustments(change("penalties"), change("grammar"), processors),
    )
    assert seen == [("penalties", 1.0), ("grammar", 2.0), ("processors", 5.0)]
    assert got.tolist() == [[4] * N] * B


def test_draws_follow_the_adjusted_distribution_of_plain_decoding() -> None:
    """Through SGLang's own torch sampler: top-k 3 at temperature 2, chi-square against the exact law."""
    from sglang.srt.layers.sampler import top_k_top_p_min_p_sampling_from_probs_torch

    torch.manual_seed(0)
    row = torch.tensor([2.0, 1.0, 0.5, 0.0, -1.0, -3.0])
    num_nodes = 4000
    info = sampling_info(
        temperatures=torch.tensor([[2.0]]),
        top_ps=torch.ones(1),
        top_ks=torch.tensor([3], dtype=torch.int32),
        min_ps=torch.zeros(1),
        need_min_p_sampling=False,
        sampling_seed=None,
    )

    def sampler(output: Any, repeated: Any, *, positions: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        return top_k_top_p_min_p_sampling_from_probs_torch(
            torch.softmax(output.next_token_logits / repeated.temperatures, -1),
            repeated.top_ks,
            repeated.top_ps,
            repeated.min_ps,
            False,
            repeated.sampling_seed,
            positions,
        )

    positions = torch.zeros(1, num_nodes, dtype=torch.int64)
    drawn = choose_target_tokens(row.repeat(num_nodes, 1), info, positions, sampler, keep_logits=False)
    counts = torch.bincount(drawn.flatten(), minlength=V).double()
    expected = torch.softmax(row[:3] / 2.0, -1).double() * num_nodes
    assert counts[3:].sum() == 0
    # 2 degrees of freedom: 13.8 is p = 0.001.
    assert float(((counts[:3] - expected) ** 2 / expected).sum()) < 13.8
    wrong = torch.softmax(row[:3], -1).double() * num_nodes
    assert float(((counts[:3] - wrong) ** 2 / wrong).sum()) > 13.8, "temperature 1 must be told from 2"


@pytest.fixture
def sglang_sampler() -> Any:
    """SGLang's, without the process groups that it looks up when it is built."""
    from sglang.srt.layers.sampler import Sampler

    made = Sampler.__new__(Sampler)
    torch.nn.Module.__init__(made)
    made.rl_on_policy_target = None
    made.enable_deterministic = made.use_log_softmax_logprob = made.use_ascend_backend = False
    return made


@pytest.mark.parametrize("is_greedy", [True, False])
def test_nan_is_sanitized_before_the_choice_and_before_log_probabilities(is_greedy: bool, sglang_sampler: Any) -> None:
    """`SGLANG_SANITIZE_NAN_LOGITS`, against the choice of SGLang's own sampler."""
    from sglang.srt.environ import envs
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput

    row = torch.tensor([[1.0, float("nan"), 3.0, 0.0, float("-inf"), float("nan")]])
    # A temperature at which the likeliest token is as good as certain.
    ones = {name: torch.ones(1) for name in ("top_ps", "min_ps")}
    info = sampling_info(
        **ones,
        temperatures=torch.full((1, 1), 1e-3),
        top_ks=torch.full((1,), V, dtype=torch.int32),
        is_all_greedy=is_greedy,
        need_top_p_sampling=False,
        need_top_k_sampling=False,
        need_min_p_sampling=False,
        sampling_seed=None,
    )
    positions, kept = torch.zeros(1, 1, dtype=torch.int64), row.clone()
    sglang_sampler._sync_token_ids_across_tp = lambda *_: None
    with envs.SGLANG_SANITIZE_NAN_LOGITS.override(True):
        plain = sglang_sampler(LogitsProcessorOutput(row.clone()), info, False, [], [], positions[0])
        chosen = choose_target_tokens(kept, info, positions, sglang_sampler, keep_logits=True)
    assert chosen.tolist() == [plain.tolist()] == [[2]]
    assert kept.tolist() == torch.nan_to_num(row, nan=-1e30, neginf=-1e30).tolist()
    untouched = row.clone()
    choose_target_tokens(untouched, None, positions, sglang_sampler, keep_logits=True)
    assert untouched.isnan().tolist() == row.isnan().tolist(), "without the flag nothing is changed"


def test_a_nan_is_looked_for_where_sglang_looks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """`SGLANG_ENABLE_NAN_LOGITS_CHECK`, whose probe needs a GPU: that it is asked."""
    from sglang.srt.utils import async_probe

    asked: list[int] = []
    monkeypatch.setattr(async_probe, "maybe_detect_nan", lambda logits, _msg: asked.append(len(logits)))
    positions = torch.zeros(B, N, dtype=torch.int64)
    choose_target_tokens(torch.zeros(B * N, V), None, positions, lambda: None, keep_logits=False)  # type: ignore[arg-type]
    assert asked == [B * N]
