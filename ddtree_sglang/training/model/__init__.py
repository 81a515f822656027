"""The drafter as a torch module, its configuration, its start, its export.

Must not import `ddtree_sglang.training.features`, `ddtree_sglang.training.fit`, `ddtree_sglang.training.score`.
"""
