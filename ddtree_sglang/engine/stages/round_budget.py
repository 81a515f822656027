"""What the worker asks of a policy in each round: how many nodes, how many of them to keep, and what came of it.

A fixed budget and one that follows the load answer the first question alone (`stages.budget_policy`). The adaptive one
(`stages.adaptive_budget`) also looks at trees that the host has, and learns.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.runtime_context import get_parallel

from ddtree_sglang.core.compiled import compile_loops
from ddtree_sglang.core.cost_model import CostModel
from ddtree_sglang.engine.device_path import is_device_path, product_forms
from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
from ddtree_sglang.engine.stages.attention_ranks import attends_in_groups
from ddtree_sglang.engine.stages.budget_policy import BUDGET_STEPS
from ddtree_sglang.engine.stages.cost_file import CostFile, cost_folder, machine_facts
from ddtree_sglang.engine.stages.node_processors import has_processors
from ddtree_sglang.engine.stages.round_records import RoundRecord, Totals, host_trees

if TYPE_CHECKING:
    from sglang.srt.managers.schedule_batch import ScheduleBatch

    from ddtree_sglang.config import DDTreeConfig
    from ddtree_sglang.core.acceptance import AcceptedPath
    from ddtree_sglang.core.draft_tree import DraftTree
    from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
    from ddtree_sglang.engine.stages.round_ends import BatchEnds
    from ddtree_sglang.engine.stages.trees import TreeCut

logger = logging.getLogger(__name__)


class RoundBudget:
    """Of a policy that reads the batch size alone, under DP attention that of all groups together."""

    def __init__(self, policy: BudgetPolicy) -> None:
        self.policy = policy

    def begin(self, batch: ScheduleBatch, ends: BatchEnds, host_lens: torch.Tensor | None) -> int:
        """Nodes a request that the round drafts for, 1 for none.

        Args:
            host_lens: `[B]` committed lengths on the host, or a bound of them; None if it does not know them.
        """
        if attends_in_groups():
            return self.of_all_groups(batch)
        return self.policy.num_nodes(len(batch.reqs), ends.most_nodes)

    def of_all_groups(self, batch: ScheduleBatch) -> int:
        """The same under DP attention, where each group knows of the others how many requests they have, and no more.

        SGLang's scheduler has gathered those before each round, so that ranks agree without a message.
        """
        return self.policy.num_nodes(sum(batch.global_num_tokens))

    @property
    def cut(self) -> TreeCut | None:
        """Says how many nodes of the round's trees are verified; None: all."""
        return None

    def end(self, tree: DraftTree, path: AcceptedPath) -> None:
        """What the round verified and accepted, on whatever device."""

    def interrupt(self) -> None:
        """A prefill was run between rounds."""

    def facts(self) -> dict[str, Any]:
        """What a trace's line says of the choice."""
        return {}

    @property
    def totals(self) -> Totals | None:
        """What choices have come to, None where none is made."""
        return None

    def costs(self) -> dict[str, Any]:
        """What rounds cost here, for who asks the server; empty where nothing is measured."""
        return {}


