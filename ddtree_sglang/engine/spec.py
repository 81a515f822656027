"""The algorithm's name, the number that tells SGLang's backends "this verify is a tree", and how long a path may be.

Imports nothing of this package, and SGLang only when asked, so that every module can import it.
"""

from __future__ import annotations

from typing import Any

ALGORITHM = "DDTREE"
TREE_TOPK = 2
"""SGLang's backends read `speculative_eagle_topk > 1` as "this verify is a tree" (FA3 tests it, not the mask).
DDTree's own candidates per depth are another number, which would inflate SGLang's KV reserve (allocation_sizing.py)."""


def verify_topk(num_nodes: int) -> int:
    """`topk` of a verify of `num_nodes` per request: 1 for one node, a chain, so that backends take the causal path."""
    return TREE_TOPK if num_nodes > 1 else 1


def max_path_len(arguments: Any) -> int:
    """P, the most nodes of a path, root included: one more than the depths that the drafter proposes.

    `arguments`: SGLang's, resolved or published. A block has P tokens, or one less where its root proposes, too.
    """
    return int(arguments.speculative_num_steps) + 1


def is_ddtree(algorithm: str | None) -> bool:
    """Whether this value of `--speculative-algorithm` names DDTREE; SGLang accepts names in any case."""
    return algorithm is not None and algorithm.upper() == ALGORITHM


def serves_ddtree() -> bool:
    """Whether this process belongs to a server of DDTREE: what hooks that are always installed ask."""
    from sglang.srt.runtime_context import get_spec

    return is_ddtree(get_spec().speculative_algorithm)
