"""Pictures of result files, one module per kind of result; `python -m benchmarks plot FILE ...` draws them.

Must not import `torch`, `sglang`, `deploy`: a picture needs the lines of a file and nothing else.
"""
