"""The algorithm of draft trees: build, lay out, mask, accept, commit, count. The oracle of every faster
version.

Pure: torch and the standard library, any device, no engine, no I/O, no timing, inputs never changed. Must
not import `sglang`, `ray`, `triton`, `flashinfer`, `ddtree_sglang.engine`, `ddtree_sglang.kernels`.
"""

from ddtree_sglang.core.acceptance import AcceptedPath, draw_target_tokens, walk_tree
from ddtree_sglang.core.acceptance_stats import (
    AcceptanceCounts,
    AcceptanceSummary,
    count_round,
    spine_nodes,
)
from ddtree_sglang.core.built_tree import BuiltTree, complete_tree, root_trees
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.kv_commit import CommitPlan, commit_plan, gather_rows
from ddtree_sglang.core.tree_builder import build_draft_tree, build_draft_tree_heap
from ddtree_sglang.core.tree_layout import TreeLayout, layout_draft_tree
from ddtree_sglang.core.tree_mask import ancestor_mask, flat_tree_mask, tail_cell_index

__all__ = [
    "AcceptanceCounts",
    "AcceptanceSummary",
    "AcceptedPath",
    "BuiltTree",
    "CommitPlan",
    "DraftTree",
    "TreeLayout",
    "ancestor_mask",
    "build_draft_tree",
    "build_draft_tree_heap",
    "commit_plan",
    "complete_tree",
    "count_round",
    "draw_target_tokens",
    "flat_tree_mask",
    "gather_rows",
    "layout_draft_tree",
    "root_trees",
    "spine_nodes",
    "tail_cell_index",
    "walk_tree",
]
