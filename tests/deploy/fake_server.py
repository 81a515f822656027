"""Stands in for `sglang.launch_server` where a real one would take minutes: same flags, same HTTP answers.

FAKE_MODE: `serve` (default), `die` (end during start-up), `die-later` (end after the first answer of the
DDTREE server), `slow` (never ready), `differ` (DDTREE's text is not plain decoding's). FAKE_PIDS: file that
gets the ids of this process and of the child that it starts, as SGLang starts its scheduler.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

MODE = os.environ.get("FAKE_MODE", "serve")
SPECULATIVE = "--speculative-algorithm" in sys.argv
WORDS = ["The ", "sky ", "is ", "blue"]


class Handler(BaseHTTPRequestHandler):
    """The two addresses that `deploy/` uses."""

    def do_GET(self) -> None:
        self.send_response(503 if MODE == "slow" else 200)
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        words = [*WORDS[:-1], "green"] if MODE == "differ" and SPECULATIVE else WORDS
        for word in words:
            self.send_event({"choices": [{"delta": {"content": word}}]})
            time.sleep(0.01 if SPECULATIVE else 0.02)
        self.send_event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": len(words)}})
        if SPECULATIVE:
            details = {"spec_accept_length": 2.5}
            self.send_event({"choices": [], "sglext": {"spec_tokens_details": details}})
        self.wfile.write(b"data: [DONE]\n\n")
        if MODE == "die-later" and SPECULATIVE:
            threading.Timer(0.5, os._exit, [9]).start()

    def send_event(self, event: dict[str, Any]) -> None:
        self.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        self.wfile.flush()

    def log_message(self, *_args: Any) -> None:
        pass


def main() -> None:
    """Serve on the port given, as the mode says."""
    child = subprocess.Popen(["sleep", "600"])
    with Path(os.environ["FAKE_PIDS"]).open("a") as pids:
        pids.write(f"{os.getpid()} {child.pid}\n")
    if MODE == "die":
        sys.exit("CUDA is out of cheese")
    port = int(sys.argv[sys.argv.index("--port") + 1])
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main()
