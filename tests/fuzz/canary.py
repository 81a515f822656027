"""Clients that ask for the same again and again beside strange requests: their answers must not change."""

from __future__ import annotations

import http.client
import json
import threading
from typing import Any

from tests.fuzz.cases import Case
from tests.fuzz.sending import send

GREEDY = {"temperature": 0, "max_new_tokens": 6, "ignore_eos": True}
CANARIES: tuple[dict[str, Any], ...] = (
    {"input_ids": [72, 101, 108], "sampling_params": GREEDY},
    {"input_ids": [80, 101, 110], "sampling_params": {**GREEDY, "frequency_penalty": 0.7, "repetition_penalty": 1.3}},
    {"input_ids": [71, 114, 97], "sampling_params": {**GREEDY, "regex": "[a-e]{6,9}"}},
    {"input_ids": list(range(65, 91)) * 3, "sampling_params": GREEDY},
)
"""Plain, with penalties, with a grammar, with a prompt of several pages."""


class Canaries:
    """Asks one after the other until it is stopped.

    Attributes:
        right: number of right answers.
        failures: answers that changed or did not come.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._known = [self._answer(place) for place in range(len(CANARIES))]
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.right = 0
        self.failures: list[str] = []

    def __enter__(self) -> Canaries:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._stop.set()
        self._thread.join()

    def ask_all(self) -> None:
        """Each once."""
        for place in range(len(CANARIES)):
            self._ask(place)

    def _watch(self) -> None:
        """Ask once at least, however soon the run is over."""
        place = 0
        while True:
            self._ask(place % len(CANARIES))
            place += 1
            if self._stop.wait(0.02):
                return

    def _ask(self, place: int) -> None:
        try:
            answer = self._answer(place)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            self.failures.append(f"the canary was not answered: {type(error).__name__}: {error}")
            self._stop.wait(1.0)
            return
        if answer == self._known[place]:
            self.right += 1
        else:
            self.failures.append(f"the canary's answer changed from {self._known[place]} to {answer}")

    def _answer(self, place: int) -> list[int]:
        """Its tokens. An aborted answer has status 200 and fewer."""
        status, body = send(self._url, Case(-1, "POST", "/generate", json.dumps(CANARIES[place]).encode()))
        if status != 200:
            raise RuntimeError(f"the canary must be answered, got {status} {body[:200]}")
        ids: list[int] = json.loads(body)["output_ids"]
        return ids
