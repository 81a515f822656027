"""What the project relies on of SGLang, Ray, torch and transformers, and what it changes in them: tables.

The check of the rows reads source and imports none of it. Must not import `sglang`, `ray`, `torch`, `transformers`,
`ddtree_sglang.engine`.
"""
