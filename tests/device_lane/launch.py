"""`sglang.launch_server` in the lane: `python -m tests.device_lane.launch [--lane-...] FLAGS`."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from tests.device_lane.settings import LaneSettings


def split_flags(flags: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The lane's options among these, and the rest, which are SGLang's."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--lane-mutation", default="")
    parser.add_argument("--lane-report", default="")
    parser.add_argument("--lane-late", action="store_true")
    # Of SGLang's, which a server reads when it runs: the process that forks it has imported the engine by then.
    parser.add_argument("--lane-variable", action="append", default=[], metavar="NAME=VALUE")
    return parser.parse_known_args(flags)


def main() -> None:
    """Take the lane's options and hand the rest on."""
    lane, rest = split_flags(sys.argv[1:])
    LaneSettings(lane.lane_mutation, lane.lane_report, lane.lane_late).to_environment()
    os.environ.update(one.split("=", 1) for one in lane.lane_variable)
    sys.argv[1:] = rest
    runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
