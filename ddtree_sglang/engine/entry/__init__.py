"""What meets a request in the process that has the tokenizer, before the scheduler hears of it.

A scheduler that raises ends the server, for every client. So what cannot be answered is refused here, with a 400 that
says why, under any speculative algorithm. Must not import `ddtree_sglang.engine.worker`, `ddtree_sglang.engine.stages`,
`ddtree_sglang.engine.graphs`.
"""
