"""The sections of `python -m benchmarks gpu_proof`: what each runs, what it needs, about how long it takes.

A section's function returns the status of what it ran; 0 is a pass. Servers get graphs for the batch sizes that their
section measures and for no others.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.harness.gpu_lab import Lab, Verdict, output_of
from benchmarks.harness.provenance import REPO, collect_provenance
from benchmarks.round_cost import cost_table, round_costs

# float32 as it is written: sgl_kernel's norms know half precision alone, and Triton's products would be TF32.
AS_WRITTEN = {"SGLANG_FORCE_FUSED_OP_BACKEND": "torch", "TRITON_F32_DEFAULT": "ieee"}
HALF = ("--dtype", "bfloat16")
# A mask that is ignored shows every node its siblings: then most answers differ, by far more than this tie.
HALF_TIES = (*HALF, "--near-tie", "0.25")
MODULES = {
    "flashinfer": "flashinfer",
    "fa3": "sgl_kernel.flash_attn",
    "fa4": "sglang.kernels.ops.attention.flash_attention_v4",
}
"""Attention backend -> the module that it cannot do without; Triton is always there."""
# SGLang's FlashAttention builds, by the major version of the GPU's compute capability: Hopper, Blackwell.
FLASH_ATTENTION = {"9": "fa3", "10": "fa4"}


@dataclass(frozen=True)
class Section:
    """One proof. `needs` is "model" (a pair to serve), "pytest", or "" for nothing.

    `limit_s`: seconds on a fast GPU, an estimate. With fewer left the section is skipped; a longer run is ended at the
    time limit.
    """

    name: str
    what: str
    needs: str
    limit_s: int
    run: Callable[[Lab], int]


def servers(lab: Lab, logs: str, *batch_sizes: int, start_factor: int = 1) -> list[str]:
    """Flags of a benchmark that serves the pair, whatever the systems; logs go to `servers/<logs>`."""
    of_servers = (f"--attention-backend={lab.backend}", "--mem-fraction-static=0.5", "--disable-prefill-cuda-graph")
    graphs = ("--cuda-graph-bs-decode", *map(str, batch_sizes))
    return [
        *("--model", lab.model, *(("--draft", lab.draft) if lab.draft else ())),
        *("--datasets", "held-out", "--start-timeout", str(start_factor * lab.start_timeout_s)),
        *("--client-timeout", str(lab.client_timeout_s), "--server-logs", str(lab.out / "servers" / logs)),
        *(f"--server-flag={flag}" for flag in (*of_servers, *graphs)),
    ]


def in_float32(lab: Lab, *arguments: str, section: str) -> int:
    """Run a benchmark on float32 servers for one and eight requests.

    Attention without tensor cores takes Triton a quarter of a minute a kernel to compile, hence the longer start.
    """
    flags = servers(lab, section, 1, 8, start_factor=2)
    return lab.python("-m", "benchmarks", *arguments, *flags, "--max-new-tokens", "64", **AS_WRITTEN)


def is_installed(lab: Lab, case: str, backend: str) -> bool:
    """Whether an attention backend can be imported; if not, `case` gets the verdict SKIP."""
    module = MODULES.get(backend)
    error = lab.why_not(f"import {module}") if module else ""
    if error:
        lab.conclude(Verdict(case, "SKIP", 0, f"import {module} fails here: {error}"))
    return not error


def compare_backend(lab: Lab, case: str, backend: str, *flags: str) -> int:
    """bfloat16 tokens on an attention backend against plain decoding's, ties apart."""
    of_servers = (*servers(lab, case, 1, 4), f"--server-flag=--attention-backend={backend}")
    output = ("--output", str(lab.out / f"{case}.json"))
    return lab.python(
        "-m", "benchmarks", "lossless", *of_servers, *HALF_TIES, "--concurrency", "1", "4", *flags, *output
    )


def machine(lab: Lab) -> int:
    found = collect_provenance()
    lab.say(json.dumps(found, indent=1))
    return 0 if found["gpu"] else 1