class AdaptiveRounds(RoundBudget):
    """Of policy "adaptive": the first rank's choice, which the other ranks of its group are told."""

    def __init__(self, policy: BudgetPolicy, costs: CostFile, *, lag: int) -> None:
        super().__init__(policy)
        parallel = get_parallel()
        self._decides = parallel.tp_rank == 0
        self._costs = costs
        if self._decides:
            most = policy.node_counts[-1]
            logger.info("a round verifies 1 to %d nodes a request, as measured costs say.", most)
            compile_loops()
        self.budget = AdaptiveBudget(policy.node_counts, costs.load() if self._decides else None, lag=lag)
        self._lag = lag
        self._of_host_work: AdaptiveBudget | None = None
        self._chosen = self.budget
        self._group = parallel.tp_group.cpu_group if parallel.tp_size > 1 else None
        self._reqs: Sequence[Any] = ()
        self._limits: tuple[int, ...] = ()
        self._has_trees = not is_device_path()  # at hand, on the host
        self._narrows, self._learns = False, True

    def begin(self, batch: ScheduleBatch, ends: BatchEnds, host_lens: torch.Tensor | None) -> int:
        """See `RoundBudget.begin`; grammars plant their trees at the width that is chosen before the draft."""
        self._reqs, self._limits, self._learns = batch.reqs, ends.node_limits, ends.learns
        self._narrows = self._has_trees and ends.adapts and not batch.has_grammar
        most_nodes = super().begin(batch, ends, host_lens)
        if not self._decides:
            return self._told(most_nodes)
        before, self._chosen = self._chosen, self._budget_of(batch)
        if batch.after_idle_gap or self._chosen is not before:
            self._chosen.interrupt()
        mean_prefix = 1.0 if host_lens is None else float(sum(host_lens.tolist())) / max(len(batch.reqs), 1)
        asked = batch.reqs, ends.node_limits, mean_prefix, most_nodes
        if not ends.adapts:
            return self._told(self._chosen.begin_fixed(*asked))
        return self._told(self._chosen.begin(*asked, narrows=self._narrows))

    def _budget_of(self, batch: ScheduleBatch) -> AdaptiveBudget:
        """Rounds in which the host works for each node cost more by width, and accept other tokens: one of their own.

        It begins with what is known of other rounds, as of a file, and is not kept on disk.
        """
        if not _works_per_node(batch):
            return self.budget
        if self._of_host_work is None:
            known = CostModel.from_json(self.budget.costs.to_json())
            totals = self.budget.totals
            self._of_host_work = AdaptiveBudget(self.budget.widths, known, lag=self._lag, totals=totals)
        return self._of_host_work

    @property
    def cut(self) -> TreeCut | None:
        """The nodes that bring the most tokens per second, of trees on the host."""
        return self._cut if self._narrows else None

    def _cut(self, tree: DraftTree) -> int:
        num_nodes = tree.num_nodes
        if self._decides:
            trees = host_trees(tree.logprobs, tree.parents, tree.depths)
            num_nodes = self._chosen.narrow(self._reqs, self._limits, trees)
        return self._told(num_nodes)

    def end(self, tree: DraftTree, path: AcceptedPath) -> None:
        """Keep copies of what a drafted round was, to learn from when the host knows its end."""
        if not self._decides:
            return
        record = None
        if tree.num_nodes > 1 and self._learns:
            record = RoundRecord.of(self._reqs, self._limits, None if self._narrows else tree, path)
        self._chosen.end(record, counts=self._learns)
        self._costs.count_round(self.budget.costs)

    @property
    def totals(self) -> Totals | None:
        """Of the rank that decides."""
        return self.budget.totals if self._decides else None

    def costs(self) -> dict[str, Any]:
        """The table, the widths, those between which the others lie, and what a request is expected to have accepted of
        each; kept on disk by the way.
        """
        if not self._decides:
            return {}
        self._costs.save_asked(self.budget.costs)
        steps = {*BUDGET_STEPS, self.budget.widths[-1] - 1}
        return {
            "file": None if self._costs.path is None else str(self._costs.path),
            "nodes": list(self.budget.widths),
            "steps": [width for width in self.budget.widths if width - 1 in steps],
            "drafted": self.budget.usual_drafted,
            "cells": self.budget.costs.to_json(),
        }

    def interrupt(self) -> None:
        """The time up to the next round is not a round's."""
        self._chosen.interrupt()

    def facts(self) -> dict[str, Any]:
        """The choice, in words and numbers, and what a round before it took: a round's own time is not over yet."""
        chosen, measured = self._chosen.decision, self._chosen.measured
        facts = {
            "decision": chosen.name,
            "expected_tokens": round(chosen.tokens, 4),
            "expected_ms": round(1e3 * chosen.seconds, 4),
        }
        if measured is not None:
            facts["measured"] = {
                "rounds_ago": measured.rounds_ago,
                "ms": round(1e3 * measured.seconds, 4),
                "expected_ms": round(1e3 * measured.expected_seconds, 4),
            }
        return facts

    def _told(self, num_nodes: int) -> int:
        """What the first rank says; a message between hosts, in which no device takes part."""
        if self._group is None:
            return num_nodes
        told = torch.tensor([num_nodes], dtype=torch.int64)
        torch.distributed.broadcast(told, src=torch.distributed.get_global_rank(self._group, 0), group=self._group)
        return int(told.item())


def _works_per_node(batch: ScheduleBatch) -> bool:
    """Grammars, custom processors and sampling masks, which are taken node by node on the host."""
    return batch.has_grammar or has_processors(batch) or any(req.return_sampling_mask for req in batch.reqs)


COST_FACTS = (
    "model_path",
    "revision",
    "dtype",
    "quantization",
    "kv_cache_dtype",
    "attention_backend",
    "tp_size",
    "dp_size",
    "page_size",
    "disable_cuda_graph",
    "disable_overlap_schedule",
    "enable_lora",
    "speculative_draft_model_path",
    "speculative_draft_model_revision",
    "speculative_draft_model_quantization",
    "speculative_draft_window_size",
    "speculative_draft_attention_backend",
    "decode_attention_backend",
    "prefill_attention_backend",
    "max_running_requests",
    "enable_deterministic_inference",
    "enable_torch_compile",
    "cpu_offload_gb",
)
"""Server arguments that a round's time hangs on."""


def make_round_budget(
    policy: BudgetPolicy, config: DDTreeConfig, server_args: Any, models: Sequence[torch.nn.Module]
) -> RoundBudget:
    """The one that the configuration names.

    Args:
        models: the target and the drafter, with all products in the form in which rounds will have them.
    """
    if config.policy != "adaptive":
        return RoundBudget(policy)
    # SGLang keeps a record as it was given, and what was made of it beside it: no round on a CPU is overlapped.
    cfg = resolving_view(server_args)
    facts = {**machine_facts(), **{field: getattr(cfg, field) for field in COST_FACTS}}
    facts |= {"nodes": policy.node_counts, "top_k": config.top_k, "traced": config.trace is not None}
    facts["ngrams"] = config.ngrams
    graphs = cfg.cuda_graph_config.decode
    facts |= {"graphs": graphs.backend, "graph_sizes": graphs.bs, "products": product_forms(models)}
    lag = int(not cfg.disable_overlap_schedule)
    return AdaptiveRounds(policy, CostFile.of(facts, cost_folder()), lag=lag)
