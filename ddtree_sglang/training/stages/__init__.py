"""The stages of the recipe, one module each: generate, features, train, together, evaluate, export; and what they read.

Must not import `ddtree_sglang.training.flags`, `argparse`.
"""
