"""What is refused of servers that share requests out: one prefills, another one decodes.

SGLang sends the drafter's keys of a prompt with the target's, for DDTREE as for DFLASH, because both say that their
drafter has a pool of its own (managers/scheduler.py, `init_disaggregation`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ddtree_sglang.engine.admission.drafter_families import SERVED_SPLIT, family_of
from ddtree_sglang.engine.admission.rules import ArgumentRule, broken_rule
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.spec import ALGORITHM, serves_ddtree
from ddtree_sglang.exceptions import DDTreeConfigError

SPLIT_RULES: tuple[ArgumentRule, ...] = (
    ArgumentRule(lambda _cfg: not is_device_path(), "has not been run without a GPU; use one server for both."),
    ArgumentRule(
        lambda cfg: bool(cfg.disaggregation_decode_enable_offload_kvcache),
        "has not been run with a decoding server that offloads keys; remove "
        "--disaggregation-decode-enable-offload-kvcache.",
    ),
    # One pool of all layers has no buffers of the drafter's to send (mem_cache/unified_draft_pool.py).
    ArgumentRule(
        lambda cfg: bool(cfg.enable_unified_memory or cfg.enable_page_major_kv_layout),
        "sends the drafter's keys from a pool of their own; remove --enable-unified-memory and "
        "--enable-page-major-kv-layout.",
    ),
    # A prefill that is given up for others, for want of slots, has put its first token into its grammar, and keeps that
    # token's log-probability (disaggregation/prefill.py, optimistic_release_and_requeue). Late slots never do so.
    ArgumentRule(
        lambda cfg: (
            cfg.optimistic_prefill_attempts > 0 and cfg.disaggregation_decode_allocation_policy != "prefill_complete"
        ),
        "would take a first token into a grammar twice, where a prefill is given up for others; remove "
        "--optimistic-prefill-attempts, or let --disaggregation-decode-allocation-policy be prefill_complete.",
    ),
    ArgumentRule(
        lambda cfg: cfg.disaggregation_decode_host_receive_threshold != 1,
        "has not been run with keys that arrive on the host; remove --disaggregation-decode-host-receive-threshold.",
    ),
    # It takes the last token twice when a retracted request comes back (decode_schedule_batch_mixin.py,
    # process_prebuilt, by `current_token`, which that backend never sets).
    ArgumentRule(
        lambda cfg: cfg.grammar_backend == "llguidance",
        "keeps grammars through a retraction with xgrammar only; change --grammar-backend.",
    ),
    # What it keeps in the request's parameters stays on the server that prefilled; a thinking budget is one, too.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_custom_logit_processor),
        "calls a logit processor on two servers, which each know of their own calls; remove "
        "--enable-custom-logit-processor.",
    ),
    # After /pause_generation with mode "retract" the other server prefills anew, and is not told the adapter
    # (schedule_batch.py, Req.build_rebootstrap_payload).
    ArgumentRule(
        lambda cfg: bool(cfg.enable_lora or cfg.lora_paths),
        "prefills without the adapter after a pause; remove --enable-lora / --lora-paths.",
    ),
    # The rows of a prompt are the prefilling server's, those of an answer the other one's.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_return_hidden_states),
        "returns no hidden states; remove --enable-return-hidden-states.",
    ),
    ArgumentRule(
        lambda cfg: bool(cfg.enable_return_routed_experts),
        "returns no routed experts; remove --enable-return-routed-experts.",
    ),
    ArgumentRule(
        lambda cfg: bool(cfg.enable_streaming_session),
        "has not been run with sessions; remove --enable-streaming-session.",
    ),
)


def is_split(cfg: Any) -> bool:
    """Whether this server prefills for others, or decodes what others have prefilled."""
    return bool(cfg.disaggregation_mode != "null")


def check_split(cfg: Any, drafter: dict[str, Any]) -> None:
    """Of a server that prefills or decodes alone, refuse what has not been shown there.

    Args:
        cfg: the arguments.
        drafter: the drafter's parsed `config.json`.

    Raises:
        DDTreeConfigError: the first rule that is broken; or the drafter is of a family that was not shown.
    """
    if not is_split(cfg):
        return
    about = f"{ALGORITHM} with --disaggregation-mode {cfg.disaggregation_mode}"
    if (message := broken_rule(SPLIT_RULES, cfg)) is not None:
        raise DDTreeConfigError(f"{about} {message}")
    family = family_of(drafter)
    if family.name not in SERVED_SPLIT:
        raise DDTreeConfigError(
            f"{about} takes drafters of {', '.join(SERVED_SPLIT)}, got one of {family.name}; use another "
            "drafter, or one server for both."
        )


def check_split_target(cfg: Any, is_recurrent: bool) -> None:
    """Of a server that decodes alone, refuse overlapped scheduling where its target keeps recurrent states.

    A request that is retracted for want of slots takes its state to the host and comes back with it. Where scheduling
    overlaps, a round of it is in flight then, whose tokens are dropped (scheduler_components/
    batch_result_processor.py) and whose state is kept: the request would go on with tokens that it has not.

    Raises:
        DDTreeConfigError: it has recurrent layers, and scheduling overlaps.
    """
    if cfg.disaggregation_mode == "decode" and is_recurrent and not cfg.disable_overlap_schedule:
        raise DDTreeConfigError(
            f"{ALGORITHM} with --disaggregation-mode decode keeps the state of a retracted request as of its last "
            "token only without overlapped scheduling, for a target with recurrent layers; add "
            "--disable-overlap-schedule to this server. The one that prefills needs it for LFM2-VL alone."
        )


def check_split_loaded(cfg: Any, runner: Any) -> None:
    """What only a loaded target's runner knows: its windows.

    Raises:
        DDTreeConfigError: it has windows whose keys are in no pool of their own, for the two servers would not notice
            that one has such a pool, or are in pages of several tokens.
    """
    if not is_split(cfg) or not runner.sliding_window_size:
        return
    if not runner.model_config.is_hybrid_swa:
        raise DDTreeConfigError(
            f"{_not_run(cfg)} sliding windows without a pool of their own; remove --disable-hybrid-swa-memory."
        )
    if int(runner.page_size) != 1:
        raise DDTreeConfigError(
            f"{_not_run(cfg)} sliding windows in pages of several tokens, got {runner.page_size}; remove --page-size."
        )


def _not_run(cfg: Any) -> str:
    return f"{ALGORITHM} with --disaggregation-mode {cfg.disaggregation_mode} has not been run for a target with"


def refuse_other_sizes(original: Callable[..., None], receiver: Any, prefill_dp_rank: int) -> None:
    """AROUND hook on `CommonKVReceiver.init`: a request that ranks of another number have prefilled fails.

    SGLang would cut the target's keys to this server's heads, and the drafter's with them, which has not been shown.
    Each rank of the decoding server comes to the same end, so that they agree on the request's; the prefilling server
    is told nothing and gives its part up by its own timeout, as for what SGLang itself refuses here.
    """
    manager = receiver.kv_mgr
    found = manager.prefill_info_table.get(receiver.bootstrap_addr)
    is_open = serves_ddtree() and receiver.conclude_state is None
    if not is_open or found is None or found.attn_tp_size == manager.attn_tp_size:
        original(receiver, prefill_dp_rank)
        return
    receiver.abort()
    manager.record_failure(
        receiver.bootstrap_room,
        f"{ALGORITHM} with --disaggregation-mode decode has not been run with other numbers of ranks that attend for a "
        f"request (--tp-size over --attn-dp-size), got {manager.attn_tp_size} here and {found.attn_tp_size} at "
        f"{receiver.bootstrap_addr}; start both with the same.",
    )
