"""Strange requests at every endpoint that a server registers: it must answer each, and go on answering the others.

    python -m tests.fuzz --url http://127.0.0.1:30000 --requests 2000 --seed 1
    python -m tests.fuzz --model FOLDER/target --draft FOLDER/draft --requests 2000 --seed 1

FOLDER is what `python -m benchmarks tiny_pair FOLDER` writes. Endpoints and their fields come from the server's own
/openapi.json. Every request follows from its seed and its number alone, so `--only 17` sends that one again. Must not
import `ddtree_sglang`, `sglang`, `torch`.
"""
