"""What SGLang's attention backends do with a tree where DDTREE refuses them; those for latent attention one by one.

Modules that need a GPU's libraries are read, the others are called.
"""

from __future__ import annotations

import ast
import importlib
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.engine.admission.other_backends import OTHER_BACKENDS, why_not
from ddtree_sglang.engine.admission.server_args import TREE_BACKENDS
from ddtree_sglang.engine.admission.target_checks import LATENT_BACKENDS
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import BLACKWELL, HOPPER, resolved

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]

GUARANTEES = Path(__file__).parents[3] / "ddtree_sglang" / "docs" / "guarantees.md"
ATTENTION = "layers/attention"
ASCEND = "hardware_backend/npu/attention/ascend_backend.py"
REGISTRY = f"{ATTENTION}/attention_registry.py"
HANDLERS = "models/deepseek_common/attention_backend_handler.py"
LATENT = {
    "triton": (f"{ATTENTION}/triton_backend.py", "def init_forward_metadata(", "custom_mask = spec_info.custom_mask"),
    "fa3": (f"{ATTENTION}/flashattention_backend.py", "# Do absorbed multi-latent", "if use_cascade_attn:"),
    "fa4": (HANDLERS, "def handle_attention_fa4(", "return AttnForwardMethod.MHA_CHUNKED_KV"),
    "flashinfer": (f"{ATTENTION}/flashinfer_mla_backend.py", "class FlashInferMLAInd", "# TODO: Support topk > 1"),
    "flashmla": (f"{ATTENTION}/flashmla_backend.py", "def forward_extend(", "causal=True"),
    "trtllm_mla": (f"{ATTENTION}/trtllm_mla_backend.py", "class TRTLLMMLAB", "# and runs the trtllm-gen kernel, which"),
    "cutedsl_mla": (f"{ATTENTION}/cutedsl_mla_backend.py", "class CuteDslMLAB", "def _run_decode_kernel("),
    "tokenspeed_mla": ("arg_groups/serving_hook.py", "# Deprecated attention", '"tokenspeed_mla": "cutedsl_mla"'),
    "aiter": (f"{ATTENTION}/aiter_backend.py", "    def forward_extend(", "o = self._mla_decode_fwd_with_head_pad("),
    "ascend": (ASCEND, "    def forward_mtp(", "atten_mask=self.mtp_mask"),
    "intel_xpu": (f"{ATTENTION}/xpu_backend.py", "    def forward_extend(", "Cascade attention is not supported with"),
    "intel_amx": (f"{ATTENTION}/intel_amx_backend.py", "def _build_extend_metadata(", "tree_mask = custom_mask"),
    "wave": (f"{ATTENTION}/wave_backend.py", "def forward_extend(", "torch.max(forward_batch.extend_seq_lens)"),
    "torch_native": (f"{ATTENTION}/torch_native_backend.py", "    def forward_extend(", "extend_prefix_lens"),
    "flex_attention": (f"{ATTENTION}/torch_flex_backend.py", "    def forward_extend(", "extend_prefix_lens"),
}
"""By backend: a file of SGLang, a line in it, and words of the first line behind that which says what is done."""
NO_LATENT = ("trtllm_mha", "hpc_ops", "llada2_cfg_flashinfer")
"""Those that SGLang itself builds for no target with latent attention."""
OF_OTHER_MODELS = {
    "compressed": "deepseek_v4_backend.py",
    "dsa": "dsa_backend.py",
    "dsv4": "deepseek_v4_backend.py",
    "minicpm_flashattn": "minicpm/backend.py",
    "minicpm_flashinfer": "minicpm/backend.py",
    "nsa": "dsa_backend.py",
    "qsa": "qwen_sparse_attn_backend.py",
}
"""Those of targets that attend in a way of their own, which are refused by that."""
WITHOUT_A_WORD = (*OF_OTHER_MODELS.values(), *(f"{one}_backend.py" for one in ("flashmla", "trtllm_mla")))
WITHOUT_A_WORD += tuple(f"{one}_backend.py" for one in ("cutedsl_mla", "torch_native", "torch_flex", "trtllm_mha"))
NODES, HEADS, WIDTH = 4, 2, 8


