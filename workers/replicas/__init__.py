"""A replica: the process that owns an engine, its ranks, its health.

Must not import `workers.http`, `workers.jobs`, `workers.app`.
"""