def kernels(lab: Lab) -> int:
    tests = ("tests/kernels", "tests/core/test_cuda_graph.py", "tests/engine/debug/test_sync_check.py")
    return lab.python("-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, TRITON_F32_DEFAULT="ieee")


def builder(lab: Lab) -> int:
    return lab.python("-m", "benchmarks", "gpu_kernels", "--output", str(lab.out / "builder.jsonl"))


def nosync(lab: Lab) -> int:
    flags = (*servers(lab, "nosync", 1, 8), *HALF, "--max-new-tokens", "64")
    return lab.python("-m", "benchmarks", "gpu_checks", "no-sync", *flags)


def smoke(lab: Lab) -> int:
    few = ("--prompts", "4", "--max-new-tokens", "24", "--budgets", "16")
    return compare_backend(lab, "smoke", lab.backend, *few)


def lossless(lab: Lab) -> int:
    what = ("--prompts", "24", "--budgets", "16", "63", "--output", str(lab.out / "lossless.json"))
    return in_float32(lab, "lossless", *what, section="lossless")


def graphs(lab: Lab) -> int:
    return in_float32(lab, "gpu_checks", "graph-equality", section="graphs")


def widths(lab: Lab) -> int:
    status = in_float32(lab, "gpu_checks", "width-equality", section="widths")
    if not is_installed(lab, "widths/flashinfer", "flashinfer"):
        return status
    lab.say("-- flashinfer")
    flags = (*servers(lab, "widths-flashinfer", 1, 8), "--server-flag=--attention-backend=flashinfer", *HALF_TIES)
    return lab.python("-m", "benchmarks", "gpu_checks", "width-equality", *flags, "--max-new-tokens", "64") or status


def backends(lab: Lab) -> int:
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    major = output_of(query, lab.environment).stdout.partition(".")[0].strip()
    status = 0
    for name in ("triton", "flashinfer", *([FLASH_ATTENTION[major]] if major in FLASH_ATTENTION else [])):
        lab.say(f"-- {name}")
        if is_installed(lab, f"backends/{name}", name):
            flags = ("--prompts", "12", "--max-new-tokens", "48", "--budgets", "31")
            status = compare_backend(lab, f"backend-{name}", name, *flags) or status
    return status


def speed(lab: Lab) -> int:
    sizes = ("--prompts", "8", "--max-new-tokens", "64", "--budgets", "8", "16", "32", "64")
    return decode(lab, "speed", (1, 4, 8), *servers(lab, "speed", 1, 4, 8), *sizes)


def speed_large(lab: Lab) -> int:
    # The KV pool holds 32 requests with two windows of 65 nodes each: retracting requests would be timed with the rest.
    sizes = ("--prompts", "32", "--max-new-tokens", "64", "--max-total-tokens", "32768", "--budgets", "16", "64")
    return decode(lab, "speed-large", (16, 32), *servers(lab, "speed-large", 16, 32), *sizes, "--repeats", "2")


def rounds(lab: Lab) -> int:
    pair = REPO / ".cache/dummy-pair"
    status = lab.python("-m", "benchmarks", "dummy_pair", str(pair), "--tokenizer", lab.model)
    if status:
        return status
    made_up = ("--model", str(pair / "target"), "--draft", str(pair / "draft"), "--server-flag=--load-format=dummy")
    sizes = ("--max-total-tokens", "24576", "--prompts", "32", "--max-new-tokens", "32", "--budgets", "16", "64")
    more = ("--server-flag=--skip-tokenizer-init", "--servers-at-once", "4", "--repeats", "2")
    status = decode(lab, "rounds", (1, 8, 32), *servers(lab, "rounds", 1, 8, 32), *made_up, *more, *sizes)
    lines = lab.out / "rounds.jsonl"
    if lines.exists():  # of a run that was ended early, too
        costs = round_costs(map(json.loads, lines.read_text(encoding="utf-8").splitlines()))
        lab.say(cost_table(costs))
        (lab.out / "rounds.md").write_text(cost_table(costs) + "\n", encoding="utf-8")
    return status


def decode(lab: Lab, name: str, batch_sizes: tuple[int, ...], *flags: str) -> int:
    """Run the benchmark of decoding speed in bfloat16; result lines go to `<name>.jsonl`."""
    sizes = ("--batch-sizes", *map(str, batch_sizes), "--output", str(lab.out / f"{name}.jsonl"))
    return lab.python("-m", "benchmarks", "decode", *flags, *HALF, "--allow-mismatch", "--no-trace", *sizes)


SECTIONS = (
    Section("machine", "what this is: GPU, driver, packages", "", 5, machine),
    Section("kernels", "tree builder, draft graph tail and walk against core, random shapes", "pytest", 90, kernels),
    Section("nosync", "a decode round never waits for the device", "model", 45, nosync),
    Section("smoke", "four prompts, bfloat16: tokens are plain decoding's, ties apart", "model", 60, smoke),
    Section("lossless", "greedy tokens are plain decoding's, float32, one and eight at once", "model", 180, lossless),
    Section("graphs", "CUDA graphs and eager choose the same tokens", "model", 75, graphs),
    Section(
        "widths",
        "other tree widths and rounds without a draft choose the same tokens, on FlashInfer too",
        "model",
        150,
        widths,
    ),
    Section("backends", "each attention backend honours the tree's mask, ties apart", "model", 200, backends),
    Section("builder", "the builder's time against its memory floor", "", 45, builder),
    Section("speed", "plain, DFLASH chain, DDTREE at batch 1, 4, 8", "model", 300, speed),
    Section("rounds", "a round's cost in plain steps, the size of Qwen3-8B, no weights", "model", 330, rounds),
    Section("speed-large", "the same three systems as in speed at batch 16 and 32", "model", 240, speed_large),
)
"""The most decisive first."""
