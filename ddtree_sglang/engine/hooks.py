"""What DDTREE does around functions of SGLang; `contract.patches` says around which."""

from __future__ import annotations

import logging
import multiprocessing
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from ddtree_sglang.engine.spec import is_ddtree, serves_ddtree
from ddtree_sglang.exceptions import DDTreeConfigError, DDTreeError

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import Req

logger = logging.getLogger(__name__)

_FROM_VALUES = (ArithmeticError, AssertionError, AttributeError, LookupError, TypeError, ValueError)
"""What follows from a request's values alone. Trouble of the machine is not among it: one rank may have it alone."""


def exit_on_bad_flag(original: Callable[..., Any], argv: list[str]) -> Any:
    """AROUND hook on `prepare_server_args`, which only command lines call: a mistake is one line, no traceback."""
    try:
        return original(argv)
    except DDTreeConfigError as error:
        raise SystemExit(f"error: {error}") from error


def exit_on_bad_arguments(original: Callable[..., None], server_args: Any) -> None:
    """AROUND hook on `ServerArgs.resolve_once`: what resolution refuses is one line, too, missing files first.

    What resolution must know of DDTREE is written into the arguments before: command lines and `Engine(...)` both come
    here. SGLang marks the arguments that came from a command line; `Engine(...)` keeps the exception.
    """
    from ddtree_sglang.engine import plugin
    from ddtree_sglang.engine.admission.attention_default import complete_raw_arguments
    from ddtree_sglang.engine.admission.server_args import check_checkpoints, check_port_is_free, check_resolved_target

    from_command_line = hasattr(server_args, "_launch_command")
    try:
        # SGLang reads the drafter's configuration before it asks the algorithm.
        check_checkpoints(server_args)
        # A child of the server resolves its copy again under Ray, when the server listens already.
        if from_command_line and multiprocessing.parent_process() is None:
            check_port_is_free(server_args)
        # Child processes get resolved arguments, sealed, and come here again.
        is_first = not getattr(server_args, "_resolution_finished", False)
        if is_first and not plugin.is_refused():
            complete_raw_arguments(server_args)
        original(server_args)
        check_resolved_target(server_args)
        if is_first and is_ddtree(server_args.speculative_algorithm):
            _say_what_graphs_take(server_args)
    except DDTreeError as error:
        if not from_command_line:
            raise
        raise SystemExit(f"error: {error}") from error


def _say_what_graphs_take(server_args: Any) -> None:
    from sglang.srt.arg_groups.overrides import resolving_view

    from ddtree_sglang.engine.admission.default_policy import config_of
    from ddtree_sglang.engine.admission.graph_memory import log_graph_memory
    from ddtree_sglang.engine.stages.budget_policy import make_policy

    cfg = resolving_view(server_args)
    log_graph_memory(server_args, make_policy(config_of(cfg), int(cfg.speculative_num_draft_tokens)).node_counts)


def refuse_what_came_another_way(
    original: Callable[..., None], scheduler: Any, request: Any, *args: Any, **kwargs: Any
) -> None:
    """AROUND hook on `Scheduler.handle_generate_request`: answer what is refused without a prefill.

    Requests are refused where they are tokenized (`engine.entry`). Processes that load no plugins send theirs unseen,
    such as several that serve an application of the user's own. A request with images goes on: SGLang releases them
    there. What raises while it is made of its values, on each rank alike, is answered, too; stock would end.
    """
    from ddtree_sglang.engine.admission.request_ids import check_id
    from ddtree_sglang.engine.entry.refusals import RequestRefused, refuse_unservable

    try:
        if request.mm_inputs is None:
            refuse_unservable(request, scheduler.model_config)
        if (reason := check_id(scheduler, request)) is not None:
            raise RequestRefused(reason)
        original(scheduler, request, *args, **kwargs)
    except RequestRefused as refused:
        _answer_with(HTTPStatus.BAD_REQUEST, scheduler, request, str(refused))
    except _FROM_VALUES as error:
        logger.exception("a request could not be made, rid=%r", request.rid)
        message = f"the request could not be made: {type(error).__name__}: {error}"
        _answer_with(HTTPStatus.INTERNAL_SERVER_ERROR, scheduler, request, message)


