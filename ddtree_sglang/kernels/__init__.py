"""The functions of `ddtree_sglang.core`, faster: one module per operation and backend, `<op>_<backend>.py`.

Each has its core oracle and a parity test. Must not import `sglang`, `ray`, `ddtree_sglang.engine`.
"""
