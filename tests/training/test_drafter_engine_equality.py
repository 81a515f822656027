"""The trained forward equals the engine's: SGLang's own `DFlashDraftModel` on the exported folder.

Everything up to attention is the engine's code: weight loading, projections, norms, rotary embedding, the
context keys and values as its worker writes them. Attention itself is dense here, over the context and the
block, as an ENCODER_ONLY layer over a KV cache that holds the prefix sees it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter
from tests.one_process import one_process
from tests.training.tiny import tiny_config, tiny_target

pytestmark = pytest.mark.sglang


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """As a worker has it, in this process."""
    pytest.importorskip("sglang")
    with one_process(tmp_path_factory.mktemp("rendezvous")):
        yield


class DenseAttention(torch.nn.Module):
    """Stands in for RadixAttention: block queries over given context keys and values and the block's own."""

    def __init__(self, attention: Any, context_k: torch.Tensor, context_v: torch.Tensor) -> None:
        super().__init__()
        self.kv_heads, self.head_dim, self.scaling = (
            attention.num_kv_heads,
            attention.head_dim,
            attention.scaling,
        )
        self.context_k, self.context_v = context_k, context_v

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _batch: Any) -> torch.Tensor:
        def heads(x: torch.Tensor) -> torch.Tensor:
            return x.view(len(x), -1, self.head_dim).transpose(0, 1)

        k, v = torch.cat([self.context_k, k]), torch.cat([self.context_v, v])
        out = torch.nn.functional.scaled_dot_product_attention(
            heads(q), heads(k), heads(v), scale=self.scaling, enable_gqa=True
        )
        return out.transpose(0, 1).flatten(1)


def _random_drafter(selector_rank: int = 0) -> DFlashDrafter:
    torch.manual_seed(5)
    shape = dataclasses.replace(tiny_config(tiny_target()), selector_rank=selector_rank, selector_top_k=6)
    model = DFlashDrafter(shape)
    for name, parameter in model.named_parameters():
        offset = 1.0 if "norm" in name else 0.0
        torch.nn.init.normal_(parameter, mean=offset, std=0.3)
    return model.eval()


def _engine_model(folder: Path) -> Any:
    from safetensors.torch import load_file
    from sglang.srt.models import dflash
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder)
    model = getattr(dflash, config.architectures[0])(config).float()
    for parameter in model.parameters():
        parameter.data.fill_(float("nan"))  # whatever loading misses would show
    model.load_weights(load_file(folder / "model.safetensors").items())
    return model.eval()


@torch.inference_mode()
@pytest.mark.parametrize("anchor", [1, 6, 13])
def test_block_hidden_states_equal_the_engines(engine: None, tmp_path: Path, anchor: int) -> None:
    ours = _random_drafter()
    theirs = _engine_model(export_drafter(ours, tmp_path / "drafter", torch.float32))
    config = ours.config
    generator = torch.Generator().manual_seed(anchor)
    features = torch.randn(13, config.feature_size, generator=generator)
    embeds = torch.randn(config.block_size, config.hidden_size, generator=generator)

    context = theirs.project_target_hidden(features[:anchor])
    for layer in theirs.layers:
        attention = layer.self_attn
        k, v = attention.kv_proj_only(theirs.prepare_context_hidden_for_kv(layer, context))
        k = attention.apply_k_rope(torch.arange(anchor), attention.apply_k_norm(k))
        attention.attn = DenseAttention(attention, k, v)
    positions = anchor + torch.arange(config.block_size)
    expected = theirs(torch.zeros(0), positions, None, input_embeds=embeds.clone()).hidden_states

    found = ours(embeds[None, None], features[None], torch.tensor([[anchor]]))[0, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_scores_of_pairs_equal_the_servers(engine: None, tmp_path: Path) -> None:
    from ddtree_sglang.core.candidates import DraftCandidates
    from ddtree_sglang.engine.stages.candidates import BlockRoots
    from ddtree_sglang.engine.stages.pair_scores import scorer_of

    ours = _random_drafter(selector_rank=5)
    theirs = _engine_model(export_drafter(ours, tmp_path / "drafter", torch.float32))
    scorer = scorer_of(theirs, None, 6)
    assert scorer is not None
    assert scorer.top_k == 6
    config = ours.config
    generator = torch.Generator().manual_seed(2)
    states = torch.randn(4, config.num_drafts, config.hidden_size, generator=generator)
    logprobs, ids = torch.randn(4, config.num_drafts, 97, generator=generator).log_softmax(-1).topk(6)
    roots = torch.tensor([3, 14, 15, 92])
    assert ours.candidate_selector is not None
    found = ours.candidate_selector.scores(states, roots, ids, logprobs)
    expected = scorer.scores(states, BlockRoots(roots, torch.arange(4)), DraftCandidates(ids, logprobs))
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(found[:, :, 0], found[:, :, 1])


def test_engine_reads_the_exported_config_as_meant(engine: None, tmp_path: Path) -> None:
    from sglang.srt.layers.radix_attention import AttentionType
    from sglang.srt.models.dflash import _get_dflash_layer_attention_params
    from sglang.srt.speculative.dflash_utils import parse_dflash_draft_config
    from transformers import AutoConfig

    folder = export_drafter(_random_drafter(), tmp_path / "drafter")
    hf_config = AutoConfig.from_pretrained(folder)
    parsed = parse_dflash_draft_config(draft_hf_config=hf_config)
    assert (parsed.block_size, parsed.num_target_layers, parsed.target_layer_ids) == (4, 4, [0, 2])
    assert (parsed.mask_token, parsed.mask_token_id) == ("mask", 96)
    assert not parsed.is_domino
    window, kind = _get_dflash_layer_attention_params(hf_config, 0)
    assert (window, kind) == (-1, AttentionType.ENCODER_ONLY)
