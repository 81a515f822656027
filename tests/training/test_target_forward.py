"""The forward that writes and trains at once is the target's own: its streams, its last states, its next tokens."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from ddtree_sglang.training.model.target_forward import TargetForward, check_forward
from tests.training.tiny import SHAPE, VOCABULARY, save_tiny_target, tiny_qwen3, tiny_target

SIZES = {"hidden_size": 48, "intermediate_size": 64, "max_position_embeddings": 256}


def _llama3() -> LlamaForCausalLM:
    """Angles that are stretched, and a head of its own."""
    rope = {"rope_type": "llama3", "rope_theta": 500.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    torch.manual_seed(3)
    shape = SHAPE | {"rope_parameters": rope | {"original_max_position_embeddings": 32}}
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False, **shape)).eval()


def _qwen2() -> Qwen2ForCausalLM:
    """Biases in the projections."""
    torch.manual_seed(4)
    target = Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True, **SHAPE)).eval()
    with torch.no_grad():
        for layer in target.model.layers:
            layer.self_attn.q_proj.bias.uniform_(-1, 1)
            layer.self_attn.k_proj.bias.uniform_(-1, 1)
    return target


def _uneven(target: PreTrainedModel) -> PreTrainedModel:
    """Norms whose weights are not all one."""
    with torch.no_grad():
        for name, weight in target.named_parameters():
            if "norm" in name:
                weight.uniform_(0.5, 2)
    return target


TARGETS = {"llama": tiny_target, "llama3": _llama3, "qwen2": _qwen2, "qwen3": tiny_qwen3}


@pytest.fixture(params=TARGETS)
def target(request: pytest.FixtureRequest) -> PreTrainedModel:
    return _uneven(TARGETS[request.param]())


def _texts(rows: int = 3, length: int = 70) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(5))


def test_streams_and_last_states_are_those_of_the_target(target: PreTrainedModel) -> None:
    ids = _texts()
    with torch.inference_mode():
        expected = target.model(input_ids=ids, output_hidden_states=True)
    seen = TargetForward(target, 70).see(ids, (0, 2))
    streams = torch.cat([expected.hidden_states[i + 1] for i in (0, 2)], -1)
    torch.testing.assert_close(seen.features, streams, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(seen.states, expected.last_hidden_state, rtol=1e-4, atol=1e-4)


def test_steps_with_a_cache_give_the_logits_of_the_whole_text(target: PreTrainedModel) -> None:
    """In memory that another wave of another shape has filled before."""
    forward, ids = TargetForward(target, 80), _texts()
    memory = forward.key_memory(6, 40)
    memory.keys.fill_(3.0)
    memory.values.fill_(-7.0)
    with torch.inference_mode():
        expected = target(ids).logits
    for position in range(ids.shape[1]):
        logits = forward.step(ids[:, position], position, memory, 80)
        torch.testing.assert_close(logits, expected[:, position], rtol=1e-4, atol=1e-4)
        assert torch.equal(logits.argmax(-1), expected[:, position].argmax(-1))


def test_its_weights_are_those_of_the_target_and_not_copies(target: PreTrainedModel) -> None:
    forward = TargetForward(target, 70)
    assert forward.head.data_ptr() == target.get_output_embeddings().weight.data_ptr()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "granite", "architectures": ["GraniteForCausalLM"]}, "GraniteForCausalLM in"),
        ({"sliding_window": 64, "model_type": "mistral"}, "attends in a window of 64 tokens"),
        ({"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "of type dynamic"),
        ({"max_position_embeddings": 20}, "fit the target's 20 positions, the longest would have 90"),
    ],
)
def test_targets_that_it_does_not_compute_are_refused_by_name(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    path = save_tiny_target(tmp_path) / "config.json"
    check_forward(tmp_path, 90)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert AutoConfig.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message) as refused:
        check_forward(tmp_path, 90)
    assert "\n" not in str(refused.value)