def _answer_with(status: HTTPStatus, scheduler: Any, request: Any, message: str) -> None:
    """As the scheduler answers what it aborts outside a batch (managers/scheduler.py, `send_abort_output`)."""
    from sglang.srt.managers.io_struct import AbortReq

    reason = {"type": "abort", "status_code": status, "message": message}
    scheduler.send_abort_output(AbortReq(rid=request.rid, finished_reason=reason), request)


def leave_nothing_that_runs(_result: None, req: Any, *_args: Any, **_kwargs: Any) -> None:
    """AFTER hook on `Req.set_finish_with_abort`, which keeps the request for a prefill of one token.

    That prefill would unpickle its processor, walk its grammar and read its embeddings for a prompt that is gone.
    """
    from sglang.srt.managers.schedule_batch import get_return_hidden_states_mode
    from sglang.srt.sampling.sampling_params import SamplingParams

    neutral = SamplingParams(max_new_tokens=1, temperature=0.0)
    neutral.normalize(None)
    req.sampling_params = neutral
    req.custom_logit_processor = None
    req.input_embeds = None
    req.positional_embed_overrides = None
    req.multi_item_delimiter_indices = None
    req.token_indices_to_pool = None
    req.return_hidden_states = False
    req.return_hidden_states_mode = get_return_hidden_states_mode(False)
    req.return_sampling_mask = False
    req.return_routed_experts = False
    req.return_indexer_topk = False


def refuse_unsupported_request(original: Callable[..., str | None], req: Req, enable_overlap: bool) -> str | None:
    """AROUND hook on `validate_dflash_request`: what DDTREE cannot answer exactly becomes a 400.

    The last look at a request, after sessions and images were read. It is prefilled as one token without its sampling.
    """
    from ddtree_sglang.engine.admission.request_rules import refusal

    if not serves_ddtree():
        return original(req, enable_overlap)
    return refusal(req)


def answer_sampling_masks(original: Callable[..., str | None], req: Req, spec_algorithm: Any) -> str | None:
    """AROUND hook on `validate_spec_sampling_mask_request`: what a chain cannot describe, a tree's sampler does.

    A chain is drawn from top-k and top-p alone, and greedily where its kernel is missing; a node by SGLang's sampler.
    """
    return None if serves_ddtree() else original(req, spec_algorithm)


def carry_no_hidden_states(original: Callable[[], bool]) -> bool:
    """AROUND hook on `spec_need_hidden_states`, which knows DFLASH by name: a round's hidden states stay in it."""
    return original() and not serves_ddtree()


def allow_adapters(original: Callable[[Any], None], server_args: Any) -> None:
    """AROUND hook on `check_lora_speculative_compatibility`, which refuses every algorithm that it does not know.

    A tree has the layout that SGLang's LoRA backends take for a verify, N rows per request one after the other
    (lora/utils.py, `generate_sequence_lengths`); what of its conditions holds for a tree is in `ADAPTER_RULES`.
    """
    if not is_ddtree(server_args.speculative_algorithm):
        original(server_args)


def keep_model_dtype(
    original: Callable[..., dict[str, Any]], runner: Any, forward_batch: Any, proxy: Any
) -> dict[str, Any]:
    """AROUND hook on `ModelRunner._extend_forward_kwargs`: input embeddings get the model's dtype.

    Stock casts them to bfloat16, and a float32 or float16 model then fails in its first matrix product: the drafter,
    DFLASH's as well as ours, in its first block, the target at a request with `input_embeds`, which ends the server.
    """
    kwargs = original(runner, forward_batch, proxy)
    if forward_batch.input_embeds is not None:
        kwargs["input_embeds"] = forward_batch.input_embeds.to(runner.dtype)
    return kwargs
