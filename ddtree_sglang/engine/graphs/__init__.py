"""What CUDA graphs need: the drafter's with the tree at its end, the target's per number of nodes.

Must not import `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.admission`.
"""
