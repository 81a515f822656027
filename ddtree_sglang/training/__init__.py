"""The recipe that trains a DFlash drafter for a target: data, features, model, fit, score.

Must not import `sglang`, `ray`, `ddtree_sglang.engine`, `workers`.
"""
