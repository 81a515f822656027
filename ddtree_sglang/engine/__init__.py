"""The SGLang adapter: it translates between the engine and `ddtree_sglang.core`, and calls.

It does no arithmetic on trees: that is core's. Must not import `ray`, `workers`, `ddtree_sglang.demo`,
`ddtree_sglang.training`.
"""
