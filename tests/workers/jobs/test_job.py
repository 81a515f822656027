"""A batch against a frontend by script: who gets an answer, who is asked again, what is counted."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from workers.answers.retry import AnswerCounters
from workers.jobs.batch_file import AnswerFile, BatchLine
from workers.jobs.job import JobReport, answer_batch, application_name

pytestmark = pytest.mark.sglang


class Endpoint:
    """Answers with ten tokens, eight of them in four verifies that were told of, or what the script says of a prompt.

    A prompt of `busy` finds no room the first so many times.
    """

    def __init__(self, script: dict[str, tuple[int, str]], busy: dict[str, int] | None = None) -> None:
        self.script = script
        self.busy = busy or {}
        self.asked: list[str] = []
        self.at_once = self.most_at_once = 0

    async def handle_request(self, request: Any, raw: Any) -> Any:
        self.asked.append(request.prompt)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        await asyncio.sleep(0.001)
        self.at_once -= 1
        if self.busy.get(request.prompt, 0) > 0:
            self.busy[request.prompt] -= 1
            return SimpleNamespace(body=json.dumps({"object": "error", "message": "full", "code": 429}))
        if request.prompt in self.script:
            code, message = self.script[request.prompt]
            return SimpleNamespace(body=json.dumps({"object": "error", "message": message, "code": code}))
        body = {
            "object": "text_completion",
            "choices": [{"text": request.prompt * 2}],
            "usage": {"completion_tokens": 10},
            "sglext": {"spec_tokens_details": {"spec_verify_ct": 4, "spec_accept_length": 2.0}},
        }
        return SimpleNamespace(model_dump=lambda: body)


def run(
    folder: Path, endpoint: Endpoint, prompts: list[str], at_once: int = 2, patience_s: float = 0.0
) -> tuple[JobReport, dict[int, Any]]:
    lines = [BatchLine(index, {"prompt": prompt}) for index, prompt in enumerate(prompts)]
    frontend = SimpleNamespace(
        completion=endpoint,
        manager=SimpleNamespace(served_model_name="m"),
        generator=SimpleNamespace(counters=AnswerCounters(lost=3)),
    )
    answers = AnswerFile(folder / "out.jsonl", lines)
    try:
        report = asyncio.run(answer_batch(frontend, lines, answers, at_once, patience_s))
    finally:
        answers.close()
    written = [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]
    assert len(written) == len({line["index"] for line in written})
    return report, {line["index"]: line for line in written}


def test_each_line_gets_its_own_answer_and_the_report_adds_up(tmp_path: Path) -> None:
    report, written = run(tmp_path, Endpoint({}), ["a", "b", "c"])
    assert [written[index]["response"]["choices"][0]["text"] for index in range(3)] == ["aa", "bb", "cc"]
    assert (report.answered, report.failed, report.tokens, report.accept_length) == (3, 0, 30, 2.0)
    assert report.lost_workers == 3
    assert "3/3 answered" in report.line()


def test_refused_line_is_answered_with_its_error_and_a_lost_one_is_asked_again(tmp_path: Path) -> None:
    endpoint = Endpoint({"bad": (400, "no penalties"), "lost": (503, "worker_lost: died")})
    report, written = run(tmp_path, endpoint, ["a", "bad", "lost"])
    assert written[1]["error"]["message"] == "no penalties"
    assert 2 not in written
    assert (report.answered, report.failed) == (2, 1)
    assert report.errors == ["line 3: worker_lost: died"]

    again = Endpoint({})
    report, written = run(tmp_path, again, ["a", "bad", "lost"])
    assert again.asked == ["lost"]
    assert written[2]["response"]["choices"][0]["text"] == "lostlost"
    assert (report.answered_before, report.answered) == (2, 1)


def test_line_that_found_no_room_is_asked_again_by_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.jobs.job.FIRST_RETRY_S", 0.001)
    report, written = run(tmp_path, Endpoint({}, {"b": 3}), ["a", "b", "c"], patience_s=60)
    assert sorted(written) == [0, 1, 2]
    assert (report.answered, report.failed, report.retries) == (3, 0, 3)


def test_run_ends_where_nothing_is_answered_any_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.jobs.job.FIRST_RETRY_S", 0.001)
    report, written = run(tmp_path, Endpoint({"a": (503, "worker_lost")}), ["a"], patience_s=0.05)
    assert (written, report.failed) == ({}, 1)
    assert report.retries > 1


def test_runs_of_one_job_are_one_application(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert application_name(Path("out.jsonl")) == application_name(tmp_path / "out.jsonl")
    assert application_name(Path("out.jsonl")) != application_name(Path("other.jsonl"))


def test_no_more_requests_at_once_than_replicas_take(tmp_path: Path) -> None:
    endpoint = Endpoint({})
    run(tmp_path, endpoint, [str(n) for n in range(12)], at_once=3)
    assert endpoint.most_at_once == 3


def test_line_that_is_no_request_gets_a_400(tmp_path: Path) -> None:
    report, written = run(tmp_path, Endpoint({}), ["a", {"not": "a prompt"}])  # type: ignore[list-item]
    assert written[1]["error"]["code"] == 400
    assert report.answered == 2
