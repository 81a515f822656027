"""A batch job on real actors: killed in the middle and started again, it answers each line once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deploy.local.rank_processes import wait_until_gone
from deploy.local.ray_client import same_answer
from deploy.local.server_process import START_TIMEOUT_S
from tests.e2e.servers import Pair
from tests.e2e_ray.questions import BODIES, MODEL, Answers

REPO = Path(__file__).resolve().parents[2]
NUM_LINES = 7


@pytest.fixture
def command(pair: Pair, tmp_path: Path) -> list[str]:
    lines = [*BODIES, *({**body, "max_tokens": 40} for body in BODIES)]
    # A line that no engine takes is answered with its error.
    lines.append({"prompt": "x", "max_tokens": 4, "temperature": -1})
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    config = {
        "model": pair.model,
        "draft": pair.draft,
        "served_model_name": MODEL,
        "dtype": "float32",
        "engine_args": {"max_total_tokens": 8192},
        "max_running_requests": 2,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    files = {"--input": "in.jsonl", "--output": "out.jsonl", "--config": "config.json"}
    named = [part for flag, name in files.items() for part in (flag, str(tmp_path / name))]
    return [sys.executable, "-m", "workers", "job", *named, "--local-cpus", "8"]


@pytest.mark.slow
def test_job_killed_in_the_middle_answers_each_line_once(
    command: list[str], tmp_path: Path, reference: Answers
) -> None:
    output = tmp_path / "out.jsonl"
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    first = subprocess.Popen(command, env=environment, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not (output.exists() and output.read_bytes().count(b"\n") >= 2):
        assert first.poll() is None, "the job ended before it was killed"
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    wait_until_gone(START_TIMEOUT_S)
    answered = output.read_bytes().count(b"\n")
    assert answered < NUM_LINES

    again = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=START_TIMEOUT_S
    )
    assert again.returncode == 0, again.stderr[-2000:]
    wait_until_gone(START_TIMEOUT_S)
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(line["index"] for line in lines) == list(range(NUM_LINES))
    by_index = {line["index"]: line for line in lines}
    assert by_index[NUM_LINES - 1]["error"]["code"] == 400
    assert all(same_answer(by_index[n]["response"], reference[n]) for n in range(len(BODIES)))
    report = json.loads(again.stdout.splitlines()[-1])
    assert report["answered_before"] == answered
    assert report["accept_length"] > 1.0
    assert "tokens/s" in again.stdout
