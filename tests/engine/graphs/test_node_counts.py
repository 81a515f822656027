"""A backend and graphs per number of nodes: captured under that number, used within its scope, put back after it."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.sglang


class FakeSpec:
    """SGLang's configuration: three numbers, and a scope that changes some of them."""

    def __init__(self) -> None:
        self.values = {
            "speculative_num_steps": 7,
            "speculative_num_draft_tokens": 17,
            "speculative_eagle_topk": 2,
        }

    def __getattr__(self, name: str) -> int:
        return int(self.values[name])

    @contextmanager
    def override(self, **changes: int) -> Any:
        before = dict(self.values)
        self.values.update(changes)
        try:
            yield
        finally:
            self.values = before


@pytest.fixture
def spec(monkeypatch: pytest.MonkeyPatch) -> FakeSpec:
    from ddtree_sglang.engine.graphs import node_counts

    fake = FakeSpec()
    monkeypatch.setattr(node_counts, "get_spec", lambda: fake)
    return fake


def runner(spec: FakeSpec, with_graphs: bool = True) -> SimpleNamespace:
    """Makes backends and graph runners that remember the configuration they were made under."""

    def backend(init_new_workspace: bool) -> SimpleNamespace:
        made.init_new_workspace = True  # as SGLang leaves it
        return SimpleNamespace(made_for=dict(spec.values), own_workspace=init_new_workspace)

    def graphs(_runner: Any, **arguments: Any) -> SimpleNamespace:
        return SimpleNamespace(**arguments)

    made = SimpleNamespace(
        attn_backend="startup backend",
        decode_cuda_graph_runner="startup graphs" if with_graphs else None,
        init_new_workspace=False,
        _get_attention_backend=backend,
        _decode_cuda_graph_runner_cls=lambda: graphs,
    )
    return made


def test_each_number_is_captured_under_its_own_configuration(spec: FakeSpec) -> None:
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates

    target = runner(spec)
    states = NodeCountStates.capture(target, (1, 9, 17))
    assert states.backend(17) == "startup backend"
    assert states.backend(9).made_for["speculative_num_draft_tokens"] == 9
    assert states.backend(9).made_for["speculative_eagle_topk"] == 2
    assert states.backend(9).own_workspace
    # One node is a chain: FA3 takes its causal path by this number.
    assert states.backend(1).made_for["speculative_eagle_topk"] == 1
    assert target.init_new_workspace is False
    assert spec.speculative_num_draft_tokens == 17


def test_a_number_is_used_within_its_scope_and_the_configured_comes_back(spec: FakeSpec) -> None:
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates

    target = runner(spec)
    states = NodeCountStates.capture(target, (1, 9, 17))
    with states.active(9):
        assert target.attn_backend is states.backend(9)
        assert target.decode_cuda_graph_runner.speculative_num_draft_tokens == 9
        assert target.decode_cuda_graph_runner.attn_backend is states.backend(9)
        assert spec.speculative_num_draft_tokens == 9
    assert (target.attn_backend, target.decode_cuda_graph_runner) == ("startup backend", "startup graphs")
    with pytest.raises(RuntimeError), states.active(1):
        raise RuntimeError
    assert (target.attn_backend, spec.speculative_num_draft_tokens) == ("startup backend", 17)
    with states.active(17):
        assert target.attn_backend == "startup backend"


def test_without_graphs_only_backends_are_made(spec: FakeSpec) -> None:
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates

    target = runner(spec, with_graphs=False)
    states = NodeCountStates.capture(target, (9, 17))
    with states.active(9):
        assert target.decode_cuda_graph_runner is None
        assert target.attn_backend.made_for["speculative_num_draft_tokens"] == 9


def test_the_largest_batch_is_the_one_that_was_captured_not_the_one_that_was_configured(spec: FakeSpec) -> None:
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates

    target, configured = runner(spec), [1, 64, 256]
    target.decode_cuda_graph_runner = SimpleNamespace(max_bs=48)
    assert NodeCountStates.capture(target, (9, 17)).max_batch(configured) == 48
    assert NodeCountStates.capture(runner(spec, with_graphs=False), (17,)).max_batch(configured) == 256


def test_a_runner_without_other_sets_verifies_every_number_with_its_own(spec: FakeSpec) -> None:
    from ddtree_sglang.engine.graphs.node_counts import NodeCountStates

    target = runner(spec)
    with NodeCountStates(target, {}).active(9):
        assert (target.attn_backend, target.decode_cuda_graph_runner) == ("startup backend", "startup graphs")
        assert spec.speculative_num_draft_tokens == 17
