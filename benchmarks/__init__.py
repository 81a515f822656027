"""What is measured and how: `python -m benchmarks NAME`.

Must not import `tests`.
"""
