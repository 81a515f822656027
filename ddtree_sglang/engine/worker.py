"""`DDTreeWorker`: one round, top to bottom: draft, build, verify, accept, commit, and the drafter's context.

It inherits what DFLASH and DDTREE share from SGLang's `DFlashWorkerV2` (speculative/dflash_worker_v2.py): the
drafter's construction, its KV cache, the prefill. The decode round is its own. It follows the spec-v2 schema: it
serves overlapped scheduling, where the scheduler passes `on_publish`, and synchronous scheduling, where it reads
`new_seq_lens` from the result.

What it does not know: how a tree is built, walked or masked; that is `ddtree_sglang.core`. Invariant that callers
rely on: after a round, the target's and the drafter's KV of a request are final for exactly its committed tokens.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from sglang.srt.layers.logprob_processor import compute_spec_logprobs
from sglang.srt.managers.utils import GenerationBatchResult
from sglang.srt.model_executor.forward_batch_info import CaptureHiddenMode, ForwardBatch, ForwardMode
from sglang.srt.runtime_context import get_exec, get_parallel, get_spec
from sglang.srt.speculative.dflash_utils import parse_dflash_draft_config
from sglang.srt.speculative.dflash_worker_v2 import DFlashWorkerV2, _resolve_dflash_embedding_module
from sglang.srt.speculative.eagle_utils import eagle_prepare_for_verify
from sglang.srt.speculative.spec_info import SpeculativeAlgorithm
from sglang.srt.speculative.spec_tp_sync import SpecTpSyncSite
from sglang.srt.speculative.spec_utils import draft_tp_context

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.built_tree import BuiltTree, root_trees
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.kv_commit import commit_plan
from ddtree_sglang.core.tree_layout import TreeLayout
from ddtree_sglang.engine.admission.target_checks import check_loaded_target
from ddtree_sglang.engine.debug.rank_check import require_equal_trees
from ddtree_sglang.engine.debug.sync_check import forbid_sync
from ddtree_sglang.engine.debug.trace import RoundTrace
from ddtree_sglang.engine.graphs.drafter_tail import DraftGraphTail
from ddtree_sglang.engine.graphs.node_counts import WidthStates
from ddtree_sglang.engine.graphs.target import install_tree_graph_runner
from ddtree_sglang.engine.stages.budget_policy import make_policy
from ddtree_sglang.engine.stages.candidates import DraftCandidates, VocabShard, rank_candidates
from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput, window_len, window_slots
from ddtree_sglang.engine.stages.target_choice import choose_target_tokens
from ddtree_sglang.engine.stages.trees import TreeStage
from ddtree_sglang.engine.stages.verify_input import DDTreeVerifyInput, make_verify_input
from ddtree_sglang.engine.stages.walk import walk
from ddtree_sglang.exceptions import DDTreeConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sglang.srt.managers.schedule_batch import ScheduleBatch
    from sglang.srt.mem_cache.kv_loc_plan import KVLocPlan


@dataclass(frozen=True, slots=True)
class RoundWindow:
    """Where a round of B requests reads and writes.

    Attributes:
        prefix_lens: [B] int64 committed lengths, without the root.
        root_ids: [B] int64.
        slots: [B, W] int64, W = max(F, N): the drafter's block takes the first F, the tree the first N.
        num_nodes: N of this round.
        host_lens: [B] on the host, an upper bound of the lengths that attention reads, or None.
        plan: SGLang's translation of the window's slots, made once for all forwards of the round.
    """

    prefix_lens: torch.Tensor
    root_ids: torch.Tensor
    slots: torch.Tensor
    num_nodes: int
    host_lens: torch.Tensor | None
    plan: KVLocPlan


class DDTreeWorker(DFlashWorkerV2):
    """Speculative worker of `--speculative-algorithm DDTREE`, on every platform."""

    def __init__(self, server_args: Any, gpu_id: int, nccl_port: int, target_worker: Any) -> None:
        spec = get_spec()
        self.config = DDTreeConfig.from_env()
        self.num_nodes = int(spec.speculative_num_draft_tokens)
        self.top_k = self.config.candidates_per_depth(self.num_nodes)
        self.policy = make_policy(self.config, self.num_nodes)
        runner = target_worker.model_runner
        check_loaded_target(runner)
        install_tree_graph_runner(runner)
        # The drafter's backends and buffers are sized for its block, not for the tree.
        with self._draft_scope():
            super().__init__(server_args, gpu_id, nccl_port, target_worker)
        if self.selector is not None or self.lilicorr is not None or self._is_domino:
            raise DDTreeConfigError(
                "DDTREE needs positions drafted independently of one another, got a drafter with a path-dependent "
                "head; use --speculative-algorithm DFLASH with it."
            )
        self.speculative_num_draft_tokens = self.num_nodes
        self.max_path_len = int(self.block_size)
        self.tree_stage = TreeStage(self.max_path_len)
        self._widths: WidthStates | None = None
        self._graph_tail: DraftGraphTail | None = None
        self.trace = RoundTrace(self.config.trace if get_parallel().tp_rank == 0 else None, self.device)
        self._shard = VocabShard.from_lm_head(
            runner.model.lm_head,
            parse_dflash_draft_config(draft_hf_config=self.draft_model_runner.model_config.hf_config),
            get_parallel().tp_group,
        )
        self._embedding = _resolve_dflash_embedding_module(self.draft_model, runner.model)

    # -- construction: what DFlashWorkerV2 does, at the drafter's width -------------------------------------------

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
        """Build the drafter's attention backend."""
        with self._draft_scope():
            super().init_attention_backends()

    def init_cuda_graphs(self) -> None:
        """Capture the drafter's graph, with the tree at its end; the target's is captured by now, its buffer there."""
        batch_sizes = get_exec().graph.cuda_graph_config.decode.bs
        if str(self.device).startswith("cuda") and batch_sizes:
            self._widths = WidthStates.capture(self.model_runner, self.policy.widths)
            for width in self.policy.widths:
                self.tree_stage.use_buffer_of(self._widths.backend(width), width)
            self._graph_tail = DraftGraphTail(
                self._shard,
                self.tree_stage,
                num_nodes=self.num_nodes,
                block_size=self.max_path_len,
                top_k=self.top_k,
                max_batch=self._widths.max_batch(batch_sizes),
                keep_candidates=len(self.policy.widths) > 1,
                device=self.device,
            )
            self.draft_model_runner.capture_tail_hooks.append(self._graph_tail)
        with self._draft_scope():
            super().init_cuda_graphs()

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
        if batch.forward_mode.is_extend() or batch.is_extend_in_batch or batch.forward_mode.is_idle():
            return super().forward_batch_generation(batch, on_publish, grammar_barrier, pp_proxy_tensors)
        with torch.inference_mode(), forbid_sync(self.config.check_sync and batch.seq_lens.is_cuda):
            return self._decode_round(batch, on_publish)

    def _decode_round(
        self, batch: ScheduleBatch, on_publish: Callable[[torch.Tensor], None] | None
    ) -> GenerationBatchResult:
        stage = self.trace.stage
        with stage("prepare"):
            window = self._open_window(batch)
        draft_out = None
        if window.num_nodes > 1:
            with stage("draft"):
                draft_out = self._draft(batch, window)
        with stage("build"):
            built = self._build(draft_out, window)
            if self.config.check_ranks:
                require_equal_trees(built, get_parallel().tp_group)
            tree, verify_input = built.tree, self._verify_input(built, window)
        with stage("verify"), self._widths.active(window.num_nodes) if self._widths else nullcontext():
            target_out = self._verify(batch, verify_input, window)
        with stage("accept"):
            accepted, target_ids = self._accept(batch, tree, verify_input, target_out.logits_output)
            new_seq_lens = window.prefix_lens + accepted.commit_lens
            if on_publish is not None:
                on_publish(new_seq_lens)
        with stage("commit"):
            self._commit(accepted, window)
        with stage("context"):
            self._extend_draft_context(accepted, built.layout, window, target_out.logits_output)
        if self.trace.enabled:
            self.trace.end_round(
                batch_size=len(batch.reqs),
                num_nodes=window.num_nodes,
                commit_lens=accepted.commit_lens,
                accept_index=accepted.accept_index,
                emitted_ids=accepted.token_ids,
                token_ids=tree.token_ids,
                parents=tree.parents,
                depths=tree.depths,
                path_probs=tree.logprobs.exp(),
                free_slots=self.model_runner.token_to_kv_pool_allocator.available_size(),
            )
        return self._result(target_out, accepted, new_seq_lens, keep_alive=[window, tree, verify_input, target_ids])

    def _open_window(self, batch: ScheduleBatch) -> RoundWindow:
        state = batch.spec_info
        if not isinstance(state, DDTreeDraftInput):
            raise TypeError(f"a decode batch carries DDTreeDraftInput between rounds, got {type(state).__name__}")
        prefix_lens = batch.seq_lens
        if prefix_lens.is_cuda:
            # Made by the previous round on another stream.
            prefix_lens.record_stream(torch.cuda.current_stream())
        runner = self.model_runner
        slots = window_slots(runner.req_to_token_pool.req_to_token, batch.req_pool_indices, prefix_lens, window_len())
        host_lens = batch.seq_lens_cpu if batch.seq_lens_cpu is not None else state.nxt_kv_lens_cpu
        num_nodes = self.policy.num_nodes(len(batch.reqs))
        plan = runner.kv_index_translator.plan(
            req_pool_indices=batch.req_pool_indices,
            seq_lens=prefix_lens,
            seq_lens_cpu=host_lens,
            write_virtual=slots[:, :num_nodes].reshape(-1),
            read_extent=slots.shape[1],
        )
        return RoundWindow(prefix_lens, state.bonus_tokens.to(torch.int64), slots, num_nodes, host_lens, plan)

    def _draft(self, batch: ScheduleBatch, window: RoundWindow) -> DraftCandidates | BuiltTree:
        """Run the block `[root, MASK x D]` through the drafter and rank what it proposes per position.

        A graph of the drafter ends with the tree itself.
        """
        block_size = self.max_path_len
        batch_size = window.root_ids.shape[0]
        block_ids = torch.full((batch_size, block_size), self._mask_token_id, device=self.device)
        block_ids[:, 0] = window.root_ids
        forward_batch = self._draft_batch(batch, window, block_ids)
        with draft_tp_context(self.draft_parallel_layout):
            out = self.draft_model_runner.forward(forward_batch)
            if self._graph_tail is not None and out.can_run_graph:
                is_widest = window.num_nodes == self.num_nodes
                return self._graph_tail.trees(batch_size) if is_widest else self._graph_tail.candidates(batch_size)
            hidden = out.logits_output.hidden_states.view(batch_size, block_size, -1)[:, 1:]
            return rank_candidates(hidden, self._shard, self.top_k)

    def _draft_batch(self, batch: ScheduleBatch, window: RoundWindow, block_ids: torch.Tensor) -> ForwardBatch:
        if self._full_embed_gpu is not None:
            embeds = torch.nn.functional.embedding(block_ids, self._full_embed_gpu)
        else:
            embeds = self._embedding(block_ids)
        if self._noise_embed_scale != 1.0:
            embeds = embeds * self._noise_embed_scale
        block_size = block_ids.shape[1]
        host_lens = window.host_lens if window.host_lens is not None else window.prefix_lens.cpu()
        # Backends plan for an upper bound: the committed length and one window.
        host_lens = (host_lens + window.slots.shape[1]).to(torch.int32)
        slots = window.slots[:, :block_size].reshape(-1)
        forward_batch = ForwardBatch(
            forward_mode=ForwardMode.TARGET_VERIFY,
            batch_size=block_ids.shape[0],
            input_ids=block_ids.flatten(),
            req_pool_indices=batch.req_pool_indices,
            seq_lens=window.prefix_lens,
            out_cache_loc=slots,
            seq_lens_sum=int(host_lens.sum()),
            seq_lens_cpu=host_lens,
            positions=(window.prefix_lens.unsqueeze(1) + self._block_pos_offsets).flatten(),
            input_embeds=embeds.view(-1, embeds.shape[-1]),
            spec_algorithm=SpeculativeAlgorithm.DFLASH,
            spec_info=self._draft_block_spec_info,
            capture_hidden_mode=CaptureHiddenMode.NULL,
            global_num_token_non_padded_cpu=block_ids.numel(),
            can_run_decode_cuda_graph=batch.can_run_decode_cuda_graph,
        )
        translator = self.draft_model_runner.kv_index_translator
        plan = translator.plan(
            req_pool_indices=batch.req_pool_indices,
            seq_lens=window.prefix_lens,
            seq_lens_cpu=host_lens,
            write_virtual=slots,
            read_extent=block_size,
        )
        plan.bind(forward_batch, translator)
        return forward_batch

    def _build(self, draft_out: DraftCandidates | BuiltTree | None, window: RoundWindow) -> BuiltTree:
        """Keep the N - 1 most probable prefixes as a tree, laid out and masked; done already after a graph."""
        if isinstance(draft_out, BuiltTree):
            return draft_out
        if draft_out is None:
            return root_trees(window.root_ids, window.prefix_lens)
        return self.tree_stage.build(draft_out, window.root_ids, window.prefix_lens, window.num_nodes)

    def _verify_input(self, built: BuiltTree, window: RoundWindow) -> DDTreeVerifyInput:
        total_prefix_len = None if window.host_lens is None else int(window.host_lens.sum())
        return make_verify_input(
            built,
            self.max_path_len,
            custom_mask=self.tree_stage.custom_mask(built, window.prefix_lens, total_prefix_len),
            out_cache_loc=window.slots[:, : window.num_nodes].reshape(-1),
            kv_loc_plan=window.plan,
        )

    def _verify(self, batch: ScheduleBatch, verify_input: DDTreeVerifyInput, window: RoundWindow) -> Any:
        """One target forward over all nodes of all requests."""
        batch.spec_info = verify_input
        saved = batch.seq_lens_cpu, batch.seq_lens_sum
        if window.host_lens is not None:
            batch.seq_lens_cpu = window.host_lens
            batch.seq_lens_sum = int(window.host_lens.sum())
        forward_batch, _ = eagle_prepare_for_verify(
            verify_input, self.model_runner.req_to_token_pool, batch, self.target_worker
        )
        batch.seq_lens_cpu, batch.seq_lens_sum = saved
        return self.target_worker.forward_batch_generation(batch=None, forward_batch=forward_batch, is_verify=True)

    def _accept(
        self, batch: ScheduleBatch, tree: DraftTree, verify_input: DDTreeVerifyInput, logits_output: Any
    ) -> tuple[AcceptedPath, torch.Tensor]:
        """Let the target choose at every node, and follow its choices from the root."""
        target_ids = choose_target_tokens(
            logits_output.next_token_logits,
            batch.sampling_info,
            verify_input.positions.view(tree.token_ids.shape),
            self.model_runner.sampler,
        )
        # Ranks must agree on what was drawn; a no-op on one rank, and for greedy unless asked for.
        site = SpecTpSyncSite.DFLASH_ACCEPT_SAMPLE
        if batch.sampling_info is None or batch.sampling_info.is_all_greedy:
            site = SpecTpSyncSite.DFLASH_ACCEPT_GREEDY
        self._tp_sync.sync(site, target_ids)
        accepted = walk(tree, verify_input, target_ids, self.max_path_len)
        if batch.return_logprob:
            index = accepted.accept_index
            compute_spec_logprobs(
                batch,
                logits_output,
                target_ids.reshape(-1),
                accept_index=torch.where(index >= 0, index + verify_input.retrieve_index[:, :1], index),
            )
        return accepted, target_ids

    def _commit(self, accepted: AcceptedPath, window: RoundWindow) -> None:
        """Move the target's KV rows of the accepted nodes to the front of the window."""
        moves = commit_plan(accepted)
        sources = window.slots.gather(1, moves.source_slots)
        targets = window.slots.gather(1, moves.target_slots)
        if targets.device.type == "cpu":
            # Most rows stay where they are; on the host, finding those that move costs less than copying them all.
            moved = sources != targets
            sources, targets = sources[moved], targets[moved]
        if targets.numel():
            self.model_runner.token_to_kv_pool.move_kv_cache(targets.reshape(-1), sources.reshape(-1))

    def _extend_draft_context(
        self, accepted: AcceptedPath, layout: TreeLayout, window: RoundWindow, logits_output: Any
    ) -> None:
        """Give the drafter the target's hidden states of the accepted nodes, as DFLASH does for its chain."""
        path_len = min(self.max_path_len, window.num_nodes)
        # P rows per request; where the path has ended, the root's again, which `commit_lens` leaves out.
        rows = layout.root_rows + accepted.accept_index[:, :path_len].clamp(min=0)
        slots = window.slots[:, :path_len].contiguous()
        self._append_target_hidden_to_draft_kv_by_loc(
            target_hidden=logits_output.hidden_states.index_select(0, rows.flatten()),
            cache_loc=slots.reshape(-1),
            cache_loc_2d=slots,
            positions=(window.prefix_lens.unsqueeze(1) + self._block_pos_offsets[:path_len]).flatten(),
            commit_lens=accepted.commit_lens,
        )
        # The scheduler copies what is left here to the host.
        logits_output.hidden_states = None

    def _result(
        self, target_out: Any, accepted: AcceptedPath, new_seq_lens: torch.Tensor, keep_alive: list[Any]
    ) -> GenerationBatchResult:
        return GenerationBatchResult(
            logits_output=target_out.logits_output,
            next_token_ids=accepted.token_ids.reshape(-1),
            accept_lens=accepted.commit_lens.to(torch.int32),
            can_run_cuda_graph=target_out.can_run_cuda_graph,
            next_draft_input=DDTreeDraftInput.carry(accepted.bonus_ids, new_seq_lens),
            speculative_num_draft_tokens=self.num_nodes,
            speculative_output_stride=self.max_path_len,
            new_seq_lens=new_seq_lens,
            extra_keep_alive_refs=keep_alive,
        )
