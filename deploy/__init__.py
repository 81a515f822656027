"""How it runs: set-up, the demonstration, Docker, Ray, Kubernetes, monitoring.

What runs before set-up needs the standard library alone. Must not import `ddtree_sglang`, `benchmarks`, `tests`,
`torch`.
"""
