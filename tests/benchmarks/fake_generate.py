"""Stands in for a server under measurement: SGLang's `/generate` (streamed and not), made-up tokens, known times.

    fake_generate.py PORT {plain|speculative} TRACE {same|other}

A speculative one emits two tokens a round and writes a trace line for each, with a tree of one drafted node; `other`
changes the third token.
"""

from __future__ import annotations

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

PORT, KIND, TRACE, TOKENS = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
STEP_S = 0.01
STAGES = {"draft_ms": 2.0, "build_ms": 0.3, "verify_ms": 7.0, "accept_ms": 0.2, "commit_ms": 0.5}
TREE = {
    "commit_lens": [2],
    "token_ids": [[1, 2]],
    "parents": [[-1, 0]],
    "path_probs": [[1.0, 0.5]],
    "accept_index": [[0, 1]],
}


class Handler(BaseHTTPRequestHandler):
    """Health, flush, and generation."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        self.send_response(200)
        self.end_headers()
        if self.path.startswith("/flush_cache"):
            self.wfile.write(b"Cache flushed.")
        elif body.get("stream"):
            self.stream(body)
        else:
            pairs = [[-1.0 - 0.5 * rank, token, None] for rank, token in enumerate(body["token_ids_logprob"])]
            self.wfile.write(json.dumps({"meta_info": {"output_token_ids_logprobs": [pairs]}}).encode())

    def stream(self, body: dict[str, Any]) -> None:
        count = body["sampling_params"]["max_new_tokens"]
        # In one piece: other requests write, too.
        print(f"temperature {body['sampling_params']['temperature']}\n", end="", flush=True)
        if asked := body["sampling_params"].get("custom_params"):
            print(f"asked {asked}\n", end="", flush=True)
        ids = [sum(body["input_ids"]) + place for place in range(count)]
        if TOKENS == "other":
            ids[2] += 1000
        rounds, sent = 0, 1
        self.send(ids[:1], {})
        while sent < count:
            time.sleep(STEP_S)
            sent = min(count, sent + (2 if KIND == "speculative" else 1))
            rounds += 1
            if KIND == "speculative":
                with open(TRACE, "a") as trace:
                    line = {"batch_size": 1, "total_ms": 10.0, "request_ids": [str(ids[0])], **STAGES, **TREE}
                    trace.write(json.dumps(line) + "\n")
            counted = {"spec_verify_ct": rounds, "spec_correct_drafts_histogram": [0, rounds]}
            meta = counted if KIND == "speculative" else {}
            self.send(ids[:sent], meta)
        self.wfile.write(b"data: [DONE]\n\n")

    def send(self, ids: list[int], meta: dict[str, Any]) -> None:
        event = {"output_ids": ids, "meta_info": {"finish_reason": {"type": "length"}, **meta}}
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_args: Any) -> None:
        pass


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
