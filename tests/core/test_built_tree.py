"""The first requests of a batch's trees: views at the same addresses, whatever form the mask has."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch

from ddtree_sglang.core import BuiltTree

NUM_NODES = 5


@pytest.mark.parametrize("part", ["tree", "layout"])
def test_first_requests_are_views_of_every_field(part: str) -> None:
    built = BuiltTree.empty(4, NUM_NODES, torch.device("cpu"))
    whole, first = getattr(built, part), getattr(built.first(3), part)
    assert type(first) is type(whole)
    for field in fields(whole):
        found = getattr(first, field.name)
        assert found.shape == (3, NUM_NODES), field.name
        assert found.data_ptr() == getattr(whole, field.name).data_ptr(), field.name


def test_first_requests_keep_their_rows_of_a_mask_and_a_flat_one_whole() -> None:
    flat = torch.zeros(100, dtype=torch.bool)
    assert BuiltTree.empty(4, NUM_NODES, torch.device("cpu")).first(3).mask.cells.shape == (3, NUM_NODES, NUM_NODES)
    assert BuiltTree.empty(4, NUM_NODES, torch.device("cpu"), flat).first(3).mask.cells is flat
