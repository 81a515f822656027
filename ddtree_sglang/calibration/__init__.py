"""What rounds cost on a server: measured by asking it, drawn from the table that policy adaptive keeps.

It speaks HTTP and reads files, and runs where SGLang is not. Must not import `sglang`, `ray`, `workers`,
`ddtree_sglang.engine`.
"""
