"""Types of variables, attributes and results that our source does not annotate, for `walk.py`.

A name has one meaning in every module of ours, or is listed for its module.
"""

from __future__ import annotations

NAMESPACES = ("Device", "Disagg", "Lora", "Memory", "Mm", "Model", "Observability", "Parallel", "Schedule", "Serving")
NAMESPACES += ("Spec",)
EXEC = ("Features", "Kernel", "Mamba", "Graph", "Comm", "Moe", "Overlap", "Offload", "Dllm", "Deterministic")

Class = tuple[str, str]
Type = tuple[Class, ...]
"""One class or several, each as module and name; an attribute must be listed for one of them."""


def types_of(*names: str) -> Type:
    """Types from "module:Class"."""
    return tuple((name.partition(":")[0], name.partition(":")[2]) for name in names)


_FIELDS = "sglang.srt.arg_groups.fields"
_BAG = "sglang.srt.runtime_context:_ConfigBag"
SERVER_ARGS = types_of(
    "sglang.srt.server_args:ServerArgs",
    # What SGLang hands to a plugin in place of its arguments.
    "sglang.srt.arg_groups.overrides:_ForeignDefaults",
    *(f"{_FIELDS}.{name.lower()}:{name}" for name in NAMESPACES),
    *(f"{_FIELDS}.exec_:Exec{name}" for name in EXEC),
)
MODEL_RUNNER = types_of("sglang.srt.model_executor.model_runner:ModelRunner")
KV_POOL = types_of("sglang.srt.mem_cache.memory_pool:MHATokenToKVPool")
MODEL_CONFIG = types_of("sglang.srt.configs.model_config:ModelConfig")
LOGITS = types_of("sglang.srt.layers.logits_processor:LogitsProcessorOutput")
BATCH_RESULT = types_of("sglang.srt.managers.utils:GenerationBatchResult")
BACKEND = types_of("sglang.srt.layers.attention.base_attn_backend:AttentionBackend")
VERIFY_MASK = types_of("sglang.srt.layers.attention.verify_mask:VerifyMask")
REQUEST_INPUT = types_of("sglang.srt.managers.io_struct:GenerateReqInput")
TOKENIZER = types_of(
    "transformers.tokenization_utils_base:PreTrainedTokenizerBase",
    "transformers.tokenization_utils_tokenizers:TokenizersBackend",
)
PARALLEL = types_of("sglang.srt.runtime_context:ParallelContext", f"{_FIELDS}.parallel:Parallel")
OPERATOR = types_of(
    "sglang.srt.layers.layernorm:RMSNorm",
    "sglang.srt.layers.activation:SiluAndMul",
    "sglang.srt.layers.rotary_embedding.base:RotaryEmbedding",
)
LAYER = types_of("sglang.srt.models.llama:LlamaDecoderLayer", "sglang.srt.layers.radix_attention:RadixAttention")
LINEAR = types_of("sglang.srt.layers.linear:LinearBase", "sglang.srt.layers.vocab_parallel_embedding:ParallelLMHead")
LM_HEAD = types_of("sglang.srt.layers.vocab_parallel_embedding:ParallelLMHead")

PARTS = ("input_norm", "qkv", "qkv_sizes", "rotary", "attention", "output", "post_norm", "gate_up", "down")
"""Fields of our own `lean_llama._Layer`, whose variable has the name of SGLang's layer."""