def text(path: str) -> str:
    """A file of the installed SGLang's `srt`."""
    import sglang

    return (Path(next(iter(sglang.__path__))) / "srt" / path).read_text(encoding="utf-8")


def method(path: str, owner: str, name: str) -> ast.FunctionDef:
    """Of a class in such a file."""
    tree = ast.parse(text(path))
    (cls,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == owner]
    (found,) = [node for node in cls.body if isinstance(node, ast.FunctionDef) and node.name == name]
    return found


def calls(where: ast.AST, name: str) -> list[dict[str, str]]:
    """Keyword arguments of each call of a function or method of this name, as they are written."""
    return [
        {str(one.arg): ast.unparse(one.value) for one in node.keywords}
        for node in ast.walk(where)
        if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] == name
    ]


def place(backend: str) -> str:
    """`file:line` of SGLang, as the document has it."""
    path, anchor, words = LATENT[backend]
    lines = text(path).splitlines()
    first = next(number for number, line in enumerate(lines) if anchor in line)
    found = next(number for number, line in enumerate(lines[first + 1 :], first + 2) if words in line)
    return f"{path.removeprefix(ATTENTION + '/')}:{found}"


def test_each_backend_of_sglang_is_read() -> None:
    from sglang.srt.arg_groups.choices import ATTENTION_BACKEND_CHOICES
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    names = {*ATTENTION_BACKEND_CHOICES} | {*ATTENTION_BACKENDS} | {*TREE_BACKENDS}
    assert {*OTHER_BACKENDS} | {*TREE_BACKENDS} == names
    assert {*OTHER_BACKENDS} & {*TREE_BACKENDS} == set()
    assert {*LATENT} | {*NO_LATENT} | {*OF_OTHER_MODELS} == names - {"ddtree_cpu"}
    assert "cutlass_mla" not in names


def test_the_document_has_each_backend_for_latent_attention_and_the_line_that_tells() -> None:
    part = GUARANTEES.read_text(encoding="utf-8").split("\n## Latent attention\n")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in part.splitlines() if line[:3] == "| `"]
    assert [row[0].strip("`") for row in rows] == [*LATENT]
    assert {row[0].strip("`"): row[2] for row in rows} == {name: f"`{place(name)}`" for name in LATENT}
    served = {row[0].strip("`") for row in rows if row[3].startswith("served")}
    assert served == {*LATENT_BACKENDS}
    assert all(row[3].startswith(("served", "refused")) for row in rows)


@pytest.mark.parametrize("backend", [name for name in OTHER_BACKENDS if name != "flex_attention"])
@pytest.mark.parametrize("flag", ["attention_backend", "decode_attention_backend"])
def test_a_refusal_names_its_backend_and_what_it_does(pair: tuple[str, str], backend: str, flag: str) -> None:
    """In one line; SGLang has given two of them other names by then, and has some on its own machines only."""
    with pytest.raises(DDTreeConfigError) as error:
        resolved("Engine", pair, BLACKWELL if backend.endswith("_mla") else HOPPER, **{flag: backend})
    name = {"compressed": "dsv4", "tokenspeed_mla": "cutedsl_mla"}.get(backend, backend)
    message = str(error.value)
    assert f"{name!r} in --{flag.replace('_', '-')}, {why_not(name)}" in message
    assert message.endswith("; change it or leave it out.")
    assert "\n" not in message


@pytest.mark.parametrize(
    ("backend", "words"),
    [
        ("cutedsl_mla", "CuteDSL MLA backend is only supported on Blackwell"),
        ("trtllm_mla", "TRTLLM MLA backend is only supported on Blackwell"),
        ("flex_attention", "Speculative decoding is currently not supported with Flex Attention backend"),
    ],
)
def test_sglang_refuses_some_before(pair: tuple[str, str], backend: str, words: str) -> None:
    with pytest.raises((ValueError, AssertionError), match=words):
        resolved("Engine", pair, HOPPER, attention_backend=backend)


