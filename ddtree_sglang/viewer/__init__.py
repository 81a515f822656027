"""What a person looks at: the rounds of a trace, in the terminal and on a page, and a running server.

It reads what a server wrote or answers, and runs where neither torch nor SGLang is. Must not import `torch`, `sglang`,
`ray`, `ddtree_sglang.engine`, `ddtree_sglang.core`, `workers`.
"""
