"""What the benchmarks share: systems under test, flags, prompts, provenance.

Must not import `tests`, `benchmarks.decode`, `benchmarks.lossless`, `benchmarks.faults`.
"""
