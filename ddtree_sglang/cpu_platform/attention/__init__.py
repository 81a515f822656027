"""The attention backend `ddtree_cpu`: plan, masks and arithmetic of one forward.

Must not import `ddtree_sglang.core`, `ddtree_sglang.engine`, `ddtree_sglang.cpu_platform.platform`.
"""
