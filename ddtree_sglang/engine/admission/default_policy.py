"""The policy of a server whose configuration names none: measured costs where that was run, else a fixed budget.

Measured costs are the better choice on a CPU: sixteen nodes are too many there from a few requests at once
(benchmarks/results/decode-20261127-one-server.md). On a GPU a verify of sixteen nodes costs little more than one of a
single node, each further width is captured in graphs of its own, and measured costs were slow in their one run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ddtree_sglang.config import DDTreeConfig, Policy
from ddtree_sglang.engine.admission.attention_groups import attends_in_groups
from ddtree_sglang.engine.admission.split_servers import is_split
from ddtree_sglang.engine.device_path import is_device_path


def config_of(cfg: Any) -> DDTreeConfig:
    """The configuration of the environment, `with_policy` of this server."""
    return with_policy(DDTreeConfig.from_env(), cfg)


def with_policy(config: DDTreeConfig, cfg: Any) -> DDTreeConfig:
    """The configuration with its policy named; the same in every process of a server.

    Args:
        cfg: the server's arguments, or a view of them.

    Raises:
        DDTreeConfigError: it names a time for measuring, and this server would have a fixed budget.
    """
    return config if config.policy is not None else replace(config, policy=_default(cfg))


def _default(cfg: Any) -> Policy:
    # What a server that is asked for the same output each time verifies may not hang on a clock.
    keeps_still = is_device_path() or attends_in_groups(cfg) or is_split(cfg) or cfg.enable_deterministic_inference
    return "fixed" if keeps_still else "adaptive"
