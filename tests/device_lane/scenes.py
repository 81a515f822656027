"""What runs in the lane: scenes, each one server with waves of requests, and what must be true of every answer.

Interpreted kernels are slow, so a scene packs much into few rounds: requests of one wave start together and end one
after the other, so that one wave sees batches above the captured sizes, at them and padded below them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from deploy.local.client import ClientError, post
from deploy.local.server_process import ServerError
from tests.core.plain_penalties import Asked as Penalties
from tests.device_lane.adapters import flags_of
from tests.device_lane.asking import Lane, LaneServer
from tests.device_lane.pairs import EOS_TOKEN, TinyPair, random_prompts
from tests.device_lane.references import Asked, Reference, Round, histogram
from tests.device_lane.split import serve_split

Check = Literal["rounds", "steps", "tokens", "prefix", "law"]
"""rounds: tokens and what each round accepts; steps: the same, where prefills may have given some of the tokens;
tokens: those alone; prefix: the answer was cut short by the server; law: what draws without a seed come from."""


@dataclass(frozen=True)
class Sent:
    """A request of a wave."""

    asked: Asked
    check: Check = "rounds"
    after_s: float = 0.0
    aborted: bool = False  # once a round has had it
    total: int | None = None  # tokens of prompt and answer, where the server cuts the answer short
    logprobs: bool = False
    session: str = ""  # name of the streaming session that the request is a turn of
    is_first_turn: bool = False
    num_sent: int | None = None  # tokens of the prompt that are sent, where the session has the others
    streamed: bool = False  # token by token
    supports: bool = False  # what each token was drawn from
    states: bool = False  # hidden states of every token
    experts: bool = False  # routed experts of every token
    cached: int | None = None  # tokens of the prompt that the prefix cache must have had
    goes_on: bool = False  # its prompt begins with a whole answer, of which SGLang's chain may keep the last token, too
    from_host: int | None = None  # how many of them, at least, had to be copied back from the host
    from_storage: int | None = None  # likewise, from what is behind the host
    group: int | None = None  # which of a server's groups attends for it, under DP attention

    def wishes(self) -> dict[str, Any]:
        """What it asks to be told besides its tokens, and by whom, as `/generate` takes it."""
        wishes: dict[str, Any] = {"return_logprob": True} if self.logprobs else {}
        if self.supports:
            wishes |= {"return_sampling_mask": True, "sampling_logprobs_mode": "support"}
        if self.states:
            wishes["return_hidden_states"] = True
        if self.experts:
            wishes["return_routed_experts"] = True
        return wishes if self.group is None else {**wishes, "routed_dp_rank": self.group}


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
    adapters: bool = False  # the pair's are loaded at start
    split: bool = False  # another server prefills
    prefill_flags: tuple[str, ...] = ()  # of that one alone
    decode_flags: tuple[str, ...] = ()  # of the other one alone
    at_once: int = 0  # requests that some round must have had
    asked_as: str = ""  # a name that scenes share which are asked the same
    clear_at: tuple[int, ...] = ()  # numbers of nodes at which no request hangs on rounding; empty for the scene's own
    moves: bool = False  # some round must have accepted a node that has to move
    before: Callable[[LaneServer, TinyPair], None] | None = None  # done to the server first; raises ClientError
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
        self.reference, self.scene = reference.of_server(scene.flags), scene
        self._seed = 1000 * sum(map(ord, scene.asked_as or scene.name))
        self.sessions: dict[str, Asked] = {}  # the last turn of each
        self.passed: Asked | None = None  # one whose text later ones resume
        self.begun: list[Asked] = []  # a wave whose texts the next one's go on
        self.adapter = ""  # of what is found
        self.unlike: tuple[Reference, ...] = ()  # whose rounds what is found does not have

    def rounds(self, asked: Asked, of: Reference | None = None) -> list[Round]:
        """What the scene's algorithm needs for a request; `of` another reference than the scene's."""
        reference = of or self.reference
        if self.scene.algorithm == "DFLASH":
            return reference.chain_rounds(asked)
        return reference.rounds(asked, self.scene.num_nodes)

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
            plain = Asked(prompt, max_new_tokens, adapter=self.adapter)
            asked = plain if wanted is None else wanted(plain)
            counts = self.scene.clear_at or (self.scene.num_nodes,)
            if asked is None or any(self._accepts_as(one, asked) for one in self.unlike):
                continue
            if self.reference.is_clear(asked, counts, anywhere):
                return asked
        raise AssertionError(
            f"no clear request among 400 for {self.scene.name}: length {length}, {max_new_tokens} tokens"
        )

    def _accepts_as(self, other: Reference, asked: Asked) -> bool:
        return histogram(self.rounds(asked, of=other)) == histogram(self.rounds(asked))

    def sampled(self, length: int, max_new_tokens: int, seed: int, top_k: int = 8) -> Asked:
        """Drawn at temperature 1 from the `top_k` best."""
        return self.find(length, max_new_tokens, lambda asked: replace(asked, temperature=1.0, seed=seed, top_k=top_k))

    def with_adapter(self, name: str, length: int, max_new_tokens: int, anywhere: bool = False) -> Asked:
        """Greedy, with this adapter; "" for the base model."""
        return self.find(length, max_new_tokens, lambda asked: replace(asked, adapter=name), anywhere)

    def penalized(
        self,
        length: int,
        max_new_tokens: int,
        penalties: Penalties,
        top_k: int | None = None,
        anywhere: bool = False,
    ) -> Asked:
        """One whose answer its penalties change first in the middle of a round's path; `top_k`: through the sampler."""

        def penalized(asked: Asked) -> Asked:
            asked = replace(asked, penalties=penalties)
            return asked if top_k is None else replace(asked, temperature=1.0, top_k=top_k)

        return self.changed_inside_a_path(length, max_new_tokens, penalized, anywhere)

    def changed_inside_a_path(
        self, length: int, max_new_tokens: int, change: Callable[[Asked], Asked], anywhere: bool = False
    ) -> Asked:
        """One whose answer what is asked beside the prompt changes first in the middle of a round's path."""

        def wanted(plain: Asked) -> Asked | None:
            asked = change(plain)
            answer, without = (self.reference.expect(one).output_ids for one in (asked, plain))
            changed = [index for index, pair in enumerate(zip(answer, without, strict=True)) if pair[0] != pair[1]]
            lengths = [one.commit_len for one in self.rounds(asked)]
            at_roots = {1 + sum(lengths[:index]) for index in range(len(lengths))}
            return asked if changed and changed[0] > 0 and changed[0] not in at_roots else None

        return self.find(length, max_new_tokens, wanted, anywhere)

    def drawn(self, length: int, max_new_tokens: int, temperature: float, top_k: int) -> Asked:
        """One whose tokens nobody knows before."""
        self._seed += 1
        prompt = tuple(random_prompts(1, length, self._seed)[0].tolist())
        return Asked(prompt, max_new_tokens, temperature=temperature, top_k=top_k)

    def ending_inside_a_path(self, length: int, with_eos: bool = False) -> Asked:
        """One whose last round accepts more tokens behind the one that ends it."""

        def wanted(asked: Asked) -> Asked | None:
            if with_eos:
                asked = replace(asked, ignore_eos=False)
                return asked if self.ends_inside(asked) else None
            for token in set(self.reference.expect(asked).output_ids):
                ended = replace(asked, stop_token_ids=(token,), ignore_eos=False)
                if token != EOS_TOKEN and self.ends_inside(ended):
                    return ended
            return None

        return self.find(length, 14, wanted)

    def ends_inside(self, asked: Asked) -> bool:
        """Whether a token ends the answer, and its last round accepts more behind that."""
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


