"""What runs in the lane: scenes, each one server with waves of requests, and what must be true of every answer.

Interpreted kernels are slow, so a scene packs much into few rounds: requests of one wave start together and end one
after the other, so that one wave sees batches above the captured sizes, at them and padded below them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from deploy.local.client import ClientError, post
from deploy.local.server_process import ServerError
from tests.device_lane.asking import Lane, LaneServer
from tests.device_lane.pairs import EOS_TOKEN, random_prompts
from tests.device_lane.references import Asked, Reference, Round, histogram

Check = Literal["rounds", "steps", "tokens", "prefix"]
"""rounds: tokens and what each round accepts; steps: the same, where prefills may have given some of the tokens;
tokens: those alone; prefix: the answer was cut short by the server."""


@dataclass(frozen=True)
class Sent:
    """A request of a wave."""

    asked: Asked
    check: Check = "rounds"
    after_s: float = 0.0
    abort_after_s: float | None = None
    total: int | None = None  # tokens of prompt and answer, where the server cuts the answer short
    logprobs: bool = False
    session: str = ""  # name of the streaming session that the request is a turn of
    is_first_turn: bool = False
    num_sent: int | None = None  # tokens of the prompt that are sent, where the session has the others


Wave = Callable[["Chooser"], list[Sent]]


@dataclass(frozen=True)
class Scene:
    """One server and what it is asked, wave after wave; `budget` is None for stock DFLASH and plain decoding."""

    name: str
    backend: str
    waves: tuple[Wave, ...]
    pair: str = "qwen3"
    algorithm: str | None = "DDTREE"
    budget: int | None = None
    flags: tuple[str, ...] = ()
    captured: tuple[int, ...] = (1, 2, 4)
    late: bool = False
    must_log: tuple[str, ...] = field(default=())

    @property
    def num_nodes(self) -> int:
        """N; 1 without a tree."""
        return 1 if self.budget is None else self.budget + 1

    @property
    def widths_change(self) -> bool:
        """Whether the number of nodes follows the load, so that what a round accepts depends on the other requests."""
        return "--speculative-ddtree-policy" in self.flags


class Chooser:
    """Finds requests that rounding cannot change, at this scene's number of nodes, always the same ones."""

    def __init__(self, reference: Reference, scene: Scene) -> None:
        self.reference, self.scene = reference, scene
        self._seed = 1000 * sum(map(ord, scene.name))
        self.sessions: dict[str, Asked] = {}  # the last turn of each

    def rounds(self, asked: Asked) -> list[Round]:
        """What the scene's algorithm needs for a request."""
        if self.scene.algorithm == "DFLASH":
            return self.reference.chain_rounds(asked)
        return self.reference.rounds(asked, self.scene.num_nodes)

    def find(
        self,
        length: int,
        max_new_tokens: int,
        wanted: Callable[[Asked], Asked | None] | None = None,
        anywhere: bool = False,
    ) -> Asked:
        """A prompt of `length` tokens, and what `wanted` makes of it; the first that is clear, rounds anywhere too."""
        for _ in range(400):
            self._seed += 1
            prompt = tuple(random_prompts(1, length, self._seed)[0].tolist())
            asked: Asked | None = Asked(prompt, max_new_tokens)
            if wanted is not None:
                asked = wanted(Asked(prompt, max_new_tokens))
            if asked is not None and self.reference.is_clear(asked, (self.scene.num_nodes,), anywhere):
                return asked
        raise AssertionError(
            f"no clear request among 400 for {self.scene.name}: length {length}, {max_new_tokens} tokens"
        )

    def sampled(self, length: int, max_new_tokens: int, seed: int, top_k: int = 8) -> Asked:
        """Drawn at temperature 1 from the `top_k` best."""
        return self.find(length, max_new_tokens, lambda asked: replace(asked, temperature=1.0, seed=seed, top_k=top_k))

    def ending_inside_a_path(self, length: int, with_eos: bool = False) -> Asked:
        """One whose last round accepts more tokens behind the one that ends it."""

        def wanted(asked: Asked) -> Asked | None:
            if with_eos:
                asked = replace(asked, ignore_eos=False)
                return asked if self._ends_inside(asked) else None
            for token in set(self.reference.expect(asked).output_ids):
                ended = replace(asked, stop_token_ids=(token,), ignore_eos=False)
                if token != EOS_TOKEN and self._ends_inside(ended):
                    return ended
            return None

        return self.find(length, 14, wanted)

    def _ends_inside(self, asked: Asked) -> bool:
        if self.reference.expect(asked).finish_reason != "stop":
            return False
        return self._last_round_goes_on(asked)

    def _last_round_goes_on(self, asked: Asked) -> bool:
        """Whether the target accepts more tokens behind the answer's last one, in the same round."""
        *_, last = [None, *self.rounds(asked)]
        *_, longer = [None, *self.reference.rounds(asked, self.scene.num_nodes, past_the_end=True)]
        return last is not None and longer is not None and longer.commit_len > last.commit_len

    def limited_inside_a_path(self, length: int, budget: int) -> Asked:
        """One with a budget of its own, whose last round accepts more tokens than it may have."""

        def wanted(asked: Asked) -> Asked | None:
            for limit in range(3, 9):
                limited = replace(asked, max_new_tokens=limit, budget=budget)
                if self._last_round_goes_on(limited) and self._feels_its_budget(limited):
                    return limited
            return None

        return self.find(length, 8, wanted)

    def _feels_its_budget(self, asked: Asked) -> bool:
        """Whether one node more, or one less, would give other rounds."""
        assert asked.budget is not None
        found = {tuple(self.rounds(replace(asked, budget=budget))) for budget in (asked.budget, asked.budget + 1)}
        return len(found) == 2


