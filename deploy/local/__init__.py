"""A server or a Ray on this machine: start it, find its processes, ask it, compare its answers.

The demonstration, the benchmarks and the tests share it. Must not import `deploy.serve_demo`, `benchmarks`, `tests`.
"""
