"""The functions of `ddtree_sglang.core`, faster: one module per operation and backend, `<op>_<backend>.py`.

Each has its core oracle and a parity test. Imports neither sglang nor ray.
"""
