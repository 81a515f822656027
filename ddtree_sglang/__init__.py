"""DDTREE speculative decoding for SGLang (arXiv 2604.12989), as a plugin beside a stock engine.

Importing this package imports nothing of SGLang. Must not import `workers`, `ray`, `deploy`, `benchmarks`, `tests`.
"""

__version__ = "0.1.0"
