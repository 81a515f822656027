"""What policy `adaptive` takes of a round on the host, between forwards that have emptied the processor's caches.

    python -m benchmarks controller_time [--requests 1 8] [--rounds 200] [--turns 3] [--against CHECKOUT]

Plays recorded answers with a measured table of costs, as the replay simulator does, and computes products of the size
of the embedded pair where a server drafts and verifies: by itself the same code is three times as fast. `--against`
plays the same rounds with another checkout's controller, in turns, and says whether all its decisions were the same.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

# A child finds the controller of the checkout that is named first on its path, so nothing of ours is imported above.
REPO = Path(__file__).resolve().parents[1]
RESULTS = REPO / "benchmarks/results"
NODES = 17
WARM_UP = 300
"""Rounds that are played before, without forwards: tries of a server's first rounds are left out."""
LAYERS, HIDDEN, INNER, KEYS, VOCAB = 30, 576, 1536, 192, 49152
"""Of SmolLM2-135M."""
DRAFT_LAYERS = 4
STAGES = "begin", "narrow", "end"


class Forwards:
    """Products and norms of the embedded target's size."""

    def __init__(self, layers: int = LAYERS, vocab: int = VOCAB) -> None:
        shapes = (HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN), (HIDDEN, HIDDEN), (INNER, HIDDEN), (INNER, HIDDEN)
        self._layers = [[torch.full(shape, 1e-3) for shape in (*shapes, (HIDDEN, INNER))] for _ in range(layers)]
        self._head = torch.full((vocab, HIDDEN), 1e-3)
        self._norm = torch.ones(HIDDEN)

    def run(self, rows: int, layers: int | None = None) -> torch.Tensor:
        """Scores of so many rows behind the first `layers`, all of them where none is named."""
        linear, norm = torch.nn.functional.linear, torch.nn.functional.rms_norm
        held = torch.ones(rows, HIDDEN)
        for query, key, value, out, gate, up, down in self._layers[:layers]:
            seen = norm(held, (HIDDEN,), self._norm)
            mixed = linear(seen, query) * (linear(seen, key).mean() + linear(seen, value).mean())
            held = held + linear(mixed, out)
            seen = norm(held, (HIDDEN,), self._norm)
            held = held + linear(torch.nn.functional.silu(linear(seen, gate)) * linear(seen, up), down)
        return linear(held, self._head).argmax(1)


