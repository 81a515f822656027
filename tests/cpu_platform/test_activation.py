"""When the platform applies, when it stands aside, and what it fills in or refuses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.arg_groups import choices
from sglang.srt.model_executor.cuda_graph_config import Backend, default_cuda_graph_config
from sglang.srt.platforms.interface import SRTPlatform

from ddtree_sglang import cpu_platform
from ddtree_sglang.cpu_platform import memory_budget, server_defaults
from ddtree_sglang.cpu_platform.names import ATTENTION_BACKEND
from ddtree_sglang.cpu_platform.platform import DDTreeCpuPlatform

pytestmark = pytest.mark.sglang


@pytest.fixture(autouse=True)
def _no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SGLANG_USE_CPU_ENGINE", raising=False)
    monkeypatch.setattr(cpu_platform, "_accelerator_present", lambda: False)


def test_activates_on_a_bare_machine() -> None:
    assert cpu_platform.activate() == cpu_platform.PLATFORM_CLASS


def test_stands_aside_for_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert cpu_platform.activate() is None


def test_stands_aside_for_the_engines_own_cpu_route(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGLANG_USE_CPU_ENGINE", "1")
    assert cpu_platform.activate() is None


def test_named_class_is_a_platform() -> None:
    platform = DDTreeCpuPlatform()
    assert isinstance(platform, SRTPlatform)
    assert platform.is_out_of_tree()
    assert f"{type(platform).__module__}.{type(platform).__name__}" == cpu_platform.PLATFORM_CLASS


def test_platform_makes_its_backend_a_legal_flag_value() -> None:
    DDTreeCpuPlatform()
    DDTreeCpuPlatform()
    assert choices.ATTENTION_BACKEND_CHOICES.count(ATTENTION_BACKEND) == 1
    assert choices.DRAFT_ATTENTION_BACKEND_CHOICES.count(ATTENTION_BACKEND) == 1


@pytest.mark.parametrize(
    ("algorithm", "supported"), [("DFLASH", True), ("DDTREE", True), ("ddtree", True), ("EAGLE", False)]
)
def test_supported_algorithms(algorithm: str, supported: bool) -> None:
    assert DDTreeCpuPlatform().supports_speculative_algorithm(algorithm) is supported


def arguments(**changes: Any) -> SimpleNamespace:
    fields: dict[str, Any] = dict.fromkeys(server_defaults._GPU_ONLY_SWITCHES, False)
    fields |= {
        "device": "cpu",
        "model_path": "somewhere/on-the-hub",
        "quantization": None,
        "speculative_draft_model_path": None,
        "speculative_draft_model_quantization": None,
        "pp_size": 1,
        "tp_size": 1,
        "dp_size": 1,
        "dtype": "auto",
        "kv_cache_dtype": "auto",
        "attention_backend": "intel_amx",
        "prefill_attention_backend": None,
        "decode_attention_backend": None,
        "sampling_backend": None,
        "cuda_graph_config": default_cuda_graph_config(),
        "chunked_prefill_size": None,
        "max_running_requests": None,
        "mem_fraction_static": None,
        "max_total_tokens": 5000,
        "enable_lora": None,
        "lora_paths": None,
    }
    return SimpleNamespace(**(fields | changes))


def test_defaults_make_a_bare_command_line_work() -> None:
    given = arguments()
    server_defaults.apply_defaults(given)
    assert given.attention_backend == ATTENTION_BACKEND
    assert given.disable_overlap_schedule is True
    assert given.cuda_graph_config.decode.backend == Backend.DISABLED
    assert given.cuda_graph_config.prefill.backend == Backend.DISABLED
    assert given.max_total_tokens == 5000
    assert 0 < given.mem_fraction_static < 1


def test_what_the_user_chose_stays() -> None:
    given = arguments(chunked_prefill_size=64, max_running_requests=3, mem_fraction_static=0.25, max_total_tokens=None)
    server_defaults.apply_defaults(given)
    assert (given.chunked_prefill_size, given.max_running_requests, given.mem_fraction_static) == (64, 3, 0.25)
    assert given.max_total_tokens is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "cuda"}, "--device must be 'cpu'.*'cuda'"),
        ({"attention_backend": "flashinfer"}, "--attention-backend must be 'ddtree_cpu'.*'flashinfer'"),
        ({"decode_attention_backend": "fa3"}, "--decode-attention-backend must be"),
        ({"pp_size": 2}, "--pp-size must be 1.*got 2"),
        ({"enable_symm_mem": True}, "--enable-symm-mem needs a GPU"),
        ({"enable_deterministic_inference": True}, "--enable-deterministic-inference needs a GPU"),
        ({"kv_cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype must be 'auto'.*'fp8_e4m3'"),
        ({"kv_cache_dtype": "bf16", "dtype": "float32"}, "--kv-cache-dtype must be 'auto'.*'bfloat16' with --dtype"),
    ],
)
def test_contradicting_flags_are_refused_with_rule_value_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        server_defaults.apply_defaults(arguments(**changes))


@pytest.mark.parametrize(("cache", "model"), [("auto", "float32"), ("bf16", "bfloat16"), ("bfloat16", "bfloat16")])
def test_cache_of_the_models_own_kind_may_be_named(cache: str, model: str) -> None:
    given = arguments(kv_cache_dtype=cache, dtype=model)
    server_defaults.apply_defaults(given)
    assert given.kv_cache_dtype == cache


def test_kv_budget_is_bounded_by_memory_and_by_contexts() -> None:
    per_token = memory_budget.kv_bytes_per_token(30, 3, 64, torch.float32)
    assert per_token == 2 * 30 * 3 * 64 * 4
    assert memory_budget.tokens_within(per_token * 10_000, per_token, 8192) == 10_000
    assert memory_budget.tokens_within(per_token * 10**9, per_token, 8192) == 16 * 8192
    assert memory_budget.tokens_within(0, per_token, 8192) == memory_budget.MIN_TOKENS


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, server_defaults.OPENMP_SPIN_COUNT),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, None),
        ({"GOMP_SPINCOUNT": "100"}, "100"),
    ],
)
def test_waiting_threads_spin_briefly_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: str | None
) -> None:
    environment = dict(given)
    monkeypatch.setattr(server_defaults.os, "environ", environment)
    server_defaults.apply_defaults(arguments())
    assert environment.get("GOMP_SPINCOUNT") == expected


@pytest.mark.parametrize(
    ("ranks", "cores", "given", "binding", "threads"),
    [
        (1, {0, 1}, {}, None, None),
        (2, {0, 1}, {}, "0|1", "1"),
        (3, {0, 1}, {}, "0|1|0", "1"),
        (2, {2, 3, 6, 7, 8}, {}, "2,3|6,7", "2"),
        (2, {0, 1}, {"SGLANG_CPU_OMP_THREADS_BIND": "1|0", "OMP_NUM_THREADS": "4"}, "1|0", "4"),
    ],
)
def test_ranks_get_their_part_of_the_cores_unless_the_user_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
    ranks: int,
    cores: set[int],
    given: dict[str, str],
    binding: str | None,
    threads: str | None,
) -> None:
    environment = dict(given)
    monkeypatch.setattr(server_defaults.os, "environ", environment)
    monkeypatch.setattr(server_defaults.os, "sched_getaffinity", lambda _: cores)
    server_defaults.apply_defaults(arguments(tp_size=ranks))
    assert environment.get("SGLANG_CPU_OMP_THREADS_BIND") == binding
    assert environment.get("OMP_NUM_THREADS") == threads


def test_sglangs_deterministic_inference_takes_no_backend_of_a_cpu() -> None:
    """Why it is refused; SGLang says so without the reason."""
    from sglang.srt.arg_groups.overrides import _deterministic_attention_backend

    asked = SimpleNamespace(enable_deterministic_inference=True, attention_backend=ATTENTION_BACKEND)
    with pytest.raises(ValueError, match="attention backends are supported for deterministic inference"):
        _deterministic_attention_backend(asked)


def test_sglangs_copies_of_a_cache_on_the_host_are_registered_with_a_driver() -> None:
    """Why a hierarchical cache is refused."""
    from sglang.srt.mem_cache.pool_host.common import ALLOC_MEMORY_FUNCS, HostTensorAllocator

    with pytest.raises((RuntimeError, AssertionError)):
        ALLOC_MEMORY_FUNCS["cpu"]((4,), torch.float32, "cpu", True, HostTensorAllocator())


def test_sglang_gathers_the_tokens_of_groups_by_a_kernel() -> None:
    """Why DP attention is refused: on its own platform for CPUs it would not, on ours it does."""
    from sglang.srt.layers import dp_attention

    assert dp_attention.memcpy_func is dp_attention.memcpy_triton


def test_sglangs_decoding_server_keeps_retracted_requests_in_memory_that_a_driver_registers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Why prefill and decoding on two servers are refused: one that decodes makes such a pool at its start.

    Nobody has run one with `--disaggregation-decode-retraction-backup cpu_tensor`, which makes none.
    """
    from sglang.srt.mem_cache import kv_cache_builder as module
    from sglang.srt.mem_cache.pool_host.common import ALLOC_MEMORY_FUNCS, HostTensorAllocator

    from ddtree_sglang.cpu_platform.kv_pool import CpuMHATokenToKVPool

    chosen: dict[str, Any] = {}
    disagg = SimpleNamespace(
        disaggregation_mode="decode",
        disaggregation_decode_retraction_backup=None,
        disaggregation_decode_enable_radix_cache=False,
        disaggregation_decode_enable_offload_kvcache=False,
    )
    bags = {
        "get_disagg": disagg,
        "get_memory": SimpleNamespace(enable_unified_memory=False, hicache_ratio=2.0),
        "get_schedule": SimpleNamespace(enable_priority_scheduling=False),
        "get_parallel": SimpleNamespace(dcp_enabled=False),
        "get_context": SimpleNamespace(override=lambda _source, **fields: chosen.update(fields)),
    }
    for name, bag in bags.items():
        monkeypatch.setattr(module, name, lambda bag=bag: bag)
    monkeypatch.setattr(module, "uses_ssm_state", lambda _config: False)
    pool = CpuMHATokenToKVPool.__new__(CpuMHATokenToKVPool)
    worker = SimpleNamespace(
        is_hybrid_swa=False,
        get_memory_pool=lambda: (None, SimpleNamespace(get_kvcache=lambda: pool)),
        model_runner=SimpleNamespace(mtp_draft_device_pools=(), model_config=None),
    )
    assert module.resolve_decode_retraction_backup(tp_worker=worker) == "host_pool"
    assert chosen == {"disaggregation_decode_retraction_backup": "host_pool"}
    with pytest.raises((RuntimeError, AssertionError)):
        ALLOC_MEMORY_FUNCS["cpu"]((4,), torch.float32, "cpu", True, HostTensorAllocator())


def test_sglangs_product_of_awq_weights_is_a_kernel_of_gpus() -> None:
    """Why a checkpoint of another quantization than two is refused: its weights would load, and end in a kernel."""
    from sglang.srt.hardware_backend.gpu.quantization.awq_kernels import AWQLinearKernel

    packed = torch.zeros(32, 1, dtype=torch.int32)
    layer = SimpleNamespace(qweight=packed, scales=torch.ones(1, 8), qzeros=packed[:1])
    with pytest.raises(NotImplementedError, match=r"sglang::awq_dequantize' with arguments from the 'CPU' backend"):
        AWQLinearKernel(SimpleNamespace(pack_factor=8)).apply(layer, torch.ones(2, 32))
