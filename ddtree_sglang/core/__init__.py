"""The algorithm of draft trees: build, lay out, mask, accept, commit, count. The oracle of every faster
version.

Pure: torch, NumPy, numba and the standard library, any device, no engine, no I/O, no timing, inputs never changed. Must
not import `sglang`, `ray`, `triton`, `flashinfer`, `ddtree_sglang.engine`, `ddtree_sglang.kernels`.
"""

from ddtree_sglang.core.acceptance import AcceptedPath, walk_tree
from ddtree_sglang.core.acceptance_stats import accept_length, chain_commit_lens, chain_nodes, count_rounds
from ddtree_sglang.core.built_tree import BuiltTree, complete_tree, root_trees
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.heap_builder import build_draft_tree_heap
from ddtree_sglang.core.kv_commit import CommitPlan, commit_plan
from ddtree_sglang.core.round_commit import RoundCommit, commit_round
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.core.tree_layout import TreeLayout, layout_draft_tree
from ddtree_sglang.core.tree_mask import (
    AncestorMask,
    FlatMask,
    TreeMask,
    ancestor_mask,
    flat_tree_mask,
    tree_cell_index,
)

__all__ = [
    "AcceptedPath",
    "AncestorMask",
    "BuiltTree",
    "CommitPlan",
    "DraftTree",
    "FlatMask",
    "RoundCommit",
    "RoundEnds",
    "TreeLayout",
    "TreeMask",
    "accept_length",
    "ancestor_mask",
    "build_draft_tree",
    "build_draft_tree_heap",
    "chain_commit_lens",
    "chain_nodes",
    "commit_plan",
    "commit_round",
    "complete_tree",
    "count_rounds",
    "flat_tree_mask",
    "layout_draft_tree",
    "root_trees",
    "tree_cell_index",
    "walk_tree",
]
