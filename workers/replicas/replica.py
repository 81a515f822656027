"""One replica: `ray.serve.llm`'s `SGLangServer` with our ranks, a health check that makes a token, and token streams.

Inherited: building SGLang's `RayEngine` inside a Serve replica, chat templates, and the OpenAI methods of
`ray.serve.llm`. Added: ranks that load plugins; the replica ends when one of its ranks dies; a limit on restarts; all
of SGLang's sampling parameters; `generate_tokens`, from which the ingress makes answers that survive a replica.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from ray.llm._internal.serve.engines.sglang.sglang_engine import SGLangServer

from workers.answers.protocol import Attempt, Refused, TokenChunk
from workers.cluster.loopback import bind_replica_to_loopback
from workers.config import WorkerConfig
from workers.replicas.engine_process import EngineProcess
from workers.replicas.shared_memory import load_file, remove_unused
from workers.replicas.supervision import FIRST_TOKEN, IMPORTING, LOADING, READY, SUPERVISOR, TokenClock

logger = logging.getLogger(__name__)


class DDTreeServer(SGLangServer):  # type: ignore[misc]
    """The deployment class of a replica.

    Args:
        llm_config: `ray.serve.llm`'s LLMConfig.
        worker_config: the fields of `WorkerConfig`.
    """

    def __init__(self, llm_config: Any, worker_config: dict[str, Any]) -> None:
        self._config = WorkerConfig(**worker_config)
        bind_replica_to_loopback()
        _wait_for_restart_budget()
        _report(IMPORTING)
        # Shared memory of replicas that were killed before they could remove it.
        remove_unused()
        from sglang.srt.plugins import load_plugins

        from workers.replicas.rank_actor import RankPlacement, install_rank_actors

        load_plugins()
        install_rank_actors(RankPlacement(self._config.cpus_per_rank))
        started = time.monotonic()
        _report(LOADING)
        super().__init__(llm_config)
        # SGLang's own exit handler kills this process's whole tree, and starts another Ray if this one is shut down.
        atexit.unregister(self.engine.shutdown)
        result = self.engine._scheduler_init_result
        files = [load_file(self.engine.port_args)]
        self._max_input_len = int(result.scheduler_infos[0]["max_req_input_len"]) - 1
        self._process = EngineProcess(result.scheduler_actors, result.block_until_scheduler_exits, files)
        self._progress = TokenClock(fresh_s=self._config.health_check_period_s)
        _report(FIRST_TOKEN)
        logger.info("engine of %d ranks up after %.0f s", self._config.tp_size, time.monotonic() - started)

    async def check_health(self) -> None:
        """Make a token, unless one came out lately. A replica that makes none in time ends itself with its ranks.

        Serve calls this before it sends the first request, so a replica counts as ready only after a real token.
        """
        if self._progress.is_fresh():
            return
        # The first token also waits for the detokenizer's process to start.
        first = self._progress.never()
        patience_s = self._config.startup_timeout_s if first else self._config.health_check_timeout_s
        try:
            await asyncio.wait_for(self._one_token(), timeout=patience_s)
        except TimeoutError:
            self._process.end(f"no token within {patience_s:.0f} s")
        else:
            if first:
                _report(READY)

    async def generate_tokens(self, attempt: Attempt) -> AsyncGenerator[TokenChunk, None]:
        """Stream the tokens of one attempt.

        Raises:
            Refused: SGLang refused the request, before or after it was queued; or the answer so far is longer than
                this engine's longest prompt, so it would be cut.
        """
        if attempt.num_emitted and len(attempt.input_ids) > self._max_input_len:
            raise Refused(
                f"an answer can go on here only if prompt and answer so far fit this engine's longest prompt of "
                f"{self._max_input_len} tokens, got {len(attempt.input_ids)}; ask for fewer tokens, or give the engine "
                "more memory for its KV cache."
            )
        yield TokenChunk(attempt.number, attempt.num_emitted, ())
        async for chunk in self._engine_chunks(attempt):
            if chunk.token_ids:
                self._progress.token()
            yield chunk

    async def stats(self) -> dict[str, Any]:
        """The ranks' pings, the number of requests in this process, and SGLang's own state."""
        pings = await asyncio.get_running_loop().run_in_executor(None, self._process.pings)
        state = await self.engine.tokenizer_manager.get_internal_state()
        return {"ranks": pings, "running": len(self.engine.tokenizer_manager.rid_to_state), "engine": state}

    async def __del__(self) -> None:
        """Called by Serve after the last answer of a replica that it takes down."""
        if hasattr(self, "_process"):
            _report_retirement()
            self._process.retire()

    async def _one_token(self) -> None:
        """Return once the engine made a token, for this question or for another request."""
        while not self._progress.is_fresh():
            try:
                await self._ask_for_a_token()
            except Exception as error:  # noqa: BLE001  (only the time limit decides)
                # A full engine refuses for a while, but makes others' tokens. One that always refuses runs out of time.
                logger.warning("no token for the health check: %s: %s", type(error).__name__, error)
                await asyncio.sleep(0.5)

    async def _ask_for_a_token(self) -> None:
        request = Attempt(f"health-{uuid.uuid4().hex}", 0, (0,), 0, {"max_new_tokens": 1, "temperature": 0.0})
        waiting = asyncio.ensure_future(anext(self._engine_chunks(request)))
        try:
            # In a full replica the question waits, but tokens of other requests come out.
            while not waiting.done() and not self._progress.is_fresh():
                await asyncio.wait({waiting}, timeout=0.2)
            if waiting.done():
                waiting.result()
                self._progress.token()
        finally:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiting

    async def _engine_chunks(self, attempt: Attempt) -> AsyncIterator[TokenChunk]:
        """Run an attempt in the engine. However this ends early, the engine's work on it is aborted."""
        from sglang.srt.managers.io_struct import GenerateReqInput

        manager = self.engine.tokenizer_manager
        request = GenerateReqInput(
            rid=attempt.engine_request_id,
            input_ids=list(attempt.input_ids),
            sampling_params=dict(attempt.sampling),
            return_logprob=attempt.return_logprob,
            top_logprobs_num=attempt.top_logprobs_num,
            stream=True,
            **attempt.extra,
        )
        sent, finished = 0, False
        try:
            async for answer in manager.generate_request(request, None):
                chunk = _chunk(attempt, answer, sent)
                sent += len(chunk.token_ids)
                finished = chunk.finish_reason is not None
                yield chunk
        except ValueError as error:
            finished = True
            raise Refused(str(error)) from error
        finally:
            if not finished:
                manager.abort_request(attempt.engine_request_id)


