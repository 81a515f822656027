"""Streams as plain decoding has them, one output for each token, where a round emits several.

Must not import `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.stages`, `ddtree_sglang.engine.graphs`,
`ddtree_sglang.engine.admission`.
"""
