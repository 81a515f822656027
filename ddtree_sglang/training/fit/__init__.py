"""The training loop and what it needs: batches, loss, optimizer, checkpoints, curve.

Must not import `ddtree_sglang.training.score`.
"""
