"""The shipped drafter with the selector that ships for it: tokens stay, and trees of pairs are accepted for more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.demo.drafter import shipped_drafter
from ddtree_sglang.demo.selector import write_drafter_with_selector
from tests.e2e.asking import PROMPTS, ask_all
from tests.e2e.servers import Pair, Server
from tests.e2e.test_lossless import accept_length

MAX_NEW_TOKENS = 48


def test_trees_of_pairs_by_the_shipped_selector_accept_more(
    plain: Server, ddtree: Server, serve: Callable[..., Any], tmp_path: Path, pair: Pair
) -> None:
    """Its score of a candidate after the one before it joins tokens that follow one another."""
    if Path(pair.draft) != shipped_drafter():
        pytest.skip("the selector was trained for the drafter that ships")
    expected, trees = (ask_all(one.url, PROMPTS, 8, max_new_tokens=MAX_NEW_TOKENS) for one in (plain, ddtree))
    drafter = write_drafter_with_selector(tmp_path / "pairs")
    with serve("DDTREE", 16, pair=Pair(pair.model, str(drafter))) as server:
        of_pairs = ask_all(server.url, PROMPTS, 8, max_new_tokens=MAX_NEW_TOKENS)
    assert [one["output_ids"] for one in of_pairs] == [one["output_ids"] for one in expected]
    assert accept_length(of_pairs) > accept_length(trees)