VARIABLES: dict[str, Type] = {
    "server_args": SERVER_ARGS,
    "cfg": SERVER_ARGS,
    "runner": MODEL_RUNNER,
    "target_runner": MODEL_RUNNER,
    "_runner": MODEL_RUNNER,
    "model_runner": MODEL_RUNNER,
    "draft_model_runner": MODEL_RUNNER,
    "target_worker": types_of("sglang.srt.managers.tp_worker:TpModelWorker"),
    "forward_batch": types_of("sglang.srt.model_executor.forward_batch_info:ForwardBatch"),
    "forward_mode": types_of("sglang.srt.model_executor.forward_batch_info:ForwardMode"),
    "model_config": MODEL_CONFIG,
    "lm_head": LM_HEAD,
    "quant_method": types_of("sglang.srt.layers.quantization.base_config:QuantizeMethodBase"),
    "shard_indices": types_of("sglang.srt.layers.vocab_parallel_embedding:VocabParallelEmbeddingShardIndices"),
    "tp_group": types_of("sglang.srt.distributed.parallel_state:GroupCoordinator"),
    "logits_output": LOGITS,
    "target_out": BATCH_RESULT,
    "attn_backend": BACKEND,
    "verify_mask": VERIFY_MASK,
    "sampling_info": types_of("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"),
    "sampling_params": types_of("sglang.srt.sampling.sampling_params:SamplingParams"),
    "token_to_kv_pool": KV_POOL,
    "pool": (*KV_POOL, ("", "write_rows")),
    "pools": types_of("sglang.srt.mem_cache.swa_memory_pool:SWAKVPool"),
    "token_to_kv_pool_allocator": types_of("sglang.srt.mem_cache.allocator:TokenToKVPoolAllocator"),
    "req_to_token_pool": types_of("sglang.srt.mem_cache.memory_pool:ReqToTokenPool"),
    "hybrid_pool": types_of("sglang.srt.mem_cache.memory_pool:HybridLinearKVPool"),
    "states_pool": types_of("sglang.srt.mem_cache.memory_pool:HybridReqToTokenPool"),
    "states_of_nodes": types_of("sglang.srt.mem_cache.memory_pool:MambaPool.SpeculativeState"),
    "hybrid_backend": types_of("sglang.srt.layers.attention.hybrid_linear_attn_backend:ShortConvHybridAttnBackend"),
    "conv_metadata": types_of("sglang.srt.layers.attention.linear.short_conv_backend:ShortConvMetadata"),
    "kv_index_translator": types_of("sglang.srt.mem_cache.kv_index_translator:KVIndexTranslator"),
    "decode_cuda_graph_runner": types_of(
        "sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner"
    ),
    "graph_runner": types_of("sglang.srt.model_executor.runner.decode_cuda_graph_runner:DecodeCudaGraphRunner"),
    "_tp_sync": types_of("sglang.srt.speculative.spec_tp_sync:SpecTpSync"),
    "tokenizer": TOKENIZER,
    "graph": types_of(f"{_FIELDS}.exec_:ExecGraph"),
    "deterministic": types_of(f"{_FIELDS}.exec_:ExecDeterministic"),
    "scheduler": types_of("sglang.srt.managers.scheduler:Scheduler"),
    "lora_manager": types_of("sglang.srt.lora.lora_manager:LoRAManager"),
    "lora_backend": types_of("sglang.srt.lora.backend.base_backend:BaseLoRABackend"),
}
"""Variables, parameters and attributes that have one meaning in every module of ours."""

_REQ = types_of("sglang.srt.managers.schedule_batch:Req")
_TOKENIZED = types_of("sglang.srt.managers.io_struct:TokenizedGenerateReqInput")
_MANAGER = types_of("sglang.srt.managers.tokenizer_manager:TokenizerManager")
_TRANSFER = "sglang.srt.disaggregation.common.conn"

