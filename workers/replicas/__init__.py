"""A replica: the process that owns an engine, its ranks, its health checks and restarts.

Must not import `workers.http`, `workers.jobs`, `workers.app`.
"""
