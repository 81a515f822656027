"""Custom logit processors that tests send to servers.

A class goes by value, as a client's own script sends it: a server does not have this module. `dill` does that for
classes of `__main__`, and for those made in a function, if it takes of the functions' module what they read alone.
"""

from __future__ import annotations

from typing import Any

import dill

NEWLINE, THINK_START, THINK_END = 198, 9, 12
"""Tokens of the embedded model: the end of a line, and two special ones that it does not write by itself."""


def thinking_budget() -> str:
    """The engine's own budget processor, for the embedded model's tokens."""
    from sglang.srt.sampling.custom_logit_processor import ThinkingBudgetLogitProcessor

    class Budget(ThinkingBudgetLogitProcessor):
        THINKING_START_TOKEN_ID = THINK_START
        THINKING_END_TOKEN_ID = THINK_END
        NEW_LINE_TOKEN_ID = NEWLINE

    return _by_value(Budget)


def no_repeated_pair() -> str:
    """The engine's own n-gram processor, which reads all of a request's tokens."""
    from sglang.srt.sampling.custom_logit_processor import DeepseekOCRNoRepeatNGramLogitProcessor

    return str(DeepseekOCRNoRepeatNGramLogitProcessor.to_str())


def counting() -> str:
    """One that changes the rows by how often it was called, and by what it wrote into the request's parameters."""
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    class Counting(CustomLogitProcessor):
        def __init__(self) -> None:
            self.calls = 0

        def __call__(self, logits: Any, custom_param_list: Any = None) -> Any:
            self.calls += 1
            for row, params in enumerate(custom_param_list):
                mine = params.setdefault("mine", [])
                if len(mine) != len(params["__req__"].output_ids):
                    mine.append(-1)  # called too often, or too seldom
                mine.append(self.calls)
                best = logits[row].topk(4).indices
                # Every third time another token than the target's own.
                logits[row, best[(sum(mine) % 3) % 2]] += 100.0
            return logits

    return _by_value(Counting)


def without_parameters() -> str:
    """One for requests that bring no parameters: it has its rows alone."""
    from sglang.srt.sampling.custom_logit_processor import CustomLogitProcessor

    class SecondBest(CustomLogitProcessor):
        def __call__(self, logits: Any, custom_param_list: Any = None) -> Any:
            assert custom_param_list is not None
            assert all(params is None for params in custom_param_list)
            best = logits.argmax(-1, keepdim=True)
            return logits.scatter(-1, best, float("-inf"))

    return _by_value(SecondBest)


def _by_value(processor: Any) -> str:
    kept = dill.settings["recurse"]
    dill.settings["recurse"] = True
    try:
        return str(processor.to_str())
    finally:
        dill.settings["recurse"] = kept
