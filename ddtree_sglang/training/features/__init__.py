"""What the target saw and said at every token, computed once and kept in files.

Must not import `ddtree_sglang.training.model`, `ddtree_sglang.training.fit`, `ddtree_sglang.training.score`.
"""
