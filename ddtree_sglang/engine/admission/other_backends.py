"""SGLang's attention backends that verify no tree under DDTREE, each with what it does with one.

Read of SGLang 0.5.23 on 2026-11-30, those that take latent attention line by line
(tests/engine/admission/test_other_backends.py asks SGLang's own code again).
"""

from __future__ import annotations

from collections.abc import Mapping

_NO_MASK = "whose kernels for a verify take no mask"
_OWN = "which is for models of its own and reads no tree's mask"
_NOT_RUN = "with which nobody has run a tree"

OTHER_BACKENDS: Mapping[str, str] = {
    "aiter": f"{_NO_MASK} with latent attention, and {_NOT_RUN} otherwise",
    "ascend": "whose verify has a triangle for a mask, whatever the tree",
    "compressed": _OWN,
    "cutedsl_mla": _NO_MASK,
    "dsa": "whose verify picks a node's keys by its place and reads no mask",
    "dsv4": _OWN,
    "fa4": "whose kernels have never been seen to run a tree",
    "flashmla": "whose verify is causal and takes no mask",
    "flex_attention": "which attends causally and has no form of a verify",
    "hpc_ops": "which SGLang builds for no speculation",
    "intel_amx": _NOT_RUN,
    "intel_xpu": f"which SGLang lets verify no tree with latent attention, and {_NOT_RUN} otherwise",
    "llada2_cfg_flashinfer": f"which is LLaDA2's own, and {_NOT_RUN}",
    "minicpm_flashattn": _OWN,
    "minicpm_flashinfer": _OWN,
    "nsa": "whose verify picks a node's keys by its place and reads no mask",
    "qsa": _OWN,
    "tokenspeed_mla": _NO_MASK,
    "torch_native": "which attends causally and has no form of a verify",
    "trtllm_mha": "whose verify is causal, whatever the tree",
    "trtllm_mla": _NO_MASK,
    "wave": "which asks a verify for lengths that it does not have",
}
"""By SGLang's name (`--attention-backend`)."""


def why_not(backend: str) -> str:
    """What the named backend does with a tree, in words that follow its name; of one that is unknown, that it is."""
    return OTHER_BACKENDS.get(backend, _NOT_RUN)
