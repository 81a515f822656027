"""Where things run: a local Ray, routing to replicas, loopback addresses.

Must not import `workers.http`, `workers.replicas`, `workers.jobs`, `workers.app`.
"""
