"""Where things run: a Ray of this machine, routing to replicas, loopback addresses.

Must not import `workers.http`, `workers.replicas`, `workers.jobs`, `workers.app`.
"""
