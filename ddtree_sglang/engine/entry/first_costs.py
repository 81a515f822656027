"""What rounds cost, measured for some seconds before a server of policy "adaptive" answers its first client.

SGLang runs such requests by itself before it listens (entrypoints/warmup.py, `--warmups`), so this is one of its
warm-ups. Each number of requests gets a few rounds of several widths, more of quick ones. The narrowest and a middle
one come first, so that the time is not over before many requests had any; then the widest, then the others. What is
done once, as the compiling of products for new shapes, is done by the way, and no client waits for it. Cells that a
file of an earlier start knows are left out; what lies between the measured ones, rounds that are served tell. Nothing
is learned of the answers: weights may still be dummies, and no client asked.
"""

from __future__ import annotations

import asyncio
import logging
import math
import zlib
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from time import monotonic
from typing import TYPE_CHECKING, Any

from ddtree_sglang.config import DEFAULT_MEASURE_SECONDS, DDTreeConfig
from ddtree_sglang.core.cost_model import batch_class
from ddtree_sglang.cost_batches import BESIDE, KEY, MOST_REQUESTS, Batches, sizes_up_to

if TYPE_CHECKING:
    from sglang.srt.managers.tokenizer_manager import TokenizerManager

logger = logging.getLogger(__name__)

ROUNDS, LEAST_ROUNDS = 4, 2
"""Of each cell: asked for, and after which it is not asked again. A table keeps no cell of one sample."""
QUICK_SECONDS, QUICK_ROUNDS = 0.02, 24
"""What a round takes that is asked for so often. On a GPU the first rounds behind a prefill tell little: clocks of a
device that idled still rise."""
MOST_ASKED = 2
"""Batches for a cell."""
SAVING_SECONDS = 5.0
"""Of the last question."""
FAILURE = "rounds could not be measured at start (%s); they are while serving."
WORDS = 12
"""Of a prompt: a short one, as its prefill is not measured."""
TOO_DEAR = 2.0
"""Wider ones are left out where a round takes so many times what its tokens are worth in plain rounds."""


@dataclass(frozen=True)
class Unmeasured:
    """What is to be measured, as a server's `/server_info` says."""

    nodes: Sequence[int]  # ascending; between them others may lie
    max_running: int
    known: dict[tuple[int, int], float]  # seconds of short contexts, by class of requests, and nodes; others join

    @classmethod
    def of(cls, states: Sequence[dict[str, Any]]) -> Unmeasured | None:
        """None: it keeps no table, or it is several servers that share requests out."""
        table = states[0].get(KEY) if len(states) == 1 else None
        if not isinstance(table, dict):
            return None
        running = int(states[0].get("effective_max_running_requests_per_dp") or 1)
        known = {(size, width): seconds for size, width, context, seconds in table["cells"] if context == 0}
        return cls(table["steps"], running, known)

    def passes(self) -> list[Sequence[int]]:
        """Widths to measure for all sizes, before those of the next pass are."""
        few = sorted({self.nodes[0], self.nodes[len(self.nodes) // 2]})
        return [few, sorted({*few, self.nodes[-1]}), self.nodes]

    def sizes(self) -> list[int]:
        """Numbers of requests, one of each class."""
        sizes = sizes_up_to(min(self.max_running, MOST_REQUESTS))
        return list({batch_class(size): size for size in sizes}.values())


async def measure_first_costs(disaggregation_mode: str, manager: TokenizerManager) -> None:
    """The warm-up: serve rounds until all is measured, or the time is over. What fails is logged and ends it.

    A server that prefills or decodes alone has nobody to do the other part.
    """
    from sglang.srt.runtime_context import get_serving

    # Warm-ups may be left out by flags for debugging, too, after the arguments were looked at.
    if disaggregation_mode != "null" or get_serving().skip_server_warmup:
        return
    limit = DDTreeConfig.from_env().measure_seconds
    limit = DEFAULT_MEASURE_SECONDS if limit is None else limit
    try:
        await asyncio.wait_for(_measure(manager), limit)
    except TimeoutError:
        # No client was let in yet, so what still runs is a question of ours.
        manager.abort_request(abort_all=True)
        logger.info("what is left is measured while serving: the %g s of measuring at start are over.", limit)
    except Exception as error:  # noqa: BLE001
        # A server without these numbers serves as well; it measures while it serves.
        logger.warning(FAILURE, error)
    # Who asks has the table written to its file.
    with suppress(Exception):
        await asyncio.wait_for(manager.get_internal_state(), SAVING_SECONDS)


async def _measure(manager: TokenizerManager) -> None:
    unmeasured = Unmeasured.of(await manager.get_internal_state())
    if unmeasured is None:
        logger.info("rounds are not measured at start: this is several servers, or one that keeps no table of costs.")
        return
    batches, began = Batches(WORDS), monotonic()
    for widths, size in product(unmeasured.passes(), unmeasured.sizes()):
        try:
            served = await _measure_size(manager, batches, unmeasured, size, widths)
        except Exception as error:  # noqa: BLE001
            # Another size may pass: a queue may be shorter than this one.
            logger.warning(FAILURE, error)
            continue
        if served:
            spent = monotonic() - began
            logger.info("%d at once: rounds of %s nodes each are measured; %.1f s so far.", size, served, spent)


async def _measure_size(
    manager: TokenizerManager, batches: Batches, unmeasured: Unmeasured, size: int, widths: Sequence[int]
) -> list[int]:
    """The widths that were measured, as far as wider ones may pay."""
    served: list[int] = []
    plain = 0.0
    for width in widths:
        cell = batch_class(size), width
        spent = unmeasured.known.get(cell)
        if spent is None:
            # If it fails it is not asked again, nor is what is wider.
            unmeasured.known[cell] = math.inf
            spent = unmeasured.known[cell] = await _seconds_a_round(manager, batches, size, width)
            served.append(width)
        plain = plain or spent
        if math.isinf(spent) or spent > TOO_DEAR * batches.tokens_of(width) * plain:
            break
    return served


async def _seconds_a_round(manager: TokenizerManager, batches: Batches, size: int, width: int) -> float:
    """Roughly, the prefill included."""
    seconds, wanted = 0.0, ROUNDS
    for _ in range(MOST_ASKED):
        began = monotonic()
        answers = await _answers(manager, batches.body(size, width, wanted))
        rounds = batches.rounds_of(width, answers)
        seconds = (monotonic() - began) / (rounds + BESIDE)
        wanted = QUICK_ROUNDS if seconds < QUICK_SECONDS else ROUNDS
        # Its rounds may emit more than was guessed; now it is known how much.
        if rounds >= (LEAST_ROUNDS if wanted == ROUNDS else wanted):
            break
    return seconds


async def _answers(manager: TokenizerManager, body: dict[str, Any]) -> list[dict[str, Any]]:
    from sglang.srt.managers.io_struct import GenerateReqInput

    body["sampling_params"]["custom_params"]["ddtree"]["learn"] = False
    if manager.tokenizer is None:  # --skip-tokenizer-init
        body["input_ids"] = [_some_tokens(text, manager.model_config.vocab_size) for text in body.pop("text")]
    answers: list[dict[str, Any]] = []
    async for told in manager.generate_request(GenerateReqInput(**body, log_metrics=False)):
        answers = told
    return answers


def _some_tokens(text: str, vocab_size: int) -> list[int]:
    """As many as the text may have, others for each text."""
    seed = zlib.crc32(text.encode())
    return [(seed + 7919 * place) % vocab_size for place in range(2 * WORDS)]
