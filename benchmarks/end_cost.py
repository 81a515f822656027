"""What it costs the host that requests end where plain decoding ends them, in ms of a round.

    python -m benchmarks end_cost [--output FILE.jsonl] [--repeats 200]

Times SGLang's own requests with a real tokenizer, without a server: a look at runs that only tokens and lengths can
end, a judgement token by token of runs that a stop string may end beside SGLang's of the whole run, and what the device
is told when the requests of a batch change. The device's part is no launch of its own: the walk reads three tensors.
"""

from __future__ import annotations

import argparse
import json
import time
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks.harness.provenance import collect_provenance

BATCH_SIZES = (1, 8, 64)
RUN_LEN, STRIDE = 4, 16
ANSWER = "The tree of drafts is checked in one pass, and the target keeps what it would have written itself."


def requests(batch_size: int, tokenizer: Any, stop: str | None) -> list[Any]:
    """Requests in the middle of their answers."""
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    made = []
    for index in range(batch_size):
        params = SamplingParams(max_new_tokens=512, stop=stop, stop_token_ids=[7])
        params.normalize(tokenizer)
        req = Req(str(index), "", array("q", range(32)), params, eos_token_ids={2}, vocab_size=1 << 20)
        req.tokenizer = tokenizer
        req.output_ids.extend(tokenizer.encode(ANSWER))
        made.append(req)
    return made


def round_of(reqs: Sequence[Any], tokenizer: Any) -> tuple[Any, Any]:
    """The result of a round, a run of `RUN_LEN` tokens for each request, and its batch."""
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput
    from sglang.srt.managers.utils import GenerationBatchResult

    run = tokenizer.encode(" and so it goes on")[:RUN_LEN]
    rows = torch.tensor([*run, *[0] * (STRIDE - RUN_LEN)]).repeat(len(reqs))
    result = GenerationBatchResult(
        logits_output=LogitsProcessorOutput(next_token_logits=None),
        next_token_ids=rows,
        speculative_output_stride=STRIDE,
    )
    result.accept_lens = torch.full((len(reqs),), RUN_LEN, dtype=torch.int32)
    return result, SimpleNamespace(reqs=reqs)


def cases(batch_size: int, tokenizer: Any) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is timed, by name."""
    from ddtree_sglang.engine import run_ends
    from ddtree_sglang.engine.stages.round_ends import BatchEnds, EndsOfBatches

    for name, stop in (("look", None), ("stop string, token by token", "never said")):
        result, batch = round_of(requests(batch_size, tokenizer, stop), tokenizer)

        def cut(result: Any = result, batch: Any = batch) -> None:
            run_ends.cut_runs(None, result, batch)
            run_ends._judged.clear()

        yield name, cut
    at_once = requests(batch_size, tokenizer, "never said")
    yield "stop string, SGLang's run at once", lambda: [req.update_finish_state(RUN_LEN) for req in at_once]
    kept = EndsOfBatches(17, "cpu")
    yield "ends of new requests", lambda: BatchEnds.of(at_once, 17, "cpu")
    yield "ends of the same requests", lambda: kept.of(at_once)


def median_ms(run: Callable[[], Any], repeats: int) -> float:
    """After ten runs that are not counted."""
    times = []
    for _ in range(repeats + 10):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return median(times[10:])


def main(argv: Sequence[str]) -> int:
    """Time all cases, print them, append a line each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=200)
    arguments = parser.parse_args(argv)
    from sglang.srt.utils.hf_transformers.tokenizer import get_tokenizer

    from ddtree_sglang.demo.prepare import prepare_model

    provenance, lines = collect_provenance(), []
    tokenizer = get_tokenizer(str(prepare_model()))
    for batch_size in BATCH_SIZES:
        for name, run in cases(batch_size, tokenizer):
            cost = median_ms(run, arguments.repeats)
            print(f"{name:<36}{batch_size:>4} requests{cost:>10.4f} ms")
            lines.append({"bench": "end_cost", "case": name, "batch_size": batch_size, "ms": round(cost, 5)})
    if arguments.output is not None:
        with arguments.output.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps({**line, "run_len": RUN_LEN, "provenance": provenance}) + "\n" for line in lines)
    return 0
