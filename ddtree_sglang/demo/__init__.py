"""The embedded pair: a small real target, converted once, and the DFlash drafter that ships for it.

Must not import `sglang`, `ddtree_sglang.engine`, `ddtree_sglang.training`.
"""
