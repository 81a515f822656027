"""Batches: prompts in a JSONL file, answers in another.

Must not import `workers.cli`.
"""
