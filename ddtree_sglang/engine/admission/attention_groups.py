"""What is refused of a server under data-parallel attention, where groups of ranks attend for requests of their own."""

from __future__ import annotations

from typing import Any

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.admission.drafter_families import SERVED_IN_GROUPS, family_of
from ddtree_sglang.engine.admission.recurrent_checks import GATED_DELTA
from ddtree_sglang.engine.admission.rules import ArgumentRule, broken_rule
from ddtree_sglang.engine.spec import ALGORITHM
from ddtree_sglang.exceptions import DDTreeConfigError

GROUP_RULES: tuple[ArgumentRule, ...] = (
    # Its shards are then those of one group, which ranks its own requests' candidates; SGLang's chain wants it, too
    # (speculative_hook.py, _handle_dflash).
    ArgumentRule(
        lambda cfg: not cfg.enable_dp_lm_head, "needs an LM head of each group's own; add --enable-dp-lm-head."
    ),
    # Eager answers were right, those of graphs were not: SGLang lays out which adapter each token of all groups has.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_lora or cfg.lora_paths),
        "verifies wrongly with adapters in a graph; remove --enable-lora / --lora-paths.",
    ),
    # All groups' nodes go through one collective, and each group measures and learns from its own rounds.
    ArgumentRule(
        lambda _cfg: DDTreeConfig.from_env().policy == "adaptive",
        "verifies one number of nodes on all ranks, which no group may choose by its own rounds; use "
        "--speculative-ddtree-policy load or fixed.",
    ),
    # Of a batch in a graph, those of other requests.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_return_routed_experts),
        "returns wrong experts; remove --enable-return-routed-experts.",
    ),
    # With some of them each rank knows its own count of tokens alone, and would replay a graph beside an idle group.
    ArgumentRule(
        lambda cfg: cfg.moe_a2a_backend != "none",
        "has not been run with an expert-parallel transport; remove --moe-a2a-backend.",
    ),
    # An update of weights is taken on all ranks or on none, and they agree in one place of the loop.
    ArgumentRule(
        lambda cfg: bool(cfg.enable_dp_attention_local_control_broadcast),
        "needs control requests at all groups at once; remove --enable-dp-attention-local-control-broadcast.",
    ),
    # Groups would verify different numbers of nodes, and forwards that they share would wait for one another.
    ArgumentRule(
        lambda _cfg: _gathers_nothing(),
        "counts the requests of all groups before each round; unset SGLANG_SCHEDULER_SKIP_ALL_GATHER.",
    ),
)

GROUP_TARGETS = (
    "DeepseekV3ForCausalLM",
    "GptOssForCausalLM",
    *GATED_DELTA,
    "KimiK25ForConditionalGeneration",
    "KimiK3ForConditionalGeneration",
    "MellumForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3VLMoeForConditionalGeneration",
)
"""Classes that were run with groups. Others shard attention over all ranks, whose groups would add up each other's
tokens: models/llama.py asks for the whole tensor-parallel size, as does what derives from it. Nemotron-H's layers give
back no residual in a group that stays idle (models/nemotron_h.py).
"""


def _gathers_nothing() -> bool:
    from sglang.srt.environ import envs

    return bool(envs.SGLANG_SCHEDULER_SKIP_ALL_GATHER.get())


def attends_in_groups(cfg: Any) -> bool:
    """Whether these arguments ask for DP attention, by its flag or by its older one."""
    return bool((cfg.attn_dp_size or 1) > 1 or cfg.enable_dp_attention)


def check_groups(cfg: Any, drafter: dict[str, Any]) -> None:
    """Under DP attention, refuse what has not been shown there.

    Args:
        cfg: the arguments.
        drafter: the drafter's parsed `config.json`.

    Raises:
        DDTreeConfigError: the first rule that is broken; or the drafter is of a family that was not shown.
    """
    if not attends_in_groups(cfg):
        return
    if (message := broken_rule(GROUP_RULES, cfg)) is not None:
        raise DDTreeConfigError(f"{ALGORITHM} under DP attention (--attn-dp-size) {message}")
    family = family_of(drafter)
    if family.name not in SERVED_IN_GROUPS:
        raise DDTreeConfigError(
            f"{ALGORITHM} under DP attention (--attn-dp-size) takes drafters of {', '.join(SERVED_IN_GROUPS)}, got "
            f"one of {family.name}; remove --attn-dp-size, or use another drafter."
        )


def check_groups_target(cfg: Any, architecture: str) -> None:
    """Under DP attention, refuse a target of a class that was not run.

    Raises:
        DDTreeConfigError: it is of another class.
    """
    if not attends_in_groups(cfg):
        return
    if architecture not in GROUP_TARGETS:
        raise DDTreeConfigError(
            f"{ALGORITHM} under DP attention (--attn-dp-size) has been run with {', '.join(GROUP_TARGETS)} only, "
            f"got {architecture}; remove --attn-dp-size."
        )
