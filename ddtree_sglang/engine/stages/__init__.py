"""The stages of a decode round, one module each.

Must not import `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.graphs`, `ddtree_sglang.engine.admission`.
"""
