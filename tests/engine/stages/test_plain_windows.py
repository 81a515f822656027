"""SGLang's plain decoding on `triton` reads a key less than a window holds; what guarantees.md says of it rests on it.

A tree's nodes read as many as the model's own code, so tokens differ where that key decides. When this fails, SGLang
has mended it, and the paragraph goes.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

pytestmark = pytest.mark.sglang

WINDOW = 8


def test_a_step_of_plain_decoding_reads_one_key_less_than_the_window() -> None:
    from sglang.srt.layers.attention.triton_backend import update_sliding_window_buffer
    from sglang.srt.models.gpt_oss import get_attention_sliding_window_size

    passed = get_attention_sliding_window_size(SimpleNamespace(sliding_window=WINDOW))
    translator = SimpleNamespace(window_kv_kind=None, pack_read_stream=lambda *_, **__: True)
    seq_lens = torch.tensor([3, WINDOW, 20])  # a step's own token counts among these
    told = update_sliding_window_buffer(
        torch.zeros(4, dtype=torch.int32),
        translator,
        None,
        torch.arange(3),
        passed,
        seq_lens,
        3,
        device="cpu",
    )
    assert told[2].tolist() == [3, WINDOW - 1, WINDOW - 1]
