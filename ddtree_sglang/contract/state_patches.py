"""Changes to SGLang's models with recurrent layers, made by a worker whose target is one."""

from __future__ import annotations

from ddtree_sglang.contract.patch import Patch

SHORT_CONVOLUTION_PATCHES = tuple(
    Patch(
        f"sglang.srt.models.{module}.shortconv_target_verify",
        "assign",
        "ddtree_sglang.engine.stages.short_convolutions:along_paths",
        "nodes of a tree would be convolved as a chain",
    )
    for module in ("lfm2", "lfm2_moe")
)
