"""Stands in for `python -m sglang.bench_serving`: writes a record whose times follow from the address alone.

fake_serving_client.py [the real client's flags]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

FIELDS = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_tpot_ms", "median_e2e_latency_ms")

parser = argparse.ArgumentParser()
for flag in ("--base-url", "--dataset-path", "--num-prompts", "--request-rate", "--seed", "--output-file"):
    parser.add_argument(flag)
args, _ = parser.parse_known_args()
asked = len(Path(args.dataset_path).read_text().splitlines())
assert asked == int(args.num_prompts), "the file holds as many prompts as are asked"
record = {name: 10.0 + place for place, name in enumerate((*FIELDS, "p99_e2e_latency_ms"))}
record |= {"completed": asked, "output_throughput": 5.0, "concurrency": 1.5, "seed": int(args.seed)}
Path(args.output_file).write_text(json.dumps(record) + "\n")
