"""`python -m benchmarks NAME [FLAGS]`: run one benchmark; without a name, list them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "decode": "decoding speed: plain, stock DFLASH chain, DDTREE, in one run",
    "lossless": "DDTREE's greedy tokens against plain decoding's",
    "faults": "what clients notice when workers die or hang",
    "tree_builder": "the batched tree builder against the heap oracle",
    "cpu_plain": "the plain CPU server against Hugging Face `generate`",
    "drafter_recipe": "what each choice of the drafter's recipe is worth",
    "plot": "pictures of a `decode` result",
    "record_round": "record one round of a real server, tree and accepted path",
    "plot_round": "picture of a round that `record_round` recorded",
    "plot_drafter_curve": "the drafter's learning curve",
    "gpu_kernels": "the kernels' times on a GPU",
    "gpu_checks": "checks that need a GPU: no host waits, graphs, tree widths",
    "dummy_pair": "write a target and a drafter of a real shape with random weights",
    "round_cost": "what a round costs against plain decoding's step, from `decode` results",
    "register_checkout": "make a checkout on PYTHONPATH known to SGLang as a plugin",
}


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that the first argument names with the rest as its flags; its exit status."""
    if not argv or argv[0] not in COMMANDS:
        print(__doc__)
        print("\n".join(f"  {name:20} {what}" for name, what in COMMANDS.items()))
        return 0 if argv[:1] in ([], ["--help"], ["-h"]) else 2
    return int(importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