WAVE_APART_S = 6.0
CONTEXT_LIMIT = 48


def pool_of(num_tokens: int) -> tuple[str, ...]:
    """Flags of a server whose requests are all admitted at once, whether or not so many tokens will hold them."""
    return ("--max-total-tokens", str(num_tokens), "--schedule-conservativeness", "0")


SMALL_POOL = (*pool_of(76), "--page-size", "4")
"""Less than four requests of some twenty tokens and two windows each."""


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
        with (partial(serve_split, lane, scene.prefill_flags, scene.decode_flags) if scene.split else lane.serve)(
            reference.pair,
            scene.backend,
            scene.algorithm,
            scene.budget,
            *scene.flags,
            *(flags_of(reference.adapters, pinned="--enable-dp-attention" in scene.flags) if scene.adapters else ()),
            log=log,
            mutation=mutation,
            late=scene.late,
            captured=scene.captured,
        ) as server:
            if scene.before is not None:
                scene.before(server, reference.pair)
            for sent in waves:
                answered += _ask(server, sent)
                _keep(answered, log)
            for name in chooser.sessions:
                server.close_session(name)
            used = server.used_slots()
            server.process.check_alive()
    except (ServerError, ClientError, OSError) as error:
        # Of two servers the first may have been refused before there was a second.
        text = log.read_text(errors="replace") if log.exists() else ""
        return Outcome(tuple(answered), None, text, f"{type(error).__name__}: {error}")
    return Outcome(tuple(answered), used, server.log(), None, tuple(server.decode_rounds()))


def _keep(answered: Sequence[Answered], log: Path) -> None:
    """Answers beside the log, for whoever looks into a failure."""
    lines = (json.dumps({"asked": asdict(one.sent.asked), "answer": one.answer}) for one in answered)
    log.with_name("answers.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _ask(server: LaneServer, wave: Sequence[Sent]) -> list[Answered]:
    def ask(index: int, sent: Sent) -> dict[str, Any]:
        body = {"rid": f"{id(wave)}-{index}", **sent.wishes()}
        if sent.session:
            if sent.is_first_turn:
                server.open_session(sent.session)
            body["session_params"] = {"id": sent.session}
            body["input_ids"] = list(sent.asked.prompt[-(sent.num_sent or 0) :])
        ask = server.stream if sent.streamed else server.ask
        return ask(sent.asked, sent.after_s, **body)

    def abort(index: int) -> None:
        rid = f"{id(wave)}-{index}"
        # What is aborted while another server prefills it ends in an error (split_waves.py).
        while not server.has_decoded(rid) and not answers[index].done():
            time.sleep(0.1)
        post(server.url, "/abort_request", {"rid": rid})

    with ThreadPoolExecutor(2 * len(wave)) as pool:
        answers = [pool.submit(ask, index, sent) for index, sent in enumerate(wave)]
        aborts = [pool.submit(abort, index) for index, sent in enumerate(wave) if sent.aborted]
        for future in aborts:
            future.result()
        return [Answered(sent, future.result()) for sent, future in zip(wave, answers, strict=True)]
