"""How good a drafter is on text that it has not seen.

Must not import `ddtree_sglang.training.fit.loop`, `ddtree_sglang.training.fit.checkpoint`.
"""
