"""The stock chain's head through the layer's own product: same tokens, and only where that is the same thing."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from sglang.srt.layers.quantization.unquant import UnquantizedEmbeddingMethod
from sglang.srt.speculative.dflash_worker_v2 import DFlashWorkerV2

from ddtree_sglang.cpu_platform import hooks
from ddtree_sglang.cpu_platform.dense_linear import CpuEmbeddingMethod, pack

pytestmark = pytest.mark.sglang


def _refused(*_: object, **__: object) -> torch.Tensor:
    raise LookupError("SGLang's own way")


def _head(method: object, weight: torch.Tensor, num_added: int = 0) -> SimpleNamespace:
    shard = SimpleNamespace(num_added_elements=num_added)
    return SimpleNamespace(weight=weight, quant_method=method, shard_indices=shard, org_vocab_size=90)


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    parallel = SimpleNamespace(tp_size=1, tp_group=SimpleNamespace(world_size=1))
    monkeypatch.setattr("sglang.srt.runtime_context.get_parallel", lambda: parallel)
    monkeypatch.setattr("sglang.srt.speculative.dflash_worker_v2.get_parallel", lambda: parallel)
    return parallel


def _ask(lm_head: SimpleNamespace, hidden: torch.Tensor) -> torch.Tensor:
    worker = DFlashWorkerV2.__new__(DFlashWorkerV2)
    return hooks.draft_head_by_its_own_product(_refused, worker, hidden_states=hidden, lm_head=lm_head)


def test_same_tokens_as_the_plain_product_and_no_padding_row(ranks: SimpleNamespace) -> None:
    weight = torch.randn(96, 16)
    weight[90:] = 100 * torch.randn(6, 16)  # padding rows would win the argmax
    hidden = torch.randn(300, 16)
    tokens = _ask(_head(CpuEmbeddingMethod(pack(weight)), weight), hidden)
    assert torch.equal(tokens, (hidden @ weight[:90].t()).argmax(-1))


@pytest.mark.parametrize("case", ["ranks", "added", "method", "empty"])
def test_everything_else_stays_sglangs(ranks: SimpleNamespace, case: str) -> None:
    weight, hidden = torch.randn(96, 16), torch.randn(0 if case == "empty" else 3, 16)
    ranks.tp_size = 2 if case == "ranks" else 1
    method = UnquantizedEmbeddingMethod() if case == "method" else CpuEmbeddingMethod(pack(weight))
    with pytest.raises(LookupError):
        _ask(_head(method, weight, num_added=int(case == "added")), hidden)