def staggered(chooser: Chooser) -> list[Sent]:
    """Five greedy requests at once, above the captured sizes; they end one by one, so batches shrink to padded ones."""
    sizes = ((3, 4), (5, 6), (7, 8), (9, 10), (12, 12))
    return [Sent(chooser.find(length, tokens)) for length, tokens in sizes]


def few(chooser: Chooser) -> list[Sent]:
    """Three greedy requests, in a padded graph of four."""
    return [Sent(chooser.find(length, tokens)) for length, tokens in ((4, 6), (6, 8), (11, 9))]


def pair_of_requests(chooser: Chooser) -> list[Sent]:
    """Two greedy requests at a captured size."""
    return [Sent(chooser.find(length, tokens)) for length, tokens in ((5, 8), (8, 9))]


def one(chooser: Chooser) -> list[Sent]:
    """One greedy request."""
    return [Sent(chooser.find(6, 6))]


def greedy_by_top_k(chooser: Chooser) -> list[Sent]:
    """Greedy and sampling with one candidate in one batch: the sampler runs, and the tokens are known."""
    return [
        Sent(chooser.find(4, 6)),
        Sent(chooser.sampled(6, 7, seed=1, top_k=1)),
        Sent(chooser.sampled(8, 5, seed=2, top_k=1)),
    ]


def seeded(chooser: Chooser) -> list[Sent]:
    """Greedy and seeded draws in one batch, with log-probabilities."""
    return [
        Sent(chooser.sampled(5, 7, seed=11), logprobs=True),
        Sent(chooser.find(4, 6), logprobs=True),
        Sent(chooser.sampled(7, 9, seed=12), logprobs=True),
    ]


def ends(chooser: Chooser) -> list[Sent]:
    """Ends in the middle of an accepted path, by a stop token, the end token and the limit, in a tree of three nodes.

    The last one decodes without a tree, until after the others have ended.
    """
    return [
        Sent(chooser.ending_inside_a_path(5)),
        Sent(chooser.ending_inside_a_path(7, with_eos=True)),
        Sent(chooser.limited_inside_a_path(6, budget=2)),
        Sent(chooser.find(6, 7, lambda asked: replace(asked, budget=0))),
    ]


