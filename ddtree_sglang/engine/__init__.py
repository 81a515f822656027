"""The SGLang adapter: translates between the engine and `ddtree_sglang.core`, and calls.

The only part, with `cpu_platform`, that imports sglang. It must not import ray, and does no arithmetic on trees:
that is core's.
"""
