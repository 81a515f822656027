"""What is served, what is refused and what nobody has run: one list, which the tests run and a document shows.

`table.ROWS` is the list. A row is one line: target family, attention backend, feature, and a cell.

    Row("Qwen3", "fa3", "penalties", scene("penalties"))                                  a scene of the device lane
    Row("Llama", "ddtree_cpu", "streams", shown("tests/e2e/test_streams.py::test_every_token_is_a_chunk"))
    Row("Kimi-Linear", ALL, ALL, Refused("not been shown to follow a tree"))        words of the message that refuses it
    Row(ALL, ALL, "pipeline parallelism", Refused("one pipeline stage", {"pp_size": 2}))  and the arguments it refuses

What no row names has not been run. To add one: add the line, for a new family its configuration to
`families.FAMILIES`, for a new feature its name to `table.FEATURES`; then

    python -m tests.support                          writes ddtree_sglang/docs/support.md
    python -m pytest tests/support                   every test exists and runs, every refusal is seen, no other is

A refusal that is lifted breaks the row that names it, here, too.
"""
