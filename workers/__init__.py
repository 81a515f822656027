"""Ray: actors that host the target with its drafter, their supervision, replicas, ingress and jobs.

Knows placement, processes and HTTP; knows nothing of trees. Imports `ddtree_sglang.engine` and never `core`.
"""
