"""The trace of rounds and two debugging checks, all off by default.

Must not import `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.stages`, `ddtree_sglang.engine.graphs`.
"""
