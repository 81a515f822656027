"""Where a request ends: SGLang's own clamp on our limits, and how far the rounds behind it read."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.engine.admission import context_limit
from ddtree_sglang.exceptions import DDTreeConfigError

pytestmark = pytest.mark.sglang


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """What SGLang publishes to a scheduler on a device."""
    from sglang.srt import runtime_context

    values = SimpleNamespace(speculative_algorithm="DDTREE", speculative_num_steps=15, tp_rank=0)
    monkeypatch.setattr(runtime_context, "get_spec", lambda: values)
    monkeypatch.setattr(runtime_context, "get_parallel", lambda: values)
    monkeypatch.setattr(context_limit, "is_device_path", lambda: True)
    return values


def stock_scheduler(context_len: int, pool_tokens: int = 1 << 20) -> Any:
    """A scheduler with the limits that SGLang's worker reports."""
    longest = min(context_len, pool_tokens) - 1
    return SimpleNamespace(
        model_config=SimpleNamespace(context_len=context_len),
        max_req_len=longest,
        max_req_input_len=longest - 5,
        max_new_tokens_limit=None,
        max_total_num_tokens=1 << 20,
        kv_shard_widening=1,
        page_size=1,
        sliding_window_size=None,
        chunked_prefill_size=None,
        token_to_kv_pool_allocator=SimpleNamespace(max_new_tokens_for_memory=lambda _prompt, most, **_: most),
    )


def lowered(context_len: int, pool_tokens: int = 1 << 20) -> Any:
    scheduler = stock_scheduler(context_len, pool_tokens)
    context_limit.leave_room_for_rounds(None, scheduler)
    return scheduler


def answer_len(scheduler: Any, prompt_len: int, asked: int | None = None) -> int:
    """The `max_new_tokens` that SGLang leaves a request."""
    from sglang.srt.managers.scheduler import Scheduler

    sampling = SimpleNamespace(max_new_tokens=asked, min_new_tokens=0)
    request = SimpleNamespace(origin_input_ids=[0] * prompt_len, sampling_params=sampling, rid="")
    Scheduler.init_req_max_new_tokens(scheduler, request)
    return int(sampling.max_new_tokens)


def longest_read(scheduler: Any, prompt_len: int, path_len: int, block_size: int) -> int:
    """Positions that the last round of all reads: the one that overlap scheduling launches too many.

    The prompt's forward gives the first token; a round with m tokens so far has prompt + m - 1 of them in its prefix.
    The last real one lacks a single token and accepts a path; the next one's drafter reads a block past that.
    """
    last_real_prefix = prompt_len + max(answer_len(scheduler, prompt_len) - 2, 0)
    return last_real_prefix + path_len + block_size


@pytest.mark.parametrize("path_len", [4, 8, 16])
@pytest.mark.parametrize("context_len", [64, 192, 4096, 5000])
def test_no_round_reads_past_the_context(published: SimpleNamespace, context_len: int, path_len: int) -> None:
    published.speculative_num_steps = path_len - 1
    scheduler, stock = lowered(context_len), stock_scheduler(context_len)
    longest_prompt = scheduler.max_req_input_len - 1
    for prompt_len in {1, 2, longest_prompt // 2, longest_prompt - 1, longest_prompt}:
        # No more than needed is taken away: four tokens, which SGLang's own limits leave already. A block whose root
        # proposes, too, is a token shorter than its longest path.
        assert longest_read(scheduler, prompt_len, path_len, path_len) == context_len - 4
        assert longest_read(scheduler, prompt_len, path_len, path_len - 1) == context_len - 5
        assert longest_read(stock, prompt_len, path_len, path_len - 1) > context_len


def test_an_open_or_too_long_answer_ends_at_the_limit_and_a_short_one_where_it_asked(
    published: SimpleNamespace,
) -> None:
    scheduler = lowered(192)
    assert answer_len(scheduler, 100) == 192 - 2 - 32 - 100
    assert answer_len(scheduler, 100, asked=92) == 58
    assert answer_len(scheduler, 100, asked=7) == 7


@pytest.mark.parametrize("truncate", [False, True])
def test_a_prompt_that_only_stock_would_take_is_refused_with_the_limit_or_cut_to_it(
    published: SimpleNamespace, truncate: bool
) -> None:
    from sglang.srt.managers.utils import validate_input_length

    scheduler = lowered(192)
    longest = 192 - context_limit.STOCK_ROOM - 32
    assert scheduler.max_req_input_len - 1 == longest
    request = SimpleNamespace(origin_input_ids=[0] * longest)
    assert validate_input_length(request, scheduler.max_req_input_len, truncate) is None
    request.origin_input_ids.append(0)
    message = validate_input_length(request, scheduler.max_req_input_len, truncate)
    if truncate:
        assert message is None
        assert len(request.origin_input_ids) <= longest + 1
    else:
        assert message is not None
        assert "exceeds the maximum allowed length (154 tokens)" in message


@pytest.mark.parametrize(("pool_tokens", "longest"), [(100, 99), (159, 158), (160, 159), (161, 159), (1000, 159)])
def test_a_pool_that_is_shorter_than_what_is_left_keeps_its_own_limit(
    published: SimpleNamespace, pool_tokens: int, longest: int
) -> None:
    scheduler = lowered(192, pool_tokens)
    assert (scheduler.max_req_len, scheduler.max_req_input_len) == (longest, longest - 5)


@pytest.mark.parametrize("change", ["host", "other algorithm", "none"])
def test_other_algorithms_and_the_host_keep_stocks_limits(
    published: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    if change == "host":
        monkeypatch.setattr(context_limit, "is_device_path", lambda: False)
    else:
        published.speculative_algorithm = None if change == "none" else "DFLASH"
    assert vars(lowered(192)).items() >= {"max_req_len": 191, "max_req_input_len": 186}.items()


def test_the_limit_is_logged_once(published: SimpleNamespace, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, context_limit.logger.name):
        for published.tp_rank in (0, 1):
            lowered(192)
    (message,) = caplog.messages
    assert "158 tokens together, and takes prompts of up to 153: 32 tokens at the end of the context of 192" in message


def test_a_context_without_room_for_a_prompt_is_refused(published: SimpleNamespace) -> None:
    context_limit.check_context_len(40, 16)
    assert lowered(40).max_req_input_len - 1 == 1
    with pytest.raises(DDTreeConfigError, match=r"at least 40 tokens, two of a round's longest paths of 16 .*, got 39"):
        context_limit.check_context_len(39, 16)


def test_the_scheduler_asks_for_its_limits_where_our_hook_ends() -> None:
    """The hook runs after the limits are set and before anything is admitted by them."""
    import inspect

    from sglang.srt.managers.scheduler import Scheduler

    init = inspect.unwrap(Scheduler.init_model_worker)
    assert {"max_req_len", "max_req_input_len", "get_worker_info"} <= set(init.__code__.co_names)