def under_grammars(chooser: Chooser) -> list[Sent]:
    """Two under a grammar, one of them to its end, and two without, with log-probabilities."""

    def in_pairs(asked: Asked) -> Asked:
        return replace(asked, pairs=True)

    def to_its_end(asked: Asked) -> Asked | None:
        asked = replace(asked, pairs=True, ignore_eos=False)
        return asked if 6 <= len(chooser.reference.expect(asked).output_ids) < asked.max_new_tokens else None

    def behind_its_end(asked: Asked) -> Asked | None:
        asked = replace(asked, pairs=True)
        return asked if 4 <= len(chooser.reference.expect(asked).output_ids) < asked.max_new_tokens else None

    return [
        Sent(chooser.find(5, 12, in_pairs), logprobs=True),
        Sent(chooser.find(7, 14, to_its_end)),
        Sent(chooser.find(4, 8)),
        Sent(chooser.find(6, 14, behind_its_end)),
    ]


def aborted(chooser: Chooser) -> list[Sent]:
    """One is aborted in the middle; its neighbours go on."""
    return [
        Sent(chooser.find(5, 40), check="prefix", abort_after_s=ABORT_AFTER_S),
        Sent(chooser.find(6, 8)),
        Sent(chooser.find(9, 9)),
    ]


def changing_widths(chooser: Chooser) -> list[Sent]:
    """Requests that come and go, so that the number of nodes of a round does."""
    return [
        Sent(chooser.find(length, tokens), check="tokens", after_s=after)
        for length, tokens, after in (
            (5, 12, 0.0),
            (6, 5, 0.0),
            (4, 6, WAVE_APART_S),
            (7, 4, WAVE_APART_S),
            (3, 3, 0.0),
        )
    ]


WAVE_APART_S = 6.0
ABORT_AFTER_S = 5.0
CONTEXT_LIMIT = 48


@dataclass(frozen=True)
class Answered:
    """A request of a scene with its answer."""

    sent: Sent
    answer: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What a scene came to. `failure` says why the server did not answer everything; None if it did."""

    answered: tuple[Answered, ...]
    used_slots: int | None
    log: str
    failure: str | None
    decode_rounds: tuple[dict[str, Any], ...] = ()  # lines of the lane's report (report.py)


def play(scene: Scene, lane: Lane, reference: Reference, mutation: str = "") -> Outcome:
    """Start the scene's server, ask wave after wave, flush, and count what is still taken."""
    chooser = Chooser(reference, scene)
    waves = [wave(chooser) for wave in scene.waves]
    answered: list[Answered] = []
    log = lane.new_log(scene.name, mutation)
    try:
        with lane.serve(
            reference.pair,
            scene.backend,
            scene.algorithm,
            scene.budget,
            *scene.flags,
            log=log,
            mutation=mutation,
            late=scene.late,
            captured=scene.captured,
        ) as server:
            for sent in waves:
                answered += _ask(server, sent)
                _keep(answered, log)
            for name in chooser.sessions:
                server.close_session(name)
            used = server.used_slots()
            server.process.check_alive()
    except (ServerError, ClientError, OSError) as error:
        return Outcome(tuple(answered), None, log.read_text(errors="replace"), f"{type(error).__name__}: {error}")
    return Outcome(tuple(answered), used, log.read_text(errors="replace"), None, tuple(server.decode_rounds()))


