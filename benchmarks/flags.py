"""Flags that the benchmarks with real servers have in common."""

from __future__ import annotations

import argparse

from prompts import DATASETS, SOURCES


def add_common_flags(parser: argparse.ArgumentParser) -> None:
    """Model pair, prompts, and what every server gets."""
    parser.add_argument("--model", help="target model folder (default: the embedded one)")
    parser.add_argument("--draft", help="DFlash drafter folder (default: the one that ships)")
    parser.add_argument("--datasets", nargs="+", default=list(SOURCES), choices=list(DATASETS))
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--max-total-tokens", type=int, default=8192, help="KV pool of each server")
    parser.add_argument("--server-flag", action="append", default=[], help="further flag for every server")