def _chunk(attempt: Attempt, answer: dict[str, Any], sent: int) -> TokenChunk:
    """The tokens after the first `sent` of a streamed answer; SGLang 0.5.23 streams all tokens so far."""
    meta = answer["meta_info"]
    reason = meta.get("finish_reason")
    if reason is not None and reason["type"] == "abort" and reason.get("status_code") is not None:
        raise Refused(reason.get("message", "the engine aborted the request"), int(reason["status_code"]))
    light = {key: value for key, value in meta.items() if not key.startswith("output_t")}
    return TokenChunk(
        attempt=attempt.number,
        first=attempt.num_emitted + sent,
        token_ids=tuple(answer["output_ids"][sent:]),
        logprobs=tuple((meta.get("output_token_logprobs") or ())[sent:]),
        top_logprobs=tuple((meta.get("output_top_logprobs") or ())[sent:]),
        finish_reason=reason,
        meta=light,
    )


def _supervisor() -> Any:
    from ray import serve

    return serve.get_deployment_actor(SUPERVISOR)


def _wait_for_restart_budget() -> None:
    """Wait as long as the restart budget says; raises `RestartBudgetSpentError` if it is spent."""
    import ray

    wait_s = ray.get(_supervisor().start.remote())
    if wait_s:
        logger.warning("a replica died; waiting %.0f s before this one starts", wait_s)
        time.sleep(wait_s)


def _report(stage: str) -> None:
    from ray import serve

    # Only a person who watches reads it: a supervisor that is gone for a moment must not end the start.
    with contextlib.suppress(Exception):
        _supervisor().reached.remote(serve.get_replica_context().replica_tag, stage)


def _report_retirement() -> None:
    # At shutdown Serve may end the supervisor before its replicas.
    with contextlib.suppress(Exception):
        _supervisor().retired.remote()
