"""`DDTreeWorker`: one round, top to bottom: draft, build, verify, accept, commit, and the drafter's context.

It inherits what DFLASH and DDTREE share from SGLang's `DFlashWorkerV2` (speculative/dflash_worker_v2.py): the
drafter's construction, its KV cache, the prefill. The decode round is its own. It follows the spec-v2 schema: it
serves overlapped scheduling, where the scheduler passes `on_publish`, and synchronous scheduling, where it reads
`new_seq_lens` from the result.

What it does not know: how a tree is built, walked or masked; that is `ddtree_sglang.core`, which `RoundTrees` calls for
the device at hand. Invariant that callers rely on: after a round, the target's and the drafter's KV of a request are
final for exactly its committed tokens.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.arg_groups.overrides import resolving_view
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.lora.layers import unwrap_lora_layer
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.runtime_context import get_disagg, get_exec, get_parallel, get_spec
from sglang.srt.speculative.dflash_worker_v2 import DFlashWorkerV2, _resolve_dflash_embedding_module
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from sglang.srt.speculative.spec_utils import draft_tp_context

from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.built_tree import BuiltTree, root_trees
from ddtree_sglang.core.round_commit import RoundCommit
from ddtree_sglang.engine.admission.default_policy import config_of
from ddtree_sglang.engine.admission.split_servers import check_split_loaded
from ddtree_sglang.engine.admission.target_checks import check_loaded_target, check_target_backend
from ddtree_sglang.engine.debug.rank_check import require_equal_trees
from ddtree_sglang.engine.debug.sync_check import forbid_sync
from ddtree_sglang.engine.debug.trace import RoundTrace, facts_of_trees
from ddtree_sglang.engine.device_path import is_device_path
from ddtree_sglang.engine.graphs.drafter_tail import DraftGraphTail, GraphTrees
from ddtree_sglang.engine.graphs.node_counts import NodeCountStates
from ddtree_sglang.engine.graphs.rehearsal import rehearse_penalties, rehearse_rounds, rehearse_windows
from ddtree_sglang.engine.graphs.target import install_tree_graph_runner
from ddtree_sglang.engine.pair_watch import PairWatch
from ddtree_sglang.engine.round_result import result_of_round
from ddtree_sglang.engine.stages import attention_ranks
from ddtree_sglang.engine.stages.budget_policy import make_policy
from ddtree_sglang.engine.stages.candidates import BlockRoots
from ddtree_sglang.engine.stages.draft_block import DraftBlock
from ddtree_sglang.engine.stages.draft_context import DraftContext, may_wait
from ddtree_sglang.engine.stages.final_states import hand_out_prompt_states, hand_out_round_states, keep_final_states
from ddtree_sglang.engine.stages.kv_moves import make_mover
from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput, RoundWindow, plan_slots
from ddtree_sglang.engine.stages.node_grammar import BatchGrammars
from ddtree_sglang.engine.stages.node_penalties import PenaltyTable
from ddtree_sglang.engine.stages.node_processors import choice_by_processors
from ddtree_sglang.engine.stages.ranking import make_ranking
from ddtree_sglang.engine.stages.recurrent_states import RecurrentStates
from ddtree_sglang.engine.stages.request_texts import RequestTexts
from ddtree_sglang.engine.stages.retraction_copies import copy_beside_the_targets
from ddtree_sglang.engine.stages.round_budget import make_round_budget
from ddtree_sglang.engine.stages.round_ends import EndsOfBatches
from ddtree_sglang.engine.stages.routed_experts import experts_of_path, make_capture_room
from ddtree_sglang.engine.stages.sampling_supports import NodeSupports
from ddtree_sglang.engine.stages.target_attention import adapt_attention, masked_window
from ddtree_sglang.engine.stages.target_choice import NodeAdjustments, choose_target_tokens
from ddtree_sglang.engine.stages.trees import DeviceTrees, TreeBuild, WantedTrees, make_trees, mask_buffers
from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput, make_verify_input

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import ScheduleBatch


def _publish_nothing(_new_seq_lens: torch.Tensor) -> None:
    """Synchronous scheduling reads the new lengths from the result."""


class DDTreeWorker(DFlashWorkerV2):
    """Speculative worker of `--speculative-algorithm DDTREE`, on every platform."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        self.config = config_of(resolving_view(server_args))
        self.num_nodes = int(get_spec().speculative_num_draft_tokens)
        runner = target_worker.model_runner
        check_loaded_target(runner)
        install_tree_graph_runner(runner)
        keep_final_states(runner.model)
        # The drafter's backends and buffers are sized for its block, not for the tree.
        with self._draft_scope():
            super().__init__(server_args, gpu_id, nccl_port, target_worker)
        self.speculative_num_draft_tokens = self.num_nodes
        self.trace = RoundTrace.of(self.config, server_args, self.device, get_parallel().tp_rank)
        self.draft_block = DraftBlock(
            self.draft_model_runner,
            unwrap_lora_layer(_resolve_dflash_embedding_module(self.draft_model, runner.model)),
            self._full_embed_gpu,
            self._noise_embed_scale,
            int(self._mask_token_id),
            self._draft_block_spec_info,
        )
        self.pair_watch = PairWatch.of(self)
        top_k, ranks = self.config.candidates_per_depth(self.num_nodes), attention_ranks.ranks_of_batch()
        head = self.draft_model_runner, runner.model, self.draft_block.embedding, ranks
        self.ranking = make_ranking(*head, top_k, int(self.block_size))
        self.max_path_len = self.ranking.max_path_len
        self.trees = make_trees(self.ranking)
        # Behind the ranking, with which the last product's form is chosen: costs are kept by the forms.
        policy = make_policy(self.config, self.num_nodes, any_width=not is_device_path())
        self.budget = make_round_budget(policy, self.config, server_args, (runner.model, self.draft_model))
        self.texts = RequestTexts.of(self.config, self.ranking, int(runner.model_config.vocab_size))
        has_host_cache, mode = server_args.enable_hierarchical_cache, get_disagg().disaggregation_mode
        waits = may_wait(scores_pairs=self.ranking.scorer is not None, has_host_cache=has_host_cache, mode=mode)
        self.context = DraftContext(self._append_target_hidden_to_draft_kv_by_loc, waits=waits)
        self.ends = EndsOfBatches(self.num_nodes, self.device)
        self.states = RecurrentStates.of(target_worker)
        self.node_counts = NodeCountStates(runner, {})

    # -- construction: what DFlashWorkerV2 does, at the drafter's block size --------------------------------------

    @staticmethod
    def _draft_scope() -> Any:
        spec = get_spec()
        return spec.override(
            speculative_num_steps=1,
            speculative_eagle_topk=1,
            speculative_num_draft_tokens=int(spec.speculative_dflash_block_size),
        )

    def alloc_memory_pool(self, *args: Any, **kwargs: Any) -> None:
        """Allocate the drafter's pools."""
        with self._draft_scope():
            super().alloc_memory_pool(*args, **kwargs)

    def init_attention_backends(self) -> None:
        """Build the drafter's attention backend; the target's pool, whose rows a round moves, is there by now."""
        check_target_backend(self.model_runner)
        check_split_loaded(get_disagg(), self.model_runner)
        adapt_attention(self.model_runner)
        make_capture_room(int(self.model_runner.max_running_requests) * self.num_nodes)
        with self._draft_scope():
            super().init_attention_backends()
        if self.states is not None:
            self.states.log_memory(int(self.model_runner.max_running_requests))
        self.draft_block = self.draft_block.within(self.draft_window_size, int(self.page_size), self.model_runner)
        self.mover = make_mover(self.model_runner.token_to_kv_pool)
        self.mover.warm_up(self.max_path_len)
        copy_beside_the_targets(self.model_runner.token_to_kv_pool_allocator, self.draft_model_runner.token_to_kv_pool)
        self.penalties = PenaltyTable.of(self.model_runner, self.device)
        if self.ranking.scorer is not None:
            self.ranking.scorer.prepare(self.penalties.num_slots)

    def init_cuda_graphs(self) -> None:
        """Capture the drafter's graph, with the tree at its end; the target's is captured by now, its buffer there."""
        batch_sizes = get_exec().graph.cuda_graph_config.decode.bs
        if is_device_path():
            rehearse_penalties(self.max_path_len, self.penalties.vocab_size, self.device)
            rehearse_windows(self.budget.policy.node_counts, masked_window(self.model_runner), self.device)
            with draft_tp_context(self.draft_parallel_layout):
                rehearse_rounds(
                    self.ranking, self.budget.policy.node_counts, self.model_runner.req_to_token_pool.req_to_token
                )
            if batch_sizes:
                self._use_graphs(batch_sizes)
        with self._draft_scope():
            super().init_cuda_graphs()

    def _use_graphs(self, batch_sizes: list[int]) -> None:
        """Make what rounds need of graphs; `batch_sizes` are those that the server was asked to capture."""
        counts = self.budget.policy.node_counts
        self.node_counts = NodeCountStates.capture(self.model_runner, counts)
        buffers = mask_buffers(
            {num_nodes: self.node_counts.backend(num_nodes) for num_nodes in counts},
            deterministic=bool(get_exec().deterministic.enable_deterministic_inference),
        )
        if attention_ranks.attends_in_groups():
            self.trees = DeviceTrees(self.ranking, buffers)
            return  # SGLang captures no graphs of the drafter
        max_batch = self.node_counts.max_batch(batch_sizes)
        tail = DraftGraphTail(
            self.ranking,
            num_nodes=self.num_nodes,
            max_batch=max_batch,
            flat_mask=DeviceTrees(self.ranking, buffers).flat_mask_for(max_batch, self.num_nodes),
            device=self.device,
        )
        self.trees = GraphTrees(self.ranking, buffers, tail)
        self.draft_model_runner.capture_tail_hooks.append(tail)

    def prewarm_sampling(self) -> Any:
        """Rehearse the target's sampler; a tree is sampled by it, not by DFLASH's chain kernel."""
        return self.model_runner.prewarm_sampling()

    def _defer_target_verify_gather(self) -> None:
        """Keep the target's logits whole: every node's row is read."""

    def _maybe_build_draft_sampler(self) -> None:
        """DFLASH's in-graph sampler keeps the argmax alone; `DraftGraphTail` takes its place."""

    def _validate_phase1_sampling_support(self, batch: ScheduleBatch) -> None:
        """Every sampling parameter that a request is admitted with is honoured exactly (see target_choice)."""

    def _make_next_draft_input_prefill(self, *, bonus_tokens: torch.Tensor, seq_lens: torch.Tensor) -> DDTreeDraftInput:
        return DDTreeDraftInput.carry(bonus_tokens.to(torch.int64), seq_lens.to(torch.int64))

    # -- one round --------------------------------------------------------------------------------------------------

    def forward_batch_generation(
        self,
        batch: ScheduleBatch,
        on_publish: Callable[[torch.Tensor], None] | None = None,
        grammar_barrier: Any = None,
        pp_proxy_tensors: Any = None,
    ) -> GenerationBatchResult:
        """Prefill as DFLASH does; decode one round."""
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch:
            self.penalties.prefill(batch)
            self.context.flush()
            result = super().forward_batch_generation(batch, on_publish, grammar_barrier, pp_proxy_tensors)
            self._keep_anchors(batch)
            self.texts.read(batch)
            self.budget.interrupt()
            if result.logits_output is not None:
                hand_out_prompt_states(batch, result.logits_output)
            return result
        if batch.forward_mode.is_idle():
            return attention_ranks.idle_round(self, batch, on_publish or _publish_nothing)
        with torch.inference_mode(), forbid_sync(self.config.check_sync and batch.seq_lens.is_cuda):
            return self._decode_round(batch, on_publish or _publish_nothing, grammar_barrier)

    def _decode_round(
        self,
        batch: ScheduleBatch,
        on_publish: Callable[[torch.Tensor], None],
        grammar_barrier: Callable[[], None] | None = None,
    ) -> GenerationBatchResult:
        stage = self.trace.stage
        with stage("prepare"):
            window = self._open_window(batch)
        grammars = BatchGrammars.of(batch, grammar_barrier)
        build = self._draft(batch, window, grammars)
        with stage("build"):
            built = self._build(build, window)
            if built.tree.num_nodes < window.num_nodes:
                translator = self.model_runner.kv_index_translator
                window = window.narrowed(built.tree.num_nodes, translator, batch.req_pool_indices)
            verify_input = self._verify_input(built, window)
            if grammars is not None:
                grammars.follow(built)
        with stage("verify"), self.node_counts.active(window.num_nodes):
            target_out = self._verify(batch, verify_input, built, window)
        with stage("accept"):
            commit, target_ids = self._accept(batch, built, window, target_out.logits_output, grammars)
            on_publish(commit.new_seq_lens)
        with stage("commit"):
            self._commit(batch, commit, window)
            experts = experts_of_path(target_out, window, commit.context_rows)
        with stage("context"):
            self.context.extend(commit, window, target_out.logits_output.hidden_states)
            self._keep_anchors(batch)
            hand_out_round_states(batch, target_out.logits_output, commit.context_rows, self.max_path_len)
        self.budget.end(built.tree, commit.path)
        self._trace_round(batch, window, built, commit.path)
        return result_of_round(
            target_out,
            commit,
            experts,
            num_nodes=window.num_nodes,
            most_nodes=self.num_nodes,
            keep_alive=[window, built, verify_input, target_ids],
        )

    def _open_window(self, batch: ScheduleBatch) -> RoundWindow:
        state = batch.spec_info
        if not isinstance(state, DDTreeDraftInput):
            raise TypeError(f"a decode batch carries DDTreeDraftInput between rounds, got {type(state).__name__}")
        prefix_lens = batch.seq_lens
        if is_device_path():
            # Made by the previous round on another stream.
            prefix_lens.record_stream(torch.get_device_module(self.device).current_stream())
        runner = self.model_runner
        root_ids = state.bonus_tokens.to(torch.int64)
        ends = self.ends.of(batch.reqs)
        host_lens = batch.seq_lens_cpu if batch.seq_lens_cpu is not None else state.nxt_kv_lens_cpu
        inputs = self.trees.inputs(
            runner.req_to_token_pool.req_to_token,
            batch.req_pool_indices,
            prefix_lens,
            root_ids,
            mask_token_id=self.draft_block.mask_token_id,
            num_nodes=self.budget.begin(batch, ends, host_lens),
            block_size=self.ranking.block_size,
        )
        plan = plan_slots(runner.kv_index_translator, batch.req_pool_indices, prefix_lens, host_lens, inputs)
        return RoundWindow(prefix_lens, root_ids, inputs, host_lens, plan, ends.ends, self.max_path_len)

    def _draft(self, batch: ScheduleBatch, window: RoundWindow, grammars: BatchGrammars | None) -> TreeBuild:
        """Run the drafter and rank what it proposes per position; a round of one node drafts nothing."""
        if window.num_nodes == 1:
            return root_trees
        with self.trace.stage("draft"):
            self.context.flush()
            forward_batch = self.draft_block.forward_batch(batch, window)
            with draft_tp_context(self.draft_parallel_layout):
                out = self.draft_model_runner.forward(forward_batch)
                roots = BlockRoots(window.root_ids, batch.req_pool_indices)
                texts = self.texts.of_batch(batch, window.root_ids)
                return self.trees.draft(out, roots, WantedTrees(window.num_nodes, grammars, self.budget.cut, texts))

    def _build(self, build: TreeBuild, window: RoundWindow) -> BuiltTree:
        """Keep the N - 1 most probable prefixes as a tree, laid out and masked."""
        built = build(window.root_ids, window.prefix_lens)
        if self.config.check_ranks:
            require_equal_trees(built, attention_ranks.ranks_of_batch())
        return built

    def _verify_input(self, built: BuiltTree, window: RoundWindow) -> DDTreeVerifyInput:
        mask = self.trees.verify_mask(built, window.prefix_lens, window.total_prefix_len)
        return make_verify_input(built, self.max_path_len, mask, window.inputs.node_slots.view(-1), window.plan)

    def _verify(
        self, batch: ScheduleBatch, verify_input: DDTreeVerifyInput, built: BuiltTree, window: RoundWindow
    ) -> Any:
        """One target forward over all nodes of all requests."""
        batch.spec_info = verify_input
        forward_batch = attention_ranks.prepare_verify(verify_input, batch, self.target_worker, built, window)
        return self.target_worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)

    def _accept(
        self,
        batch: ScheduleBatch,
        built: BuiltTree,
        window: RoundWindow,
        logits_output: Any,
        grammars: BatchGrammars | None,
    ) -> tuple[RoundCommit, torch.Tensor]:
        """Let the target choose at every node, and follow its choices from the root."""
        # Ranks must agree on what was drawn; a no-op on one rank, and for greedy unless asked for.
        is_greedy = batch.sampling_info is None or batch.sampling_info.is_all_greedy
        site = SpecTpSyncSite.DFLASH_ACCEPT_GREEDY if is_greedy else SpecTpSyncSite.DFLASH_ACCEPT_SAMPLE
        agree = partial(self._tp_sync.sync, site)
        sampler = self.model_runner.sampler
        logits = logits_output.next_token_logits
        supports = NodeSupports.of(batch.sampling_info, sampler, built.tree.num_nodes)
        masking = None if grammars is None else grammars.masking(logits)
        ends = window.ends if grammars is None else grammars.limit(window.ends)
        target_ids = choose_target_tokens(
            logits,
            batch.sampling_info,
            built.layout.positions,
            supports or sampler,
            keep_logits=batch.return_logprob,
            adjustments=NodeAdjustments(
                penalties=self.penalties.change(batch, built.tree),
                grammar=masking,
                processors=choice_by_processors(batch, built, ends, sampler, agree, supports),
            ),
        )
        agree(target_ids)
        commit = self.trees.walk(built, target_ids, window.prefix_lens, ends)
        self.penalties.count(batch, window.root_ids, commit)
        if supports is not None:
            logits_output.sampling_mask_output = supports.of_path(commit.path)
        if batch.return_logprob:
            index = commit.path.accept_index
            compute_spec_logprobs(
                batch,
                logits_output,
                target_ids.reshape(-1),
                accept_index=torch.where(index >= 0, index + built.layout.root_rows, index),
            )
        return commit, target_ids

    def _commit(self, batch: ScheduleBatch, commit: RoundCommit, window: RoundWindow) -> None:
        """Move the target's KV rows of the accepted nodes to the front of the window, and keep their last states."""
        self.mover.move(window.inputs.node_slots, commit.path)
        if self.states is not None:
            with self.node_counts.active(window.num_nodes):
                self.states.commit(batch, commit, window.prefix_lens, window.num_nodes)

    def _keep_anchors(self, batch: ScheduleBatch) -> None:
        """Give the drafter's head the projected features of each request's last committed token, if it reads them."""
        if self.ranking.scorer is not None and self._lilicorr_anchor is not None:
            self.ranking.scorer.keep(batch.req_pool_indices, self._lilicorr_anchor)

    def _trace_round(self, batch: ScheduleBatch, window: RoundWindow, built: BuiltTree, accepted: AcceptedPath) -> None:
        self.trace.end_round(
            lambda: {
                "batch_size": len(batch.reqs),
                "request_ids": [req.rid for req in batch.reqs],
                "prefix_lens": window.prefix_lens,
                "node_limits": window.ends.node_limits,
                **facts_of_trees(built, accepted),
                "free_slots": self.model_runner.token_to_kv_pool_allocator.available_size(),
                **self.budget.facts(),
            }
        )
