"""Batch generation: a JSONL file in, a JSONL file out. Each line is answered exactly once, whichever process dies.

    ray job submit -- python -m workers job --input IN.jsonl --output OUT.jsonl --config FILE

The replicas are a Serve application of the job, so supervision, restarts and resumption are those of serving. A line is
a chat ("messages") or text ("prompt") completion in OpenAI's form; its answer carries the line's index.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.answers.meta import accept_length
from workers.config import WorkerConfig
from workers.jobs.batch_file import AnswerFile, BatchLine, read_batch
from workers.progress import say, step
from workers.startup import run_application

PROGRESS_EVERY_S = 5.0
# Wait between two tries of a line that found every replica full or lost its replicas.
FIRST_RETRY_S, LONGEST_RETRY_S = 0.5, 30.0


@dataclass
class JobReport:
    """What this run of a job did.

    Attributes:
        spec_tokens: tokens of the attempts that reported how many verifications they took; a lost attempt reports none.
        accept_length: `spec_tokens` per verification, the bonus token included; None without speculation.
    """

    lines: int
    answered_before: int
    answered: int = 0
    failed: int = 0
    tokens: int = 0
    spec_tokens: float = 0.0
    verifies: int = 0
    seconds: float = 0.0
    lost_workers: int = 0
    retries: int = 0
    errors: list[str] = field(default_factory=list)

    @property
    def accept_length(self) -> float | None:
        return accept_length(self.spec_tokens, self.verifies)

    def line(self) -> str:
        """One line for a terminal."""
        done = self.answered_before + self.answered
        rate = self.tokens / self.seconds if self.seconds else 0.0
        accept = f", accept length {self.accept_length:.2f}" if self.accept_length else ""
        left = (self.lines - done) * self.seconds / self.answered if self.answered else 0.0
        return f"{done}/{self.lines} answered, {self.failed} failed, {rate:.1f} tokens/s{accept}, {left:.0f} s left"


async def answer_batch(
    frontend: Any, lines: list[BatchLine], answers: AnswerFile, at_once: int, patience_s: float = 900.0
) -> JobReport:
    """Answer every line that has no answer yet, at most `at_once` at a time.

    A line whose request is refused gets the error as its answer. A line that found every replica full, or that lost its
    replicas too often, is asked again. If no line of the job was answered for `patience_s` seconds, it is left without
    an answer, and the next run tries it again.
    """
    todo = [line for line in lines if line.index not in answers.done]
    report = JobReport(len(lines), len(lines) - len(todo))
    gate, started = asyncio.Semaphore(at_once), time.monotonic()
    answered_at = started

    async def one(line: BatchLine) -> None:
        nonlocal answered_at
        async with gate:
            wait_s = FIRST_RETRY_S
            while _is_retryable(body := await complete(frontend, line.body)):
                if time.monotonic() + wait_s - answered_at > patience_s:
                    break
                report.retries += 1
                await asyncio.sleep(wait_s)
                wait_s = min(2 * wait_s, LONGEST_RETRY_S)
            else:
                answered_at = time.monotonic()
        report.seconds = time.monotonic() - started
        report.lost_workers = frontend.generator.counters.lost
        _record(report, answers, line, body)

    progress = asyncio.create_task(_show_progress(report))
    try:
        await asyncio.gather(*(one(line) for line in todo))
    finally:
        progress.cancel()
    report.seconds = time.monotonic() - started
    return report


async def complete(frontend: Any, body: dict[str, Any]) -> dict[str, Any]:
    """One whole answer in OpenAI's form, or OpenAI's error object."""
    from sglang.srt.entrypoints.openai.protocol import ChatCompletionRequest, CompletionRequest

    chat = "messages" in body
    kind = ChatCompletionRequest if chat else CompletionRequest
    asked = {"model": frontend.manager.served_model_name, **body, "stream": False, "return_spec_tokens_details": True}
    try:
        request = kind(**asked)
    except ValueError as error:
        return {"object": "error", "message": str(error), "code": 400}
    answer = await (frontend.chat if chat else frontend.completion).handle_request(request, None)
    if hasattr(answer, "model_dump"):
        dumped: dict[str, Any] = answer.model_dump()
        return dumped
    refused: dict[str, Any] = json.loads(answer.body)
    return refused


def _is_error(body: dict[str, Any]) -> bool:
    return body.get("object") == "error"


def _is_retryable(body: dict[str, Any]) -> bool:
    """True if a later try may succeed: every replica was full, or replicas were lost."""
    return _is_error(body) and int(body.get("code", 500)) >= 429


def _record(report: JobReport, answers: AnswerFile, line: BatchLine, body: dict[str, Any]) -> None:
    if _is_retryable(body):
        report.failed += 1
        report.errors.append(f"line {line.index + 1}: {body.get('message')}")
        return
    is_error = _is_error(body)
    answers.write(line.index, {"error": body} if is_error else {"response": body})
    report.answered += 1
    if not is_error:
        report.tokens += int(body["usage"]["completion_tokens"])
        for part in _spec_details(body):
            verifies = int(part.get("spec_verify_ct") or 0)
            report.verifies += verifies
            report.spec_tokens += float(part.get("spec_accept_length") or 0.0) * verifies


def _spec_details(body: dict[str, Any]) -> list[dict[str, Any]]:
    """SGLang's details of speculation, one per choice."""
    details = (body.get("sglext") or {}).get("spec_tokens_details") or {}
    return details if isinstance(details, list) else [details]


async def _show_progress(report: JobReport) -> None:
    while True:
        await asyncio.sleep(PROGRESS_EVERY_S)
        say(report.line())


def run_job(config: WorkerConfig, source: Path, target: Path) -> JobReport:
    """Deploy replicas on the connected cluster, answer the file, take them down again.

    Raises:
        ValueError: the input or output file cannot be used; nothing is deployed then.
    """
    lines = read_batch(source)
    answers = AnswerFile(target, lines)
    try:
        if answers.is_complete:
            return JobReport(len(lines), len(lines))
        return _with_replicas(config, lines, answers, application_name(target))
    finally:
        answers.close()


def application_name(target: Path) -> str:
    """Depends on the output file alone, so that a run finds and takes down what a killed run of its job left."""
    return f"job-{hashlib.sha256(str(target.resolve()).encode()).hexdigest()[:12]}"


def _with_replicas(config: WorkerConfig, lines: list[BatchLine], answers: AnswerFile, name: str) -> JobReport:
    from ray import serve

    from workers.app import build_replicas
    from workers.cluster.serve_source import ServeSource
    from workers.http.frontend import Frontend

    # It belongs to no other job that runs: the answer file has one writer at a time.
    if name in serve.status().applications:
        with step(f"taking down {name}, which a run that was killed has left"):
            serve.delete(name)
    try:
        with step("importing Ray's LLM server, which starts the replicas"):
            replicas = build_replicas(config)
        handle = run_application(replicas, name, config, route_prefix=None)
        with step("importing SGLang's OpenAI handlers"):
            frontend = Frontend.of(config, ServeSource(handle))
        at_once = config.max_replicas * config.max_running_requests
        return asyncio.run(answer_batch(frontend, lines, answers, at_once, config.startup_timeout_s))
    finally:
        with step("ending replicas"):
            serve.delete(name)
