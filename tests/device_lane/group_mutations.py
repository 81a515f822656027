"""Faults of rounds that concern more than one server or group of ranks: what `mutations` is for one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.device_lane.attention_mutations import set_attribute as _set


def idle_group_waits_for_a_block() -> None:
    """A group without a request takes part as SGLang's chain does: with as many tokens as the drafter's block has."""
    from sglang.srt.speculative.dflash_worker_v2 import DFlashWorkerV2

    from ddtree_sglang.engine.stages import attention_ranks

    def idle_round(worker: Any, batch: Any, on_publish: Callable[..., None]) -> Any:
        return DFlashWorkerV2.forward_batch_generation(worker, batch, on_publish)

    _set(attention_ranks, "idle_round", idle_round)


def padding_has_no_cells() -> None:
    """The mask ends with the batch's own requests."""
    from ddtree_sglang.engine.stages import attention_ranks

    _set(attention_ranks, "padded_mask", lambda mask, *_: mask)


def padding_has_no_links() -> None:
    """Nodes of recurrent layers have parents and children in the batch's own requests alone."""
    from ddtree_sglang.engine.stages import attention_ranks

    _set(attention_ranks, "padded_links", lambda children, siblings, _: (children, siblings))


def idle_group_verifies_padding() -> None:
    """A group without a request says that it has a verify, of which SGLang makes one where layers are recurrent."""
    from ddtree_sglang.engine.stages import attention_ranks
    from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput

    _set(attention_ranks, "IdleVerifyInput", DDTreeVerifyInput)


def pictures_are_left_out_between_layers() -> None:
    """Of a picture the first layer alone gets something, where each of the first ones has a part of its own added."""
    from sglang.srt.models.qwen3_vl_moe import Qwen3MoeLLMModel

    original = Qwen3MoeLLMModel.forward

    def forward(model: Any, *given: Any, **named: Any) -> Any:
        return original(model, *given, **named | {"input_deepstack_embeds": None})

    _set(Qwen3MoeLLMModel, "forward", forward)


def width_of_the_groups_own_load() -> None:
    """Each group chooses how many nodes it verifies by the requests that it has itself."""
    from ddtree_sglang.engine.stages import round_budget

    _set(round_budget, "attends_in_groups", lambda: False)


def drafters_keys_stay_where_they_were_made() -> None:
    """Of a prompt that another server prefills, the target's keys are sent alone."""
    from sglang.srt.speculative.base_spec_worker import BaseSpecWorker

    _set(BaseSpecWorker, "primary_draft_kv_pool", None)


def first_token_of_another_server_is_counted_twice() -> None:
    """A request that another server prefilled is adopted with its root among the tokens before."""
    from ddtree_sglang.engine.stages.node_penalties import PenaltyTable

    original = PenaltyTable._open_rows

    def open_rows(table: Any, *arguments: Any, roots: int = 0) -> None:
        original(table, *arguments, roots=0)

    _set(PenaltyTable, "_open_rows", open_rows)


GROUP_MUTATIONS = (
    width_of_the_groups_own_load,
    idle_group_waits_for_a_block,
    padding_has_no_cells,
    padding_has_no_links,
    idle_group_verifies_padding,
    pictures_are_left_out_between_layers,
    drafters_keys_stay_where_they_were_made,
    first_token_of_another_server_is_counted_twice,
)
