"""What the project relies on of SGLang, Ray, torch and transformers: tables, and the check of them.

It reads source and imports none of it. Must not import `sglang`, `ray`, `torch`, `transformers`,
`ddtree_sglang.engine`.
"""