def test_an_unknown_backend_is_refused_too() -> None:
    assert why_not("of_tomorrow") == "with which nobody has run a tree"


@pytest.mark.parametrize("path", sorted(set(WITHOUT_A_WORD)))
def test_a_backend_has_no_word_of_a_trees_mask(path: str) -> None:
    assert "custom_mask" not in text(f"{ATTENTION}/{path}")


@pytest.mark.parametrize("backend", NO_LATENT)
def test_sglang_builds_some_for_no_latent_attention(backend: str) -> None:
    from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS

    with pytest.raises(ValueError, match="MLA"):
        ATTENTION_BACKENDS[backend](SimpleNamespace(use_mla_backend=True))


def test_flashmla_verifies_causally() -> None:
    path = f"{ATTENTION}/flashmla_backend.py"
    kernels = calls(method(path, "FlashMLABackend", "forward_extend"), "flash_mla_with_kvcache")
    assert [call["causal"] for call in kernels] == ["True", "True"]
    assert not any("mask" in name for call in kernels for name in call)
    (mask,) = calls(ast.parse(text(path)), "maybe_create_verify_mask")
    assert mask["is_read"] == "False"


@pytest.mark.parametrize(
    ("module", "name"), [("trtllm_mla_backend", "TRTLLMMLABackend"), ("cutedsl_mla_backend", "CuteDslMLABackend")]
)
def test_kernels_of_trtllm_take_no_mask(module: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does FlashInfer's function have one, nor is it handed one in a verify of a tree."""
    import flashinfer.mla
    from sglang.srt.layers.attention import trtllm_mla_backend
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    asked: list[dict[str, Any]] = []

    def kernel(**given: Any) -> torch.Tensor:
        asked.append(given)
        return torch.zeros(1, NODES, HEADS, WIDTH)

    function = "trtllm_batch_decode_with_kv_cache_mla"
    assert not any("mask" in one for one in inspect.signature(getattr(flashinfer.mla, function)).parameters)
    decode = SimpleNamespace(decode=SimpleNamespace(**{function: kernel}))
    monkeypatch.setattr(trtllm_mla_backend, "flashinfer", decode, raising=False)
    for parallel in (trtllm_mla_backend, importlib.import_module(f"sglang.srt.layers.attention.{module}")):
        monkeypatch.setattr(parallel, "get_parallel", lambda: SimpleNamespace(dcp_enabled=False))
    cls = getattr(importlib.import_module(f"sglang.srt.layers.attention.{module}"), name)
    own = cls.__new__(cls)
    own.__dict__.update(
        **{"backend": "cute-dsl", "data_type": torch.float32, "page_size": 1, "workspace_buffer": None},
        **{"qk_nope_head_dim": WIDTH, "kv_lora_rank": WIDTH, "qk_rope_head_dim": WIDTH},
        _compute_decode_bmm1_scale=lambda _layer: 1.0,
        token_to_kv_pool=SimpleNamespace(get_key_buffer=lambda _: torch.zeros(64, 1, WIDTH)),
    )
    tree = SimpleNamespace(draft_token_num=NODES, ragged_verify_layout=None)  # whose mask nobody asks for
    metadata = SimpleNamespace(max_seq_len_k=9, block_kv_indices=torch.zeros(1, 9), seq_lens_k=torch.tensor([9]))
    batch = SimpleNamespace(
        forward_mode=ForwardMode.TARGET_VERIFY, spec_info=tree, batch_size=1, decode_trtllm_mla_metadata=metadata
    )
    layer = SimpleNamespace(tp_q_head_num=HEADS, head_dim=WIDTH, v_head_dim=WIDTH, layer_id=0)
    cls.forward_extend(own, torch.zeros(NODES, HEADS, WIDTH), None, None, layer, batch, save_kv_cache=False)
    (given,) = asked
    assert given["query"].shape == (1, NODES, HEADS, WIDTH)
    assert given["seq_lens"].tolist() == [9]
    assert not any("mask" in one for one in given)


def test_aiter_hands_a_mask_to_its_kernels_without_latent_attention_alone() -> None:
    path = f"{ATTENTION}/aiter_backend.py"
    branches = {
        name: next(
            node
            for node in ast.walk(method(path, "AiterAttnBackend", name))
            if isinstance(node, ast.If)
            and ast.unparse(node.test) == "self.use_mla"
            and "custom_mask" in _of(node.orelse)
        )
        for name in ("init_forward_metadata", "forward_extend")
    }
    assert not any("custom_mask" in _of(branch.body) for branch in branches.values())
    kernels = ("_mla_decode_fwd_with_head_pad", "mla_gluon_decode")
    found = [call for name in kernels for call in calls(ast.Module(branches["forward_extend"].body, []), name)]
    assert len(found) >= 2
    assert not any("mask" in one for call in found for one in call)


def _of(nodes: list[ast.stmt]) -> str:
    return "\n".join(map(ast.unparse, nodes))


def test_ascend_verifies_by_a_triangle() -> None:
    source = text(ASCEND)
    assert "custom_mask" not in source
    verify = ast.parse(source)
    (mtp,) = [node for node in ast.walk(verify) if isinstance(node, ast.FunctionDef) and node.name == "forward_mtp"]
    (latent,) = [
        node.orelse for node in mtp.body if isinstance(node, ast.If) and ast.unparse(node.test) == "not self.use_mla"
    ]
    masks = [
        ast.unparse(one.value)
        for node in ast.walk(ast.Module(latent, []))
        if isinstance(node, ast.Call)
        for one in node.keywords
        if one.arg == "atten_mask"
    ]
    assert masks
    assert {*masks} == {"self.mtp_mask"}
    (flag,) = [
        node for node in ast.walk(verify) if isinstance(node, ast.FunctionDef) and node.name == "generate_mask_flag"
    ]
    made = ast.unparse(flag).split('"""')[-1]
    assert "tril_()" in made
    assert "mask_flag = ~mask_flag" in made


def test_sglang_lets_xpu_verify_no_tree_with_latent_attention() -> None:
    own = method(f"{ATTENTION}/xpu_backend.py", "XPUAttentionBackend", "forward_extend")
    (rule,) = [
        node for node in ast.walk(own) if isinstance(node, ast.Assert) and "supported with MLA" in ast.unparse(node)
    ]
    assert ast.unparse(rule.test) == "not use_cascade_attn"
    (uses,) = [
        ast.unparse(node.value)
        for node in ast.walk(own)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "use_cascade_attn"
    ]
    assert "is_target_verify() and self.topk > 1" in uses


@pytest.mark.parametrize("branches", [-1, 1], ids=["tree", "chain"])
def test_amx_hands_a_trees_mask_to_its_kernel(branches: int) -> None:
    """By SGLang's code it would honour one; DDTREE has another backend on a CPU."""
    from sglang.srt.layers.attention.intel_amx_backend import IntelAMXAttnBackend
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    mask, asked = torch.ones(NODES * (5 + NODES), dtype=torch.bool), []
    tree = SimpleNamespace(draft_token_num=NODES, tree_topk=branches, custom_mask=mask)
    batch = SimpleNamespace(
        forward_mode=ForwardMode.TARGET_VERIFY, spec_info=tree, batch_size=1, seq_lens=torch.tensor([5])
    )
    own = SimpleNamespace(device="cpu")
    made = IntelAMXAttnBackend._build_extend_metadata(own, batch)
    assert made[3] is (mask if branches == -1 else None)
    own.__dict__.update(
        token_to_kv_pool=SimpleNamespace(get_key_buffer=lambda _: None, get_value_buffer=lambda _: None),
        req_to_token_pool=SimpleNamespace(req_to_token=None),
        extend_metadata=made,
        forward_metadata=(None, NODES),
        extend_attention_fwd=lambda *given: asked.append(given),
        _is_swa_layer=lambda _: False,
    )
    layer = _layer(is_cross_attention=False, k_scale_float=None, v_scale_float=None, sliding_window_size=-1)
    batch.__dict__.update(out_cache_loc=None, req_pool_indices=None, encoder_lens=None)
    IntelAMXAttnBackend.forward_extend(own, torch.zeros(NODES, HEADS * WIDTH), None, None, layer, batch, False)
    assert asked[0][-2] is made[3]


def _layer(**more: Any) -> SimpleNamespace:
    given = {"qk_head_dim": WIDTH, "v_head_dim": WIDTH, "tp_q_head_num": HEADS, "tp_k_head_num": HEADS, "layer_id": 0}
    return SimpleNamespace(**given, attn_type=None, scaling=1.0, logit_cap=0.0, **more)


def _verify() -> Any:
    """A batch as SGLang makes one of a verify: without the lengths of a prefill."""
    from dataclasses import fields

    from sglang.srt.model_executor.forward_batch_info import ForwardBatch, ForwardMode

    given = {one.name: None for one in fields(ForwardBatch) if one.name.startswith("extend_")}
    defaults = {one.name: one.default for one in fields(ForwardBatch) if one.name in given}
    assert {defaults["extend_seq_lens"], defaults["extend_prefix_lens"]} == {None}
    return SimpleNamespace(
        **given,
        forward_mode=ForwardMode.TARGET_VERIFY,
        out_cache_loc=None,
        seq_lens=torch.tensor([5]),
        encoder_lens=None,
    )


def test_wave_asks_a_verify_for_lengths_that_it_does_not_have() -> None:
    from sglang.srt.layers.attention.wave_backend import WaveAttnBackend

    own = SimpleNamespace(forward_metadata=SimpleNamespace(max_extend_len=NODES))
    query = torch.zeros(NODES, HEADS * WIDTH)
    with pytest.raises(TypeError, match="must be Tensor, not NoneType"):
        WaveAttnBackend.forward_extend(own, query, None, None, _layer(), _verify(), save_kv_cache=False)


@pytest.mark.parametrize(
    ("module", "name"), [("torch_native", "TorchNativeAttnBackend"), ("torch_flex", "TorchFlexAttnBackend")]
)
def test_backends_of_torch_have_no_form_of_a_verify(module: str, name: str) -> None:
    cls = getattr(importlib.import_module(f"sglang.srt.layers.attention.{module}_backend"), name)
    own = cls.__new__(cls)
    own.token_to_kv_pool = SimpleNamespace(get_key_buffer=torch.zeros, get_value_buffer=torch.zeros)
    own.req_to_token_pool = SimpleNamespace(req_to_token=torch.zeros(1, 16))
    batch = _verify()
    batch.req_pool_indices = torch.tensor([0])
    query, layer = torch.zeros(NODES, HEADS * WIDTH), _layer(is_cross_attention=False, sliding_window_size=-1)
    layer.layer_id = 1
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'shape'"):
        cls.forward_extend(own, query, None, None, layer, batch, save_kv_cache=False)


def test_fa4_sends_a_verify_the_way_of_a_prefill_on_most_machines() -> None:
    """Elsewhere it runs FA3's code with kernels of its own, which nobody has run."""
    from sglang.srt.models.deepseek_common.attention_backend_handler import handle_attention_fa4
    from sglang.srt.models.deepseek_common.attention_forward_methods.forward_methods import AttnForwardMethod
    from sglang.srt.runtime_context import override_platform

    with override_platform(is_sm100_or_sm110=False):
        assert handle_attention_fa4(None, _verify()) == AttnForwardMethod.MHA_CHUNKED_KV
    (made,) = [call for call in calls(ast.parse(text(REGISTRY)), "FlashAttentionBackend") if call]
    assert made == {"fa_impl_ver": "4"}
