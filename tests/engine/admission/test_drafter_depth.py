"""A drafter that proposes more positions than a GPU's builder takes is refused at start, before weights are loaded."""

from __future__ import annotations

from pathlib import Path

import pytest

from ddtree_sglang.engine.admission.server_args import MAX_DEPTH
from ddtree_sglang.exceptions import DDTreeConfigError
from tests.engine.admission.machines import HOPPER, resolved
from tests.engine.admission.test_server_args import DRAFTER, TARGET, write_checkpoint

pytestmark = [pytest.mark.sglang, pytest.mark.usefixtures("plugins", "no_configuration")]


@pytest.mark.parametrize(("block_size", "is_refused"), [(32, False), (33, True)])
def test_a_block_of_more_rows_is_refused_on_a_gpu(block_size: int, is_refused: bool, tmp_path: Path) -> None:
    drafter = {**DRAFTER, "block_size": block_size}
    pair = write_checkpoint(tmp_path / "target", TARGET), write_checkpoint(tmp_path / "drafter", drafter)
    if is_refused:
        with pytest.raises(DDTreeConfigError, match="at most 31 drafted positions, the drafter proposes 32"):
            resolved("Engine", pair, HOPPER, attention_backend="fa3")
    else:
        assert resolved("Engine", pair, HOPPER, attention_backend="fa3").speculative_num_steps == MAX_DEPTH


def test_the_limit_is_the_kernels() -> None:
    from ddtree_sglang.kernels import tree_builder_triton

    assert tree_builder_triton.MAX_DEPTH == MAX_DEPTH
