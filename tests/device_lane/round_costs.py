"""What a decode round costs besides its graphs, counted in the lane: DDTREE's beside stock DFLASH's.

    python -m tests.device_lane.round_costs OUTPUT.jsonl [--label TEXT]

Starts a server of the lane for each backend and algorithm, asks it, and appends one line per server and batch size:
launches outside graphs, reads by the host, copies, bytes allocated, kernels first launched in a round. Counts of calls
are those of a GPU where the lane takes CUDA's branches; times are not measured, the lane has none.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ddtree_sglang.training.provenance import source_record
from deploy.local.client import ClientError
from deploy.local.server_process import ServerError
from tests.device_lane.asking import Lane, LaneServer, open_lane
from tests.device_lane.pairs import TinyPair, make_pair, random_prompts
from tests.device_lane.references import Asked

BACKENDS = ("triton", "fa3", "flashinfer")
ALGORITHMS = ("DFLASH", "DDTREE")
BUDGET = 16
BATCH_SIZES = (1, 4)
ANSWER_LEN = 12


@dataclass(frozen=True)
class RoundCost:
    """Medians over the rounds of one server at one batch size, and what was found in any of them."""

    backend: str
    algorithm: str
    kind: str  # "greedy" or "sampled"
    batch_size: int
    rounds: int
    launches: float
    launches_between: float  # of what the scheduler did since the round before, its checks of slots included
    host_reads: dict[str, int]  # by what and where, the most in one round
    copies_to_host: float
    copies_to_device: float
    allocated_bytes: float
    kernels_first_launched: dict[str, int]  # in all rounds together
    by_name: dict[str, int]  # launches of the round with the fewest


def measure(lane: Lane, pair: TinyPair, backend: str, algorithm: str) -> Iterator[RoundCost]:
    """Ask one server, batch by batch."""
    budget = BUDGET if algorithm == "DDTREE" else None
    with lane.serve(pair, backend, algorithm, budget, log=lane.new_log("costs", backend, algorithm)) as server:
        for kind, temperature in (("greedy", 0.0), ("sampled", 1.0)):
            if kind == "sampled" and algorithm == "DFLASH":
                continue  # its kernel for sampling is CUDA's alone
            for batch_size in BATCH_SIZES:
                yield _cost(_rounds(server, batch_size, temperature), backend, algorithm, kind, batch_size)


def measure_all(folder: Path) -> list[RoundCost]:
    """Start and ask every server; logs and models are left in `folder`."""
    costs: list[RoundCost] = []
    with open_lane(folder) as lane:
        pair = make_pair(folder / "pair", "qwen3", 4)
        for backend in BACKENDS:
            for algorithm in ALGORITHMS:
                print(f"{backend}, {algorithm} ...", flush=True)
                try:
                    costs += measure(lane, pair, backend, algorithm)
                except (ClientError, ServerError) as error:
                    print(f"{backend}, {algorithm}: no line: {error}", file=sys.stderr)
    return costs


def _rounds(server: LaneServer, batch_size: int, temperature: float) -> list[dict[str, Any]]:
    seen = len(server.decode_rounds())
    prompts = random_prompts(batch_size, 6, seed=7 + batch_size).tolist()
    asked = [Asked(tuple(prompt), ANSWER_LEN, temperature=temperature, seed=3) for prompt in prompts]
    with ThreadPoolExecutor(batch_size) as pool:
        list(pool.map(server.ask, asked))
    return server.decode_rounds()[seen:]


def _cost(rounds: list[dict[str, Any]], backend: str, algorithm: str, kind: str, batch_size: int) -> RoundCost:
    full = [line for line in rounds if line["batch_size"] == batch_size]
    if not full:
        raise RuntimeError(f"no round of {batch_size} requests among {len(rounds)}: ask for longer answers")

    def middle(field: str, key: str | None = None) -> float:
        return float(median(line[field] if key is None else line[field].get(key, 0) for line in full))

    reads: dict[str, int] = {}
    for line in full:
        for place, count in (*line["host_reads"].items(), *line["between"]["host_reads"].items()):
            if "invariant_checker.py" not in place:  # SGLang's accounting, which the lane turns on
                reads[place] = max(count, reads.get(place, 0))
    first: dict[str, int] = {}
    for line in rounds:
        for name, count in line["new_variants"].items():
            first[name] = first.get(name, 0) + count
    return RoundCost(
        backend,
        algorithm,
        kind,
        batch_size,
        len(full),
        middle("launches"),
        float(median(sum(line["between"]["launches"].values()) for line in full)),
        reads,
        middle("copies", "to host"),
        middle("copies", "to device"),
        middle("allocated_bytes"),
        first,
        min(full, key=lambda line: int(line["launches"]))["by_name"],
    )


def table(costs: Sequence[RoundCost]) -> str:
    """A line per row."""
    columns = "{:<11}{:<10}{:<8}{:>6}{:>10}{:>9}{:>12}{:>9}  {}"
    head = ("backend", "algorithm", "", "batch", "launches", "between", "host reads", "bytes", "first launched")
    rows = [
        (
            one.backend,
            one.algorithm,
            one.kind,
            one.batch_size,
            round(one.launches),
            round(one.launches_between),
            sum(one.host_reads.values()),
            round(one.allocated_bytes),
            ", ".join(one.kernels_first_launched) or "none",
        )
        for one in costs
    ]
    return "\n".join(columns.format(*row) for row in (head, *rows))


def main(argv: Sequence[str]) -> int:
    """Measure all servers, print the table, append the lines."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--label", default="", help="what the code is, in the lines")
    parser.add_argument("--logs", type=Path, help="a new folder for the servers' logs; they are removed without it")
    arguments = parser.parse_args(argv)
    provenance = source_record(Path(__file__).resolve(), ("sglang", "torch", "triton", "flashinfer-python"))
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.logs or Path(temporary)
        folder.mkdir(exist_ok=True)
        costs = measure_all(folder)
    with arguments.output.open("a", encoding="utf-8") as file:
        for one in costs:
            file.write(json.dumps({"label": arguments.label, **asdict(one), "provenance": provenance}) + "\n")
    print(table(costs))
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
