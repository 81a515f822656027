"""Ray: actors that host the target with its drafter, their supervision, replicas, ingress and jobs.

They know placement, processes and HTTP, and nothing of trees. Must not import `ddtree_sglang.core`,
`ddtree_sglang.training`, `deploy`, `benchmarks`.
"""
