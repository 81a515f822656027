"""A server that answers as SGLang does, from a formula and at once; `FAKE_FAULTS` says what is wrong with which one.

`FAKE_FAULTS` is JSON: {part of the command line: fault}; a fault counts for every server whose command line holds the
part. Every token follows from the last three, token 5 of an answer is a near tie, and a speculative server accepts 2.4
tokens a round on average.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TIE_AT, WRONG_AT = 5, 7
ACCEPTED = 2.4
FAULTS = {
    fault for part, fault in json.loads(os.environ.get("FAKE_FAULTS", "{}")).items() if part in " ".join(sys.argv)
}

parser = argparse.ArgumentParser(allow_abbrev=False)
for name, value in (("port", 0), ("context-length", 4096)):
    parser.add_argument(f"--{name}", type=int, default=value)
parser.add_argument("--speculative-algorithm")
parser.add_argument("--attention-backend")
parser.add_argument("--device", default=os.environ.get("FAKE_DEVICE", "cuda"))
for name in ("decode", "prefill"):
    parser.add_argument(f"--disable-{name}-cuda-graph", action="store_true")
ARGS, _ = parser.parse_known_args()
IS_PLAIN = ARGS.speculative_algorithm is None
in_flight = 0
lock = threading.Lock()


def follow(prompt: list[int], count: int, busy: bool) -> list[int]:
    ids = list(prompt)
    for place in range(count):
        token = zlib.crc32(bytes(one % 256 for one in ids[-3:])) % 256
        if not IS_PLAIN and place == TIE_AT and "tie" in FAULTS:
            token = (token + 1) % 256
        if not IS_PLAIN and place == WRONG_AT and ("wrong" in FAULTS or ("neighbour" in FAULTS and busy)):
            token = (token + 7) % 256
        ids.append(token)
    return ids[len(prompt) :]


def rounds_of(ids: list[int]) -> int:
    """Dithered by the answer, so that 5 % more are 5 % more of the sum."""
    share = zlib.crc32(repr(ids).encode()) % 1000 / 1000
    exact = len(ids) / (1.0 if "garbled" in FAULTS else ACCEPTED) * (1.05 if "late" in FAULTS else 1.0)
    return max(1, int(exact + share))


def answer(body: dict[str, Any], busy: bool) -> dict[str, Any]:
    sampling, prompt = body["sampling_params"], body["input_ids"]
    room = ARGS.context_length - len(prompt) - (1 if IS_PLAIN else 17)
    count = min(room, sampling["max_new_tokens"] or room)
    if "silent" in FAULTS:
        count = 0
    if sampling["temperature"]:
        law = [0] if "narrow" in FAULTS else [0, 0, 0, 1, 1, 2]
        ids = [random.choice(law) for _ in range(count)]
    else:
        # A request that runs to the context limit is no neighbour of one, however many answer at once.
        ids = follow(prompt, count, busy and bool(sampling["max_new_tokens"]))
    meta: dict[str, Any] = {"finish_reason": {"type": "length"}}
    if not IS_PLAIN:
        meta["spec_verify_ct"] = rounds_of(ids)
    if body.get("return_logprob"):
        gaps = [0.1 if place == TIE_AT else 3.0 for place in range(len(ids))]
        meta["output_top_logprobs"] = [
            [[-0.1, token, None], [-0.1 - gap, (token + 1) % 256, None]] for token, gap in zip(ids, gaps, strict=True)
        ]
    return {"output_ids": ids, "meta_info": meta}


class Handler(BaseHTTPRequestHandler):
    """Health, flush, facts of the server, and generation."""

    def do_GET(self) -> None:
        info = {
            "device": "cpu" if "processor" in FAULTS else ARGS.device,
            "attention_backend": ARGS.attention_backend,
            "disable_overlap_schedule": "serial" in FAULTS or "--disable-overlap-schedule" in sys.argv,
        }
        self.reply(info if self.path == "/server_info" else {})

    def do_POST(self) -> None:
        global in_flight
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}")
        if self.path != "/generate":
            self.reply({})
            return
        with lock:
            in_flight += 1
        # Long enough for requests that are asked together to be seen together.
        time.sleep(1.0 if "slow" in FAULTS else 0.004)
        found = answer(body, in_flight > 1)
        with lock:
            in_flight -= 1
        self.reply(found)

    def reply(self, content: dict[str, Any]) -> None:
        text = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_args: Any) -> None:
        pass


if __name__ == "__main__":
    with open(os.environ["FAKE_STARTS"], "a") as starts:
        starts.write(" ".join(sys.argv) + "\n")
    if "dies" in FAULTS:
        raise SystemExit("RuntimeError: CUDA error: an illegal memory access was encountered")
    if "hangs" in FAULTS:
        # A process of its own, as a scheduler is: it does not end because the server does.
        subprocess.run(
            [sys.executable, "-c", "import time; time.sleep(600)", "--port", str(ARGS.port), "child"], check=False
        )
    role = "decode" if IS_PLAIN else "verify"
    if not ARGS.disable_decode_cuda_graph and "eager" not in FAULTS:
        print(f"Capture target {role} CUDA graph begin. backend=full, avail mem=70.00 GB", flush=True)
    if not ARGS.disable_prefill_cuda_graph:
        print("Capture target prefill CUDA graph begin. avail mem=70.00 GB", flush=True)
    ThreadingHTTPServer(("127.0.0.1", ARGS.port), Handler).serve_forever()
