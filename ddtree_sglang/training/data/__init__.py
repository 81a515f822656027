"""Conversations as token ids, and where they come from.

Must not import `ddtree_sglang.training.features`, `ddtree_sglang.training.model`, `ddtree_sglang.training.fit`,
`ddtree_sglang.training.score`.
"""