def _keep(answered: Sequence[Answered], log: Path) -> None:
    """Answers beside the log, for whoever looks into a failure."""
    lines = (json.dumps({"asked": asdict(one.sent.asked), "answer": one.answer}) for one in answered)
    log.with_name("answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ask(server: LaneServer, wave: Sequence[Sent]) -> list[Answered]:
    def ask(index: int, sent: Sent) -> dict[str, Any]:
        body: dict[str, Any] = {"rid": f"{id(wave)}-{index}"}
        if sent.logprobs:
            body["return_logprob"] = True
        if sent.session:
            if sent.is_first_turn:
                server.open_session(sent.session)
            body["session_params"] = {"id": sent.session}
            body["input_ids"] = list(sent.asked.prompt[-(sent.num_sent or 0) :])
        return server.ask(sent.asked, sent.after_s, **body)

    def abort(index: int, sent: Sent) -> None:
        assert sent.abort_after_s is not None
        time.sleep(sent.abort_after_s)
        post(server.url, "/abort_request", {"rid": f"{id(wave)}-{index}"})

    with ThreadPoolExecutor(2 * len(wave)) as pool:
        answers = [pool.submit(ask, index, sent) for index, sent in enumerate(wave)]
        aborts = [pool.submit(abort, i, sent) for i, sent in enumerate(wave) if sent.abort_after_s is not None]
        for future in aborts:
            future.result()
        return [Answered(sent, future.result()) for sent, future in zip(wave, answers, strict=True)]


def _last_error(log: str) -> list[str]:
    """What a server died of, as its log has it; nothing if it does not say."""
    errors = [line for line in log.splitlines() if re.match(r"[\w.]*(Error|Violation): ", line)]
    return [f"the log's last error is {errors[-1]!r}"] if errors else []


def problems(scene: Scene, outcome: Outcome, reference: Reference) -> list[str]:
    """What is wrong with a scene's outcome; empty when all is as plain torch says."""
    found = [outcome.failure, *_last_error(outcome.log)] if outcome.failure else []
    for one_answer in outcome.answered:
        found += _of_answer(scene, one_answer, reference)
    if outcome.used_slots:
        found.append(f"{outcome.used_slots} slots of the KV pool are taken when nothing runs")
    for word in ("LaneViolation", "not permitted when stream is capturing", "Leak Detected", "memory leak"):
        if word in outcome.log:
            found.append(f"the log has {next(line for line in outcome.log.splitlines() if word in line)!r}")
    found += [f"the log lacks {word!r}" for word in scene.must_log if word not in outcome.log]
    return found


def _of_answer(scene: Scene, one_answer: Answered, reference: Reference) -> list[str]:
    sent, answer = one_answer.sent, one_answer.answer
    expected, meta = reference.expect(sent.asked), answer["meta_info"]
    tokens, wanted = list(answer["output_ids"]), list(expected.output_ids)
    about = f"{scene.name}, prompt of {len(sent.asked.prompt)}"
    if sent.check == "prefix":
        wanted = wanted[: len(tokens)]
    if tokens != wanted:
        return [f"{about}: tokens {tokens}, expected {wanted}"]
    found = []
    if sent.total is not None and len(sent.asked.prompt) + len(tokens) != sent.total:
        found.append(f"{about}: {len(tokens)} tokens, expected {sent.total} with the prompt")
    if sent.check != "prefix" and meta["finish_reason"]["type"] != expected.finish_reason:
        found.append(f"{about}: finished by {meta['finish_reason']}, expected {expected.finish_reason}")
    if sent.logprobs:
        logprobs = [entry[0] for entry in meta["output_token_logprobs"]]
        if any(abs(a - b) > 1e-3 for a, b in zip(logprobs, expected.logprobs, strict=True)):
            found.append(f"{about}: log-probabilities {logprobs}, expected {list(expected.logprobs)}")
    return found + _of_rounds(scene, sent, meta.get("spec_correct_drafts_histogram", []), reference, about)


def _of_rounds(scene: Scene, sent: Sent, accepted: list[int], reference: Reference, about: str) -> list[str]:
    """What is wrong with an answer's rounds by correct drafts."""
    if sent.check == "steps":
        ways = reference.with_steps_of_one_token(sent.asked, scene.num_nodes)
        if tuple(accepted) not in ways:
            return [f"{about}: rounds by correct drafts {accepted}, expected one of {sorted(ways)}"]
    if sent.check == "rounds" and scene.algorithm is not None and not scene.widths_change:
        rounds = histogram(Chooser(reference, scene).rounds(sent.asked))
        if accepted != rounds:
            return [f"{about}: rounds by correct drafts {accepted}, expected {rounds}"]
    return []
