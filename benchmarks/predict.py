"""Predict Qwen3-8B on GPUs that are not here: the replay simulator over data sheets, beside the one point measured.

    python -m benchmarks predict

Nothing of it was measured but the H200's round costs of a pair of the same shape without weights, which stand beside
the prediction of the same rounds. Acceptance is a made-up drafter's, tuned to published mean accepted lengths.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.dummy_pair import BLOCK_SIZE, TARGET, drafter_config
from benchmarks.harness.flags import exit_status
from benchmarks.harness.made_up_pair import CHAT, MATHS, Drafter
from benchmarks.harness.provenance import REPO, collect_provenance
from ddtree_sglang.simulator.costs import table_of_decode
from ddtree_sglang.simulator.defaults import CONCURRENCIES
from ddtree_sglang.simulator.predictions import Scene, chart, rows_of, to_json
from ddtree_sglang.simulator.replay import Prediction
from ddtree_sglang.simulator.roofline import GPUS, Roofline, Shape
from ddtree_sglang.viewer.charts import stacked, svg
from ddtree_sglang.whole_file import replace_text

MEASURED = REPO / "benchmarks/results/gpu-20261126/speed-shape-16.jsonl"
MEASURED_PREFIX = 100.0
"""Tokens of its prompts and half of its answers, about."""
BUDGETS = (8, 16, 32, 64)
ANSWERS, LENGTH, PROMPT = 16, 500, 600


@dataclass(frozen=True)
class Machine:
    """GPUs that share the models."""

    gpu: str
    tp: int

    @property
    def name(self) -> str:
        """In titles."""
        return GPUS[self.gpu].name if self.tp == 1 else f"{self.tp} {self.gpu.upper()}, TP {self.tp}"


MACHINES = (Machine("h100", 1), Machine("h200", 1), Machine("h200", 8))


def roofline(machine: Machine) -> Roofline:
    """Qwen3-8B and a DFlash drafter of its family."""
    draft = drafter_config(TARGET)
    features = len(draft["dflash_config"]["target_layer_ids"])
    drafter = Shape.of(draft, target_features=features)
    return Roofline(GPUS[machine.gpu], Shape.of(TARGET), drafter, BLOCK_SIZE, machine.tp)


def compared() -> Iterator[dict[str, Any]]:
    """Rounds that were measured on an H200, and what the roofline says of them."""
    lines = [json.loads(line) for line in MEASURED.read_text(encoding="utf-8").splitlines()]
    table, costs = table_of_decode(lines, BLOCK_SIZE), roofline(Machine("h200", 1))
    for size in table.sizes(0):
        for nodes, seconds in table.curve(0, size).items():
            predicted = costs.seconds(size, MEASURED_PREFIX, nodes)
            yield {
                "batch_size": size,
                "num_nodes": nodes,
                "measured_ms": round(1e3 * seconds, 3),
                "predicted_ms": round(1e3 * predicted, 3),
                "measured_steps": round(table.break_even(0, size)[nodes], 3),
                "predicted_steps": round(predicted / costs.seconds(size, MEASURED_PREFIX, 1), 3),
            }


def predicted(drafter: Drafter, machine: Machine, concurrencies: Sequence[int]) -> list[Prediction]:
    """All systems on that machine."""
    answers = drafter.answers(ANSWERS, LENGTH, max(BUDGETS) + 1, PROMPT)
    return Scene(answers, roofline(machine), BLOCK_SIZE, BUDGETS, max(BUDGETS)).predict(concurrencies)


def tables(found: dict[tuple[str, str], list[Prediction]], points: Sequence[dict[str, Any]]) -> str:
    """As Markdown: the check first."""
    rows = [
        "| requests | nodes | measured, ms | predicted, ms | measured, plain steps | predicted |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    rows += ["| " + " | ".join(str(value) for value in one.values()) + " |" for one in points]
    for (text, machine), predictions in found.items():
        head, *body = rows_of(predictions)
        rows += ["", f"Predicted tokens/s of all requests (times plain), {text}, {machine}:", ""]
        rows += ["| " + " | ".join(head) + " |", "|" + "---:|" * len(head)]
        rows += ["| " + " | ".join(row) + " |" for row in body]
    return "\n".join(rows) + "\n"


def run(args: argparse.Namespace) -> int:
    """Predict, write, print."""
    points = list(compared())
    found = {
        (drafter.name, machine.name): predicted(drafter, machine, args.requests)
        for machine in MACHINES
        for drafter in (MATHS, CHAT)
    }
    assumed = {name: asdict(gpu) for name, gpu in GPUS.items()} | {one.name: asdict(one) for one in (MATHS, CHAT)}
    lines: list[dict[str, Any]] = [{"assumed": assumed, "provenance": collect_provenance()}]
    lines += [{"check": one} for one in points]
    lines += [
        {"text": text, "machine": machine, **to_json(one)}
        for (text, machine), predictions in found.items()
        for one in predictions
    ]
    replace_text(args.output, "".join(json.dumps(line) + "\n" for line in lines))
    replace_text(args.output.with_suffix(".md"), tables(found, points))
    drawn = [svg(chart(predictions, f"Predicted: {machine}, {text}")) for (text, machine), predictions in found.items()]
    replace_text(args.output.with_suffix(".svg"), stacked(drawn, columns=2))
    sys.stdout.write(tables(found, points))
    return 0


def main(argv: Sequence[str]) -> int:
    """Command line entry."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--requests", type=int, nargs="+", default=list(CONCURRENCIES))
    parser.add_argument("--output", type=Path, default=REPO / "benchmarks/results/predictions-qwen3-8b.jsonl")
    args = parser.parse_args(argv)
    return exit_status("predict", lambda: run(args))
