"""`DDTreeSpecAlgo`: what DDTREE answers when SGLang asks what kind of algorithm it is.

A custom algorithm is duck-typed against SGLang's `SpeculativeAlgorithm` enum (speculative/spec_registry.py). The
base class lacks four methods that 0.5.23 calls without asking; they are all here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sglang.srt.speculative.spec_registry import CustomSpecAlgo

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.engine.admission.server_args import resolve_server_args
from ddtree_sglang.exceptions import DDTreeError


class DDTreeSpecAlgo(CustomSpecAlgo):
    """DDTREE drafts like DFLASH and verifies like EAGLE; these flags say which parts of the engine that switches on."""

    def is_dflash(self) -> bool:
        """The drafter is DFlash's: its pools, its context features, its parallel layout."""
        return True

    def is_dflash_family(self) -> bool:
        """Target hidden states are captured for the drafter, and the drafter's KV cache gets its share."""
        return True

    def supports_target_verify_for_draft(self) -> bool:
        """The draft block runs in TARGET_VERIFY mode."""
        return True

    def supports_prefill_shared_read_done(self) -> bool:
        """Nothing reads the shared buffers after the target's prefill."""
        return True

    def supports_grammar_overlap(self) -> bool:
        """A round takes the scheduler's barrier, and advances the grammars behind its verify (node_grammar.py)."""
        return True

    def supports_mixed_chunk(self) -> bool:
        """A running request takes part in another's prefill with its root alone, as in plain decoding."""
        return True

    def has_draft_kv(self) -> bool:
        """No per-branch draft KV: the drafter writes one block, whatever the tree."""
        return False

    def handle_server_args(self, server_args: Any) -> None:
        """Resolve and check the arguments; the message is for the user, so no traceback is needed to read it."""
        resolve_server_args(server_args)

    def get_num_tokens_per_req_for_target_verify(self, num_draft_tokens: int, is_draft_worker: bool) -> int:
        """The target verifies N nodes, the drafter runs a block of R tokens: what CUDA graphs are captured at."""
        if not is_draft_worker:
            return num_draft_tokens
        from sglang.srt.runtime_context import get_spec

        return int(get_spec().speculative_dflash_block_size)

    def create_future_map(
        self, device: Any, req_to_token_pool: Any, needs_cpu_seq_lens: bool = True, needs_confidence_relay: bool = False
    ) -> Any:
        """The relay between overlapped rounds, as the built-in algorithms make it (speculative/spec_info.py)."""
        from sglang.srt.managers.overlap_utils import FutureMap

        return FutureMap(device, self, req_to_token_pool, needs_cpu_seq_lens, needs_confidence_relay)

    def build_disagg_draft_input(self, batch: Any, last_tokens_tensor: Any, future_map: Any) -> Any:
        """What travels to the first round of requests that another server has prefilled: their first tokens.

        The drafter's keys and values came with the target's (speculative/dflash_disaggregation.py).
        """
        from sglang.srt.speculative.dflash_disaggregation import build_dflash_disagg_draft_input

        from ddtree_sglang.engine.stages.kv_window import DDTreeDraftInput

        chain = build_dflash_disagg_draft_input(batch, last_tokens_tensor, future_map)
        return DDTreeDraftInput.carry(chain.bonus_tokens, chain.new_seq_lens, chain.future_indices)

    def need_topk(self) -> bool:
        """Only the bonus token and the new length travel between rounds."""
        return False

    def carries_draft_hidden_states(self) -> bool:
        """The drafter's context is in its KV cache, not in a relayed tensor."""
        return False

    def get_platform_worker_cls(self) -> type | None:
        """One worker for every platform."""
        return None


class RefusedSpecAlgo(CustomSpecAlgo):
    """Stands in for DDTREE when the plugin could not register, so that the user sees the reason.

    SGLang logs and swallows what a plugin raises; without this the user would read "Unknown speculative algorithm".
    """

    reason: DDTreeError

    def handle_server_args(self, server_args: Any) -> None:
        """Raise what went wrong at registration."""
        raise self.reason


class UntestedSpecAlgo(DDTreeSpecAlgo):
    """DDTREE on a release of SGLang that was not tested: refused, unless the arguments allow it.

    The plugin runs before any argument is read, so that this is the first moment at which they can.
    """

    reason: DDTreeError
    start: Callable[[], None]

    def handle_server_args(self, server_args: Any) -> None:
        """Resolve the arguments as for the tested release, or raise why this one is refused."""
        if not DDTreeConfig.from_env().untested_engine:
            raise self.reason
        self.start()
        super().handle_server_args(server_args)
