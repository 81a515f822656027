"""A server writes the same conversations as the target in this process; what goes wrong there is said plainly."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.data.completers import GREEDY, LocalCompleter, Sampling, ServerCompleter
from ddtree_sglang.training.data.conversations import load_conversations
from tests.training.tiny import save_tiny_target, tiny_target

END = 2  # the tiny configuration's end token


class Handler(BaseHTTPRequestHandler):
    """`/generate` of the tiny target: ids in, ids out, the end token left out as a server may do."""

    requests: ClassVar[list[dict[str, Any]]] = []

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.requests.append(body)
        parameters = body["sampling_params"]
        if parameters["max_new_tokens"] > 200:
            self.send_response(400)
            self.end_headers()
            self.wfile.write(b'{"error": {"message": "longer than the context"}}')
            return
        sampling = Sampling(parameters["temperature"], parameters["top_p"])
        rows = LocalCompleter(tiny_target()).complete(body["input_ids"], parameters["max_new_tokens"], sampling)
        answers = []
        for row in rows:
            stopped = row[-1] == END
            reason = {"type": "stop", "matched": END} if stopped else {"type": "length"}
            answers.append({"output_ids": row[:-1] if stopped else row, "meta_info": {"finish_reason": reason}})
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(answers).encode())

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@pytest.fixture
def url() -> Iterator[str]:
    Handler.requests.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_server_and_this_process_give_the_same_greedy_ids(url: str) -> None:
    prompts = [[5, 9, 11], [21, 22], [3, 3, 3, 3, 3]]
    local = LocalCompleter(tiny_target())
    expected = local.complete(prompts, 60, GREEDY)
    assert local.end_ids == (END,)
    assert [row[-1] == END for row in expected] == [False, True, False]
    assert ServerCompleter(url, (END,)).complete(prompts, 60, GREEDY) == expected


def test_a_row_padded_on_the_left_is_answered_as_if_alone() -> None:
    local = LocalCompleter(tiny_target())
    prompts = [[5, 9, 11], [21, 22], [3, 3, 3, 3, 3]]
    together = local.complete(prompts, 20, GREEDY)
    assert together == [local.complete([prompt], 20, GREEDY)[0] for prompt in prompts]
    assert len({tuple(row) for row in together}) == 3


def test_generate_stage_writes_what_the_server_says(url: str, tmp_path: Path) -> None:
    folder = save_tiny_target(tmp_path / "target")
    data = tmp_path / "data.npz"
    flags = ["--target", str(folder), "--data", str(data), "--work", str(tmp_path), "--server", url]
    size = ["--conversations", "6", "--generation-batch", "6", "--max-tokens", "90", "--sampled-share", "0"]
    assert main(["generate", *flags, *size]) == 0
    turns, answers = Handler.requests[0], Handler.requests[1]
    assert turns["sampling_params"]["temperature"] == 1.0
    assert turns["sampling_params"]["top_p"] == 0.95
    assert answers["sampling_params"]["temperature"] == 0.0
    held, target = load_conversations(data), tiny_target()
    for index in range(len(held)):
        ids, start = held.token_ids(index), int(held.answer_start[index])
        with torch.inference_mode():
            greedy = target(ids[None]).logits[0].argmax(-1)
        assert torch.equal(greedy[start - 1 : -1], ids[start:])


def test_refusal_and_absence_of_the_server_are_told_apart(url: str) -> None:
    with pytest.raises(ValueError, match=r"refused a batch: .*longer than the context"):
        ServerCompleter(url, (END,)).complete([[1, 2]], 500, GREEDY)
    with pytest.raises(ValueError, match=r"must be a running SGLang server, http://127\.0\.0\.1:9 is not reachable"):
        ServerCompleter("http://127.0.0.1:9", (END,)).complete([[1, 2]], 5, GREEDY)