IN_MODULE: dict[str, dict[str, Type]] = {
    "ddtree_sglang.engine.processor_failures": {
        "entry": types_of("sglang.srt.sampling.sampling_batch_info:ProcessorEntry"),
        "info": types_of("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"),
        "sampling_batch_info": types_of("sglang.srt.sampling.sampling_batch_info:SamplingBatchInfo"),
        "req": _REQ,
    },
    "ddtree_sglang.engine.admission.adapter_weights": {
        "pool": types_of("sglang.srt.lora.mem_pool:LoRAMemoryPool"),
        "stand_in": types_of("sglang.srt.lora.mem_pool:LoRAMemoryPool"),
        "lora_ref": types_of("sglang.srt.lora.lora_registry:LoRARef"),
        "worker": types_of("sglang.srt.managers.tp_worker:TpModelWorker"),
        "request": types_of("sglang.srt.managers.io_struct:LoadLoRAAdapterFromTensorsReqInput"),
    },
    "ddtree_sglang.engine.admission.request_fields": {"request": _TOKENIZED},
    "ddtree_sglang.engine.admission.split_servers": {
        "receiver": types_of(f"{_TRANSFER}:CommonKVReceiver"),
        "manager": types_of(f"{_TRANSFER}:CommonKVManager"),
        "found": types_of(f"{_TRANSFER}:PrefillServerInfo"),
    },
    "ddtree_sglang.engine.admission.stop_patterns": {"req": _REQ},
    "ddtree_sglang.engine.admission.weight_updates": {
        "manager": types_of("sglang.srt.managers.scheduler_components.weight_updater:SchedulerWeightUpdaterManager"),
        "updater": types_of("sglang.srt.model_executor.model_runner_components.weight_updater:WeightUpdater"),
        "weight_updater": types_of("sglang.srt.model_executor.model_runner_components.weight_updater:WeightUpdater"),
        "served": types_of(f"{_FIELDS}.model:Model", _BAG),
    },
    "ddtree_sglang.engine.entry.memory": {"manager": _MANAGER},
    "ddtree_sglang.engine.entry.refusals": {
        "manager": _MANAGER,
        "obj": types_of("sglang.srt.managers.io_struct:GenerateReqInput"),
        "request": _TOKENIZED,
        "response": types_of("starlette.responses:StreamingResponse"),
    },
    "ddtree_sglang.engine.stages.pair_scores": {
        "draft_model": types_of(
            "sglang.srt.models.dspark:DSparkDraftMixin", "sglang.srt.models.dflash:DFlashDraftModel"
        ),
        "selector": types_of("sglang.srt.models.dflash:CandidateSelector"),
        "_selector": types_of("sglang.srt.models.dflash:CandidateSelector"),
        "_markov": types_of("sglang.srt.models.dspark:GatedMarkovHead"),
        "lattice": types_of("sglang.srt.models.lilicorr:LiLiCorrHead"),
        "_lattice": types_of("sglang.srt.models.lilicorr:LiLiCorrHead"),
    },
    "ddtree_sglang.engine.stages.ranking": {
        "draft_model": types_of("sglang.srt.models.dspark:DSparkDraftMixin"),
    },
    "ddtree_sglang.engine.hooks": {"request": _TOKENIZED, "req": _REQ},
    "ddtree_sglang.engine.run_ends": {
        "processor": types_of(
            "sglang.srt.managers.scheduler_components.batch_result_processor:SchedulerBatchResultProcessor"
        ),
        "supports": types_of("sglang.srt.layers.logits_processor:SamplingMaskOutput"),
    },
    "ddtree_sglang.cpu_platform.operators": {"op": OPERATOR},
    "ddtree_sglang.cpu_platform.lean_llama": {
        "inner": types_of("sglang.srt.models.llama:LlamaModel"),
        "model": types_of("sglang.srt.models.llama:LlamaModel", "sglang.srt.models.llama:LlamaForCausalLM"),
        "layer": (*LAYER, ("", " ".join(PARTS))),
        "linear": LINEAR,
        "attention": types_of("sglang.srt.models.llama:LlamaAttention"),
        "mlp": types_of("sglang.srt.models.llama:LlamaMLP"),
    },
    "ddtree_sglang.cpu_platform.dense_linear": {"layer": LINEAR},
    "ddtree_sglang.engine.admission.target_checks": {
        "manager": types_of("sglang.srt.lora.lora_manager:LoRAManager"),
    },
    "workers.replicas.replica": {"engine": types_of("sglang.srt.ray.engine:RayEngine")},
    "workers.http.generate_input": {"obj": REQUEST_INPUT, "sample": REQUEST_INPUT},
    "workers.http.tokenizer_manager": {"obj": REQUEST_INPUT, "part": REQUEST_INPUT},
}
"""Variables whose meaning is one module's own."""

RETURNED: dict[str, Type] = {
    "sglang.srt.runtime_context.get_spec": types_of(f"{_FIELDS}.spec:Spec", _BAG),
    "sglang.srt.runtime_context.get_lora": types_of(f"{_FIELDS}.lora:Lora", _BAG),
    "sglang.srt.runtime_context.get_device": types_of(f"{_FIELDS}.device:Device", _BAG),
    "sglang.srt.runtime_context.get_observability": types_of(f"{_FIELDS}.observability:Observability", _BAG),
    "sglang.srt.runtime_context.get_parallel": PARALLEL,
    "sglang.srt.runtime_context.get_context": types_of("sglang.srt.runtime_context:RuntimeContext"),
    "sglang.srt.arg_groups.overrides.model_config_of": MODEL_CONFIG,
    "sglang.srt.arg_groups.model_override_base.model_config_of": MODEL_CONFIG,
    "sglang.srt.arg_groups.overrides.resolving_view": SERVER_ARGS,
}
"""What functions of the engine return."""

NOT_LISTED = ("__dict__", "__init__", "model_dump", "additional_stop_token_ids", "eos_token_id")
"""Of every object; pydantic's; set by SGLang on a tokenizer (`attach_additional_stop_token_ids`, which has a row); made
by transformers on demand. A constructor's parameters are listed where they are given by keyword."""

BASES: dict[str, Type] = {"RankActor": types_of("sglang.srt.ray.scheduler_actor:SchedulerActor")}
"""Base classes that only exist at run time, by our class's name."""
