"""The lane as a distribution that SGLang's plugin discovery finds: a folder of metadata on the path, nothing installed.

SGLang leaves out the plugins of a distribution whose platform was not chosen, so this one names DDTREE's plugin too.
"""

from __future__ import annotations

from pathlib import Path

NAME = "ddtree-device-lane"
PLATFORM = "device_lane"

ENTRY_POINTS = f"""\
[sglang.srt.platforms]
{PLATFORM} = tests.device_lane.registration:activate

[sglang.srt.plugins]
ddtree = ddtree_sglang.engine.plugin:register
{PLATFORM} = tests.device_lane.plugin:register
"""


def activate() -> str:
    """The platform's class, for SGLang; what stands in for kernels has to be there before the backends are imported."""
    from tests.device_lane.delta_attention import install_delta_attention
    from tests.device_lane.host_cache import install_host_cache
    from tests.device_lane.install import install_fa3, install_flashinfer, install_lora
    from tests.device_lane.quantized import install_quantized
    from tests.device_lane.recurrent_layers import install_recurrent_layers
    from tests.device_lane.transfers import install_transfers

    install_host_cache()
    install_quantized()
    install_fa3()
    install_flashinfer()
    install_lora()
    install_recurrent_layers()
    install_delta_attention()
    install_transfers()
    return "tests.device_lane.platform:LanePlatform"


def write_distribution(folder: Path) -> Path:
    """Write the metadata; the folder goes on PYTHONPATH."""
    info = folder / f"{NAME.replace('-', '_')}-0.dist-info"
    info.mkdir(parents=True, exist_ok=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(ENTRY_POINTS, encoding="utf-8")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """What a process of the lane needs in its environment, besides the path to the checkout."""
    return {
        "PYTHONPATH": str(write_distribution(folder)),
        "SGLANG_PLATFORM": PLATFORM,
        "TRITON_INTERPRET": "1",
        # The C++ core of the prefix cache refuses a device with an index.
        "SGLANG_UNIFIED_RADIX_TREE_CORE_BACKEND": "python",
        # Convolutions of recurrent layers keep their inputs in the lane's float32; SGLang's own choice is bfloat16.
        "SGLANG_MAMBA_CONV_DTYPE": "float32",
        # SGLang orders the scheduler's writes behind a forward's reads on CUDA alone, unless asked.
        "SGLANG_ENABLE_WAR_BARRIER": "1",
    }
