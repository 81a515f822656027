"""Server arguments on a CPU: what the platform fills in, and which explicit flags it must refuse.

SGLang calls this through `SRTPlatform.apply_server_args_defaults` (`srt/arg_groups/platform_hook.py`),
after the CUDA-graph step and before the memory and attention steps. The object it hands over records
assignments to existing fields and drops all others.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from sglang.srt.model_executor.cuda_graph_config import Backend, Phase, with_phase

from ddtree_sglang.cpu_platform.lora import resolve_backend
from ddtree_sglang.cpu_platform.memory_budget import default_max_total_tokens
from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND, QUANTIZATIONS
from ddtree_sglang.exceptions import DDTreeConfigError
from ddtree_sglang.modelopt_file import FILE, is_said_in_config, read_modelopt

DEFAULT_MEM_FRACTION_STATIC = 0.6
"""Upper bound of weights + KV cache as a share of the memory that is free at start."""

DEFAULT_CHUNKED_PREFILL_SIZE = 1024
"""Tokens per prefill chunk: past a few hundred the products gain nothing, but decoding waits longer."""

DEFAULT_MAX_RUNNING_REQUESTS = 16

OPENMP_SPIN_COUNT = "10000"
"""Turns of GNU OpenMP's waiting loop before a thread sleeps; its default is 300,000, and 0 when told to be passive."""

# SGLang's own CPU step runs first and fills in its AMX backend, which needs a source build of sgl_kernel.
_ENGINE_FILLED_BACKENDS = (None, "intel_amx")

_GPU_ONLY_SWITCHES = (
    "enable_symm_mem",
    "enable_two_batch_overlap",
    "enable_hierarchical_cache",
    "enable_lmcache",
    # SGLang's batch-invariant kernels are Triton's.
    "enable_deterministic_inference",
)


def apply_defaults(server_args: Any) -> None:
    """Set the CPU defaults on `server_args`.

    Raises:
        DDTreeConfigError: a flag contradicts the platform. A command line says so in one line (engine/hooks.py).
    """
    _check_device(server_args)
    _check_switches(server_args)
    _check_cache_dtype(server_args)
    _check_quantization(server_args)
    _resolve_attention_backend(server_args)
    resolve_backend(server_args)
    _disable_device_graphs(server_args)
    # One process does everything in order: a second stream to overlap with does not exist.
    server_args.disable_overlap_schedule = True
    # An idle scheduler otherwise polls in a loop and takes a core from everything else on the machine.
    server_args.sleep_on_idle = True
    server_args.disable_custom_all_reduce = True
    _resolve_memory(server_args)
    _bound_how_long_threads_spin()
    _share_cores_between_ranks(server_args)


def _check_device(server_args: Any) -> None:
    device = server_args.device
    if device is not None and str(device) != "cpu":
        raise DDTreeConfigError(
            f"--device must be 'cpu' on a machine without a GPU, got {str(device)!r}; drop the flag, or run "
            "where torch sees that device."
        )


def _check_switches(server_args: Any) -> None:
    for name in _GPU_ONLY_SWITCHES:
        if getattr(server_args, name, False):
            flag = "--" + name.replace("_", "-")
            raise DDTreeConfigError(f"{flag} needs a GPU, and this machine has none; drop the flag.")
    # What SGLang has made of --enable-dp-attention by now.
    if getattr(server_args, "attn_dp_size", 1) > 1:
        raise DDTreeConfigError("--enable-dp-attention needs a GPU, and this machine has none; drop the flag.")
    if server_args.pp_size != 1:
        raise DDTreeConfigError(
            f"--pp-size must be 1 on the CPU platform, got {server_args.pp_size}; use --tp-size instead."
        )


def _check_cache_dtype(server_args: Any) -> None:
    """Rows are written and read as the model made them; there is no kernel that converts on the way."""
    asked = {"bf16": "bfloat16"}.get(server_args.kv_cache_dtype, server_args.kv_cache_dtype)
    if asked not in ("auto", server_args.dtype):
        raise DDTreeConfigError(
            f"--kv-cache-dtype must be 'auto', the model's own, on a machine without a GPU, got {asked!r} with --dtype "
            f"{server_args.dtype}; drop the flag."
        )


