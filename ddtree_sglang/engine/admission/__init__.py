"""What is checked before it is served: arguments, drafter, target, requests.

Must not import `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.stages`, `ddtree_sglang.engine.graphs`.
"""