class Controller:
    """Rounds of the server's controller over recorded answers; what it decided, and its seconds by stage."""

    def __init__(self, requests: int, trace: Path, costs: Path) -> None:
        from ddtree_sglang.calibration.table import CostTable
        from ddtree_sglang.core.compiled import compile_loops
        from ddtree_sglang.engine.stages.adaptive_budget import AdaptiveBudget
        from ddtree_sglang.engine.stages.budget_policy import BudgetPolicy
        from ddtree_sglang.simulator.costs import TableCosts
        from ddtree_sglang.simulator.recording import load_answers
        from ddtree_sglang.simulator.replay import Running

        compile_loops()
        self._costs = TableCosts(CostTable.load(costs))
        coming = cycle(load_answers(trace))
        self._begun = lambda: Running(one := next(coming), one.start)
        self._running = [self._begun() for _ in range(requests)]
        self._now = 0.0
        widths = BudgetPolicy.adaptive(NODES, any_width=True).node_counts
        self._budget = AdaptiveBudget(widths, clock=lambda: self._now)
        self._noise = torch.Generator().manual_seed(0)
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.decided = hashlib.sha256()

    def round(self, forward: Callable[[int, int | None], object]) -> None:
        """One round; `forward` of so many rows and layers is run where a server would."""
        from ddtree_sglang.engine.stages.round_records import RoundRecord, host_trees

        budget, reqs = self._budget, list[Any](self._running)
        limits = (NODES,) * len(reqs)
        mean_prefix = sum(one.position for one in reqs) / len(reqs)
        num_nodes = self._timed("begin", lambda: budget.begin(reqs, limits, mean_prefix, NODES, narrows=True))
        taken, path = [0] * len(reqs), torch.zeros(len(reqs), 8, dtype=torch.int64) - 1
        path[:, 0] = 0
        drafts = num_nodes > 1
        if drafts:
            trees = [one.answer.tree_at(one.position)[0] for one in reqs]
            tensors = list(_tensors(trees, num_nodes))
            forward(8 * len(reqs), DRAFT_LAYERS)
            # A builder has just made them.
            tensors = [tensor.clone() for tensor in tensors]
            num_nodes = self._timed("narrow", lambda: budget.narrow(reqs, limits, host_trees(*tensors)))
            for row, tree in enumerate(trees):
                nodes = tree.accepted(num_nodes)
                path[row, : len(nodes)] = torch.tensor(nodes)
                taken[row] = len(nodes) - 1
        forward(num_nodes * len(reqs), None)
        walked = _Path(path)
        self._timed(
            "end",
            lambda: budget.end(RoundRecord.of(reqs, limits, None, walked) if drafts else None),  # type: ignore[arg-type]
        )
        self.decided.update(repr(budget.decision).encode())
        spent = self._costs.seconds(len(reqs), mean_prefix, num_nodes)
        self._now += spent * float(torch.exp(0.03 * torch.randn(1, generator=self._noise)))
        for one, count in zip(self._running, taken, strict=True):
            one.position = min(one.position + count + 1, one.answer.end)
        self._running = [self._begun() if one.finished() else one for one in self._running]

    def _timed(self, stage: str, run: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        found = run()
        self.seconds[stage].append(time.perf_counter() - began)
        return found


class _Path:
    """Of an accepted path what a record reads."""

    def __init__(self, accept_index: torch.Tensor) -> None:
        self.accept_index = accept_index


def _tensors(trees: Sequence[Any], num_nodes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Log-probabilities, parents and depths as a builder makes them."""
    from ddtree_sglang.simulator.systems import round_trees

    made = round_trees(trees, num_nodes)
    return torch.tensor(made.logprobs, dtype=torch.float32), torch.tensor(made.parents), torch.tensor(made.depths)


def measured(requests: int, rounds: int, trace: Path, costs: Path, forwards: Forwards) -> dict[str, Any]:
    """One turn: microseconds by stage, medians over rounds, and of a drafted round in all; a digest of decisions."""
    controller = Controller(requests, trace, costs)
    for _ in range(WARM_UP):
        controller.round(lambda rows, layers: None)
    controller.seconds.clear()
    for _ in range(rounds):
        controller.round(forwards.run)
    by_stage = {stage: 1e6 * median(controller.seconds[stage]) for stage in STAGES if controller.seconds[stage]}
    means = sum(1e6 * fmean(_without_longest(controller.seconds[stage])) for stage in by_stage)
    return {**by_stage, "medians": sum(by_stage.values()), "means": means, "decided": controller.decided.hexdigest()}


def _without_longest(seconds: Sequence[float]) -> list[float]:
    """Without the longest twentieth, in which somebody else had the processor."""
    return sorted(seconds)[: len(seconds) - len(seconds) // 20]


def turns(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A line for each turn, checkout and number of requests."""
    checkouts = [REPO, *([] if args.against is None else [args.against.resolve()])]
    told = f"import runpy, sys; sys.path[:0] = [sys.argv[1]]; runpy.run_path({str(__file__)!r}, run_name='child')"
    for turn in range(args.turns):
        # Each is first in turn.
        for place in sorted(range(len(checkouts)), reverse=bool(turn % 2)):
            asked = {key: getattr(args, key) for key in ("requests", "rounds", "trace", "costs", "quick")}
            command = [sys.executable, "-c", told, str(checkouts[place]), json.dumps(asked, default=str)]
            ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPO)
            if ended.returncode:
                raise RuntimeError(f"a turn of {checkouts[place]} ended: {ended.stderr[-2000:]}")
            for line in ended.stdout.splitlines():
                yield {"turn": turn, "build": "this" if place == 0 else "other", **json.loads(line)}


def child(asked: dict[str, Any]) -> None:
    """Measure with the controller that the path names first."""
    forwards = Forwards(1, 8) if asked.get("quick") else Forwards()
    for requests in asked["requests"]:
        line = measured(requests, asked["rounds"], Path(asked["trace"]), Path(asked["costs"]), forwards)
        sys.stdout.write(json.dumps({"requests": requests, **line}) + "\n")


def run(args: argparse.Namespace) -> int:
    """Measure, print; 1 if the two checkouts decided differently."""
    lines = list(turns(args))
    status = 0
    for requests in args.requests:
        of_size = [line for line in lines if line["requests"] == requests]
        for build in sorted({line["build"] for line in of_size}, reverse=True):
            own = [line for line in of_size if line["build"] == build]
            cells = {key: median(line[key] for line in own) for key in (*STAGES, "medians", "means") if key in own[0]}
            text = ", ".join(f"{key} {value:.0f}" for key, value in cells.items())
            sys.stdout.write(f"{requests} requests, {build}: {text} us\n")
        if len({line["decided"] for line in of_size}) > 1:
            sys.stdout.write(f"{requests} requests: decisions differ\n")
            status = 1
    return status


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    from benchmarks.harness.flags import exit_status

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small products: decisions alone, no times of cold caches")
    parser.add_argument("--against", type=Path, help="another checkout, whose controller is measured in turns")
    parser.add_argument("--trace", type=Path, default=RESULTS / "replay-20261129.jsonl.gz")
    parser.add_argument("--costs", type=Path, default=RESULTS / "costs-20261129-float32.json")
    return exit_status("controller_time", lambda: run(parser.parse_args(argv)))


if __name__ == "child":
    child(json.loads(sys.argv[2]))
