"""`python -m benchmarks NAME [FLAGS]`: run one benchmark; without a name, list them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "decode": ("decoding speed: plain, stock DFLASH chain, DDTREE, in one run", "hours; minutes with --quick"),
    "budget_sweep": ("speed and accept length against the node budget, 1 to 64", "a quarter of an hour"),
    "serving": ("open loop at rates of requests, by SGLang's own client: TTFT, TPOT, p50 and p99", "an hour"),
    "acceptance": ("tokens a round: chain beside trees, their histogram, surrogate against acceptance", "half an hour"),
    "surrogate": ("expected against realised tokens of any trace: correlation, calibration", "seconds"),
    "ngram_conditional": ("drafts that know the request's own n-grams, offline: tokens a round", "half an hour"),
    "lossless": ("DDTREE's greedy tokens against plain decoding's", "an hour"),
    "request_suites": ("answers under JSON schemas and penalties against plain decoding's", "ten minutes"),
    "faults": ("what clients notice when workers die or hang", "two and a half hours"),
    "tree_builder": ("the batched tree builder against the heap oracle", "minutes; seconds with --quick"),
    "grammars": ("what grammars cost a round, and what pruning its trees brings", "three minutes"),
    "cpu_plain": ("the plain CPU server against Hugging Face `generate`", "minutes"),
    "drafter_recipe": ("what each choice of the drafter's recipe is worth", "minutes a choice"),
    "plot": ("pictures of result files, whatever benchmark wrote them", "seconds"),
    "record_round": ("record one round of a real server: its tree and the accepted path", "a minute"),
    "record_replay": ("record a tree at each position of answers, for the replay simulator", "minutes"),
    "replay_check": ("the replay simulator against real servers", "six minutes"),
    "replay_rates": ("the replay simulator against a finished run of `decode`", "seconds"),
    "predict": ("predictions of Qwen3-8B on GPUs, beside the one measured point", "two minutes"),
    "first_drop": ("the policy's choice against a stop at the first drop, by replay", "a minute"),
    "correction_gain": ("what correcting the drafter's probabilities does to the choice of nodes", "a minute"),
    "forest_gain": ("what rectangular forwards cost a batch of trees, by replay", "some minutes"),
    "plot_round": ("picture of a round that `record_round` recorded", "seconds"),
    "plot_drafter_curve": ("the drafter's learning curve", "seconds"),
    "round_cost": ("what a round costs in plain decoding steps, from `decode` results", "seconds"),
    "end_cost": ("what it costs the host that requests end as in plain decoding", "half a minute"),
    "controller_time": ("policy adaptive's host time a round, between forwards that empty the caches", "two minutes"),
    "feature_cost": ("what each feature of requests costs in a round, and its flags a batch without", "ten minutes"),
    "fuzz_results": ("keep what runs of `python -m tests.fuzz --output` found", "seconds"),
    "kernel_facts": ("registers, spills and shared memory of every kernel, without a GPU", "two minutes"),
    "gpu_proof": ("every section of the GPU proof, each with a verdict", "an hour, by estimate"),
    "gpu_facts": ("one thing that works or does not: a package, a kernel", "seconds"),
    "gpu_record": ("what the servers of some cases of the GPU proof answer", "a minute a case, by estimate"),
    "gpu_prompts": ("token ids of prompts for a carried pair of the GPU proof", "seconds"),
    "gpu_kernels": ("every kernel against its oracle, and its time on a GPU", "a minute, by estimate"),
    "tiny_pair": ("write a tiny target and a drafter that knows something of it", "seconds"),
    "recurrent_pair": ("write the tiny pair with gated delta nets in its target", "seconds"),
    "dummy_pair": ("write a target and a drafter of a real shape without weights", "seconds"),
    "register_checkout": ("make a checkout on PYTHONPATH known to SGLang as a plugin", "seconds"),
}
"""Name -> what it shows, and its time on two cores."""


def main(argv: Sequence[str]) -> int:
    """Run the benchmark that the first argument names with the rest as its flags; its exit status."""
    if not argv or argv[0] not in COMMANDS:
        print(__doc__)
        print("\n".join(f"  {name:20}{what} ({time})" for name, (what, time) in COMMANDS.items()))
        return 0 if argv[:1] in ([], ["--help"], ["-h"]) else 2
    return int(importlib.import_module(f"benchmarks.{argv[0]}").main(argv[1:]) or 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