def _check_quantization(server_args: Any) -> None:
    """Of models in local folders; for others the loader says the same (cpu_platform/quantized.py)."""
    models = (
        (server_args.model_path, server_args.quantization),
        (server_args.speculative_draft_model_path, server_args.speculative_draft_model_quantization),
    )
    for path, asked in models:
        found = _stored_quantization(path)
        if found is None and asked not in (None, "unquant"):
            found = f"plain weights to be made {asked}"
        if found is not None and found not in QUANTIZATIONS:
            raise DDTreeConfigError(
                f"a machine without a GPU serves plain weights and those of {' and '.join(QUANTIZATIONS)}, got {found} "
                f"for {path!r}; use another checkpoint."
            )


def _stored_quantization(path: str | None) -> str | None:
    config = Path(path or "").expanduser() / "config.json"
    if path is None or not config.is_file():
        return None
    said = json.loads(config.read_text(encoding="utf-8"))
    if not is_said_in_config(said):
        return _of_modelopt(config.with_name(FILE))
    named = said.get("quantization_config")
    method = named.get("quant_method") if isinstance(named, dict) else None
    return None if method is None else str(method)


def _of_modelopt(file: Path) -> str | None:
    """The algorithm that ModelOpt names in a file of its own."""
    try:
        algorithm = read_modelopt(file).algorithm
    except (OSError, ValueError):
        # Others say what is wrong with it.
        return None
    return None if algorithm is None else f"{algorithm} of {file.name}"


def _resolve_attention_backend(server_args: Any) -> None:
    for name in ("attention_backend", "prefill_attention_backend", "decode_attention_backend"):
        chosen = getattr(server_args, name)
        if chosen not in (*_ENGINE_FILLED_BACKENDS, ATTENTION_BACKEND):
            flag = "--" + name.replace("_", "-")
            raise DDTreeConfigError(
                f"{flag} must be {ATTENTION_BACKEND!r} on a machine without a GPU, got {chosen!r}; drop the flag."
            )
    server_args.attention_backend = ATTENTION_BACKEND
    server_args.sampling_backend = "pytorch"


def _disable_device_graphs(server_args: Any) -> None:
    config = server_args.cuda_graph_config
    for phase in Phase.ALL:
        config = with_phase(config, phase, backend=Backend.DISABLED)
    server_args.cuda_graph_config = config


def _resolve_memory(server_args: Any) -> None:
    if server_args.chunked_prefill_size is None:
        server_args.chunked_prefill_size = DEFAULT_CHUNKED_PREFILL_SIZE
    if server_args.max_running_requests is None:
        server_args.max_running_requests = DEFAULT_MAX_RUNNING_REQUESTS
    if server_args.mem_fraction_static is not None:
        return
    server_args.mem_fraction_static = DEFAULT_MEM_FRACTION_STATIC
    if server_args.max_total_tokens is None:
        server_args.max_total_tokens = default_max_total_tokens(server_args)


def _bound_how_long_threads_spin() -> None:
    """Have the scheduler's OpenMP threads spin for a fifth of a millisecond, then sleep, unless the user chose a way.

    Too short, and every one of a step's few hundred products pays for waking a thread; too long, and a spinning thread
    holds the core that its partner, the tokenizer or another program, needs. Measured on two cores: see
    benchmarks/LOG.md, 2026-11-22. Set here, in the launcher, because OpenMP reads it once, when a process loads it;
    the scheduler inherits the environment.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", OPENMP_SPIN_COUNT)


def _share_cores_between_ranks(server_args: Any) -> None:
    """Give each of several ranks its part of the cores, unless the user did.

    SGLang asks for that in `SGLANG_CPU_OMP_THREADS_BIND` as soon as there are more ranks than NUMA nodes
    (utils/numa_utils.py, init_threads_binding) and stops without it. Only its AMX builds bind threads; elsewhere the
    number of threads is what keeps ranks from standing in each other's way. More ranks than cores share all of them.
    """
    ranks = server_args.tp_size * server_args.dp_size
    if ranks == 1:
        return
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // ranks)
    parts = [[cores[(rank * each + place) % len(cores)] for place in range(each)] for rank in range(ranks)]
    os.environ.setdefault("SGLANG_CPU_OMP_THREADS_BIND", "|".join(",".join(map(str, part)) for part in parts))
    os.environ.setdefault("OMP_NUM_THREADS", str(each))
