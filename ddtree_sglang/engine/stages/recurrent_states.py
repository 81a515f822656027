"""The target's recurrent states: after a round each is that of the last accepted node.

In a tree's verify SGLang's linear attention reads the state of a node's parent and keeps one per node beside the
requests' own (layers/attention/hybrid_linear_attn_backend.py, layers/attention/linear/gdn_backend.py). A convolution's
own state is overwritten by it, so a round that commits nothing would leave rubbish. `commit_mamba_states_after_verify`
(speculative/spec_utils.py) copies the states of the nodes that it is told.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.configs.hybrid_arch import mambaish_config
from sglang.srt.runtime_context import get_disagg, mamba_track_grid
from sglang.srt.speculative.spec_utils import commit_mamba_states_after_verify

from ddtree_sglang.core.state_commit import state_steps
from ddtree_sglang.engine.spec import ALGORITHM

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from ddtree_sglang.core.round_commit import RoundCommit

logger = logging.getLogger(__name__)

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class RecurrentStates:
    """The states of one target that has any."""

    target_worker: Any

    @classmethod
    def of(cls, target_worker: Any) -> RecurrentStates | None:
        """None for a target whose layers all attend."""
        if mambaish_config(target_worker.model_runner.model_config) is None:
            return None
        return cls(target_worker)

    def commit(self, batch: ScheduleBatch, commit: RoundCommit, prefix_lens: torch.Tensor, num_nodes: int) -> None:
        """Make the states of the accepted nodes the requests' own, and hand the prefix cache those it waits for.

        The target's runner must have the attention backend that has verified.

        Args:
            batch: the batch as the verify left it, with the slots that the prefix cache waits for.
            commit: what the round made final.
            prefix_lens: `[B]` int64, committed lengths before the round.
            num_nodes: N of the round.
        """
        interval = None
        if batch.mamba_track_indices is not None:
            interval = mamba_track_grid(batch.tree_cache.page_size)
        steps = state_steps(commit.path, prefix_lens, interval)
        commit_mamba_states_after_verify(
            self.target_worker,
            batch,
            commit.accept_lens,
            commit.path.accept_index,
            num_nodes,
            prepared_step_indices=(steps.last, steps.tracked),
        )

    def log_memory(self, max_requests: int) -> None:
        """One line with what the states of nodes take; a server that prefills for others has none."""
        if get_disagg().disaggregation_mode == "prefill":
            return
        of_node, num_nodes = bytes_of_node(self.target_worker.model_runner.req_to_token_pool)
        logger.info(
            "%s keeps the target's recurrent state at every node: %.3f MiB a node and request on each GPU, %.1f MiB a "
            "request of %d nodes, %.0f MiB for %d requests. Fewer nodes or requests take less: "
            "--speculative-ddtree-budget, --max-running-requests.",
            ALGORITHM,
            of_node / MIB,
            of_node * num_nodes / MIB,
            num_nodes,
            of_node * num_nodes * max_requests / MIB,
            max_requests,
        )


def bytes_of_node(states_pool: Any) -> tuple[int, int]:
    """Bytes of one node's states in all layers, and the nodes of a request that there is room for."""
    states_of_nodes = states_pool.mamba_pool.mamba_cache
    states = [states_of_nodes.intermediate_ssm, *states_of_nodes.intermediate_conv_window]
    # [layers, requests, nodes, ...]
    of_node = sum(state[:, 0, 0].numel() * state.element_size() for state in states)
    return of_node, int(states[0].shape[2])
