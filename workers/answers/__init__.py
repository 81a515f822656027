"""One answer over several attempts: its tokens, its text, its limits and its retries.

Must not import `ray`, `sglang`, `fastapi`, `ddtree_sglang`, `workers.http`, `workers.cluster`, `workers.replicas`.
"""
