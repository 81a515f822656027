"""No slot of the KV pool is lost in a thousand rounds. No pool knows what model fills it, and the tiny pair is fast."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from tests.e2e.asking import PROMPTS, ask, free_slots, num_rounds, rounds_since
from tests.e2e.conformance.conftest import Both

NUM_ROUNDS = 1000


def test_thousand_rounds_leave_every_slot_free(both: Both) -> None:
    """Requests of random lengths, prompts that begin alike or not, eight at a time."""
    server = both.ddtree
    at_start = free_slots(server)
    first = num_rounds(server)
    rng = random.Random(0)

    def answer(index: int) -> None:
        prompt = PROMPTS[index % len(PROMPTS)] + " and so on" * (index % 3) + f" {index // 40}"
        ask(server.url, prompt, max_new_tokens=lengths[index], ignore_eos=True)

    asked = 0
    with ThreadPoolExecutor(8) as pool:
        while num_rounds(server) - first < NUM_ROUNDS:
            lengths = {index: rng.randint(1, 160) for index in range(asked, asked + 40)}
            list(pool.map(answer, lengths))
            asked += 40
    rounds = rounds_since(server, first)
    assert sum(max(one["commit_lens"]) > 1 for one in rounds) > NUM_ROUNDS / 2, "slots of rejected nodes alone"
    assert max(one["batch_size"] for one in rounds) == 8
    assert free_slots(server) == at_start
