"""Keep what fuzz runs found: their counts, with the commit, the packages and the machine they were made on.

    python -m tests.fuzz --model FOLDER/target --draft FOLDER/draft --requests 2000 --seed 1 --output RUN.jsonl -- FLAGS
    python -m benchmarks fuzz_results RUN.jsonl ... [--output FILE.jsonl]

A run writes a line for each hundred requests. Those of one seed and one set of flags become one line here: requests,
statuses, valid requests with grammar or penalties that were answered, errors by cause, failures.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness.provenance import collect_provenance, portable

SUMMED = ("requests", "hung_up", "valid_answered", "canaries", "seconds")
COUNTED = ("statuses", "valid_refused", "errors")


def merged(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One record for each seed and set of flags, in the order in which they appear."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        key = json.dumps([line["algorithm"], line["flags"], line["seed"]])
        groups.setdefault(key, []).append(line)
    return [_merged(group) for group in groups.values()]


def _merged(group: list[dict[str, Any]]) -> dict[str, Any]:
    record = {name: group[0][name] for name in ("bench", "algorithm", "flags", "seed", "valid_share")}
    record["flags"] = [_portable_flag(flag) for flag in record["flags"]]
    record["hundreds"] = len(group)
    for name in SUMMED:
        record[name] = round(sum(line[name] for line in group), 1)
    for name in COUNTED:
        total: Counter[str] = Counter()
        for line in group:
            total.update(line[name])
        record[name] = dict(sorted(total.items()))
    record["slowest_s"] = max(line["slowest_s"] for line in group)
    record["kv_slots_in_use_after"] = [line["kv_slots_in_use_after"] for line in group]
    record["failures"] = [failure for line in group for failure in line["failures"]]
    return record


def _portable_flag(flag: str) -> str:
    """`--flag`, `/folder/file` or `name=/folder/file`, without this machine's folders."""
    name, separator, value = flag.rpartition("=")
    return f"{name}{separator}{portable(value)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Merge, print, write."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--output", type=Path, default=Path(f"benchmarks/results/fuzz-{stamp}.jsonl"))
    args = parser.parse_args(argv)
    lines = [json.loads(line) for run in args.runs for line in run.read_text(encoding="utf-8").splitlines()]
    provenance = collect_provenance()
    with args.output.open("w", encoding="utf-8") as file:
        for record in merged(lines):
            print(json.dumps(record))
            file.write(json.dumps({**record, **provenance}) + "\n")
    return 0
