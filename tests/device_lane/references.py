"""What a server must answer, computed by plain torch: Hugging Face's forward for tokens, `core` for trees and walks.

Nothing here batches, caches, pads or places keys and values anywhere, so a fault in those cannot be on both sides. The
drafter is the training package's, the tree `core.tree_builder`'s, the walk `core.acceptance`'s. Per-request draws are
SGLang's own function of seed and position, so that a request's tokens are fixed when they are sampled, too.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from ddtree_sglang.core.acceptance import walk_tree
from ddtree_sglang.core.candidates import pair_conditionals
from ddtree_sglang.core.request_ngrams import LAW, RequestText, pair_table
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.engine.stages.request_texts import LEAST_CANDIDATES, MOST_CANDIDATES
from tests.core.plain_penalties import Asked as Penalties
from tests.core.plain_penalties import PlainPenalties
from tests.device_lane import processors
from tests.device_lane.adapters import Adapter
from tests.device_lane.draws import choose
from tests.device_lane.head_protocol import WrongHead
from tests.device_lane.pairs import EOS_TOKEN, EXPERTS_PER_TOKEN, NUM_LAYERS, VOCABULARY, TinyPair
from tests.device_lane.sight import Seen

EVEN_TOKENS = [4, 6, 8, 20, 22, 24, 26, 28]
ODD_TOKENS = [3, 5, 7, 9, 21, 23, 25, 27, 29]
"""What a grammar of the lane is made of. A grammar knows letters: where it allows w14, it allows the word w1 as well,
which nothing completes. So no word here begins with another one, but for the end token."""
THOUGHTS_END = 0
"""What a reasoning parser takes for the end of thoughts, and for all that it bars before: the lane's tokenizer knows no
such words, and has w0 for what it does not know."""
MIN_MARGIN = 1e-3
"""Least lead of a chosen token, in logits. Rounding of float32 moves these logits by some 1e-5."""
NOISE = 1e-4
"""What the drafter's log-probabilities are moved by to see whether rounding could change a tree's use, where nothing
is rounded to eight bits."""

NO_PENALTIES = Penalties()


@dataclass(frozen=True)
class Asked:
    """One request. Greedy at temperature 0; else `seed` and `top_k` decide its draws.

    A draw depends on `top_k` being set or not: SGLang draws from the sorted or the unsorted distribution, for the whole
    batch. So sampled requests always set it, and a greedy one among them is sorted as well.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int = 8
    temperature: float = 0.0
    top_k: int = 8
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = True
    budget: int | None = None  # nodes besides the root that it allows itself
    fixed: bool = False  # the adaptive policy is to leave its budget as it is
    pairs: bool = False  # under a grammar: an even token, an odd one, an even one ... up to an end behind an odd one
    adapter: str = ""  # name of a LoRA adapter; empty for the base model
    penalties: Penalties = NO_PENALTIES  # without its ends, which are `barred`
    processed: bool = False  # by a custom logit processor (processors.py)
    bias: tuple[tuple[int, float], ...] = ()  # added to the logits of tokens
    thoughts: int | None = None  # tokens after which the server ends its thoughts
    pictures: tuple[str, ...] = ()  # data URLs; each has one place in the prompt

    @property
    def barred(self) -> tuple[int, ...]:
        """Tokens that may not come before the minimum length, whether they end the answer or not."""
        return (*self.stop_token_ids, EOS_TOKEN)

    @property
    def stops(self) -> frozenset[int]:
        """Tokens that end the answer; a request that ignores the end token ignores its own stops as well."""
        return frozenset() if self.ignore_eos else frozenset((*self.stop_token_ids, EOS_TOKEN))

    def body(self) -> dict[str, Any]:
        """As `/generate` takes it."""
        sampling: dict[str, Any] = {
            "temperature": self.temperature,
            "max_new_tokens": self.max_new_tokens,
            "ignore_eos": self.ignore_eos,
        }
        if self.temperature > 0:
            sampling |= {"top_k": self.top_k, "sampling_seed": self.seed}
        if self.stop_token_ids:
            sampling["stop_token_ids"] = list(self.stop_token_ids)
        if self.budget is not None:
            sampling["custom_params"] = {"ddtree": {"budget": self.budget, **({"adapt": False} if self.fixed else {})}}
        if self.pairs:
            even, odd = ("|".join(f"w{token}" for token in tokens) for tokens in (EVEN_TOKENS, ODD_TOKENS))
            sampling["regex"] = f"(({even})({odd}))*"
        asked = self.penalties
        if asked != NO_PENALTIES:
            sampling |= {"frequency_penalty": asked.frequency, "presence_penalty": asked.presence}
            sampling |= {"repetition_penalty": asked.repetition, "min_new_tokens": asked.min_len}
        if self.bias:
            sampling["logit_bias"] = {str(token): value for token, value in self.bias}
        body: dict[str, Any] = {"input_ids": list(self.prompt), "sampling_params": sampling}
        if self.thoughts is not None:
            body |= {"require_reasoning": True, "max_thinking_tokens": self.thoughts}
        if self.processed:
            sampling["custom_params"] = {**sampling.get("custom_params", {}), "calls": 0}
            body["custom_logit_processor"] = processors.serialized()
        body |= {"image_data": list(self.pictures)} if self.pictures else {}
        return body | ({"lora_path": self.adapter} if self.adapter else {})


@dataclass(frozen=True)
class Expected:
    """A request's answer, and what its rounds accept at some number of nodes."""

    output_ids: tuple[int, ...]
    finish_reason: str  # "length" or "stop"
    logprobs: tuple[float, ...]  # of the tokens, at temperature 1
    margin: float  # least lead of a chosen token over the next one, in logits or, for draws, perturbed logits
    continuation: tuple[int, ...]  # the answer as if nothing had ended it, a block longer


@dataclass(frozen=True)
class Round:
    """One verify round of a request."""

    commit_len: int  # tokens that it emits, the bonus included
    path: tuple[int, ...]  # nodes accepted, root first

    @property
    def moves(self) -> bool:
        """Whether an accepted node's keys and values have to move: it is not the node of its depth's index."""
        return any(node != depth for depth, node in enumerate(self.path))


def experts_of(answer: dict[str, Any]) -> torch.Tensor:
    """`[tokens, layers, experts per token]` int32 of an answer's `routed_experts`."""
    numbers = np.frombuffer(base64.b64decode(answer["meta_info"]["routed_experts"]), dtype=np.int32).copy()
    return torch.from_numpy(numbers).view(-1, NUM_LAYERS, EXPERTS_PER_TOKEN)


def histogram(rounds: Sequence[Round]) -> list[int]:
    """Rounds by number of correct drafts, as SGLang reports it (`spec_correct_drafts_histogram`)."""
    counts = Counter(one.commit_len - 1 for one in rounds)
    return [counts[length] for length in range(max(counts, default=-1) + 1)]


Proposed = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]
"""What a drafter proposed: ids, log-probabilities, states, anchors (`Reference._candidates`)."""


@dataclass
class Reference:
    """The answers of one pair. Remembers them: the same request is asked of many servers."""

    pair: TinyPair
    adapters: Mapping[str, Adapter] = field(default_factory=dict)
    _known: dict[Asked, Expected] = field(default_factory=dict)
    _drafted: dict[tuple[str, tuple[str, ...], tuple[int, ...], int], Proposed] = field(default_factory=dict)
    _seen: dict[tuple[str, ...], Seen] = field(default_factory=dict)
    seen_tokens: int | None = None  # that the drafter reads of a context, in whole pages; None for all
    page_size: int = 1
    noise: float = NOISE
    reads_texts: bool = False  # trees know which token followed which in the request's own text

    def of_server(self, flags: Sequence[str]) -> Reference:
        """The same answers, and the rounds of a server with these flags."""
        values = dict(pairwise(flags))
        seen = values.get("--speculative-draft-window-size")
        page_size = int(values.get("--page-size", 1))
        reads_texts = "--speculative-ddtree-ngrams" in flags
        seen_tokens = None if seen is None else int(seen)
        return replace(self, seen_tokens=seen_tokens, page_size=page_size, reads_texts=reads_texts)

    def with_wrong_heads(self) -> tuple[Reference, ...]:
        """The same answers, and the rounds of heads that miss one of the things that the pair's own reads."""
        head = self.pair.head
        assert head is not None
        return tuple(replace(self, pair=replace(self.pair, head=WrongHead(head, what))) for what in head.reads)

    def expect(self, asked: Asked) -> Expected:
        """The answer of plain decoding."""
        if asked not in self._known:
            self._known[asked] = self._decode(asked)
        return self._known[asked]

    def target(self, asked: Asked) -> Any:
        """The model that answers a request: the pair's own, or the one with its adapter or its pictures."""
        if asked.pictures:
            return self.seen(asked)
        return self.adapters[asked.adapter].merged if asked.adapter else self.pair.target

    def seen(self, asked: Asked) -> Seen:
        """The target with the request's pictures, whose patches are made once."""
        assert self.pair.sight is not None
        if asked.pictures not in self._seen:
            self._seen[asked.pictures] = self.pair.sight.of(asked.pictures)
        return self._seen[asked.pictures]

    @torch.inference_mode()
    def _decode(self, asked: Asked) -> Expected:
        row, margins, logprobs = list(asked.prompt), [], []
        penalties: PlainPenalties | None = None
        for calls in range(asked.max_new_tokens + self.pair.max_path_len):
            logits = self.target(asked)(torch.tensor([row]), use_cache=False).logits[0, -1]
            penalties = penalties or PlainPenalties(asked.penalties._replace(ends=asked.barred), len(logits))
            logits = penalties.adjusted(logits)
            logits = allowed(logits, asked, row[len(asked.prompt) :])
            for favoured, value in asked.bias:
                logits[favoured] += value
            if asked.processed:
                logits = processors.change(logits, row, calls)
            token, margin = choose(logits, asked, position=len(row) - 1)
            row.append(token)
            penalties.count(token)
            margins.append(margin)
            logprobs.append(float(logits.log_softmax(-1)[token]))
        tokens = tuple(row[len(asked.prompt) :])
        output = tokens[: asked.max_new_tokens]
        ends = [index for index, token in enumerate(output) if token in asked.stops]
        # Plain decoding ends with the token behind the grammar's end, and asks for the answer's length before that.
        if asked.pairs and asked.ignore_eos and EOS_TOKEN in output[: asked.max_new_tokens - 2]:
            ends = [output.index(EOS_TOKEN) + 1]
        length = ends[0] + 1 if ends else asked.max_new_tokens
        # SGLang looks at end tokens, the limit and the grammar, in this order (schedule_batch.py, update_finish_state).
        is_grammars = asked.pairs and asked.ignore_eos
        reason = "stop" if ends and not (is_grammars and length == asked.max_new_tokens) else "length"
        margin = min(margins[:length], default=float("inf"))
        return Expected(output[:length], reason, tuple(logprobs[:length]), margin, tokens)

    @torch.inference_mode()
    def experts(self, asked: Asked) -> torch.Tensor:
        """`[T + n - 1, layers, experts per token]` int32, of the prompt and of all n tokens but the last."""
        row = torch.tensor([[*asked.prompt, *self.expect(asked).output_ids[:-1]]])
        routers = self.target(asked)(row, output_router_logits=True, use_cache=False).router_logits
        return torch.stack([logits.topk(EXPERTS_PER_TOKEN).indices for logits in routers], dim=1).to(torch.int32)

    @torch.inference_mode()
    def states(self, asked: Asked) -> torch.Tensor:
        """`[T + n - 1, H]`: the target's last states after its norm, of the prompt and of all n tokens but the last."""
        row = [*asked.prompt, *self.expect(asked).output_ids[:-1]]
        states: torch.Tensor = self.target(asked).model(torch.tensor([row]), use_cache=False).last_hidden_state[0]
        return states

    @torch.inference_mode()
    def rounds(
        self, asked: Asked, num_nodes: int, noise: torch.Generator | None = None, *, past_the_end: bool = False
    ) -> list[Round]:
        """The rounds that DDTREE needs for a request at N = `num_nodes`; the first token is the prefill's.

        `noise` moves each of the drafter's log-probabilities by up to `self.noise`, as rounding might. The last round
        ends with the answer; `past_the_end`: with the path that the target would have accepted.
        """
        expected = self.expect(asked)
        rounds, done = [], 1
        while done < len(expected.output_ids):
            rounds.append(self._round_after(asked, done, num_nodes, noise, past_the_end))
            done += rounds[-1].commit_len
        return rounds

    def rounds_anywhere(self, asked: Asked, num_nodes: int, noise: torch.Generator | None = None) -> list[Round]:
        """The round behind each token of the answer but the last, wherever the rounds before it ended."""
        return [
            self._round_after(asked, done, num_nodes, noise) for done in range(1, len(self.expect(asked).output_ids))
        ]

    def with_steps_of_one_token(self, asked: Asked, num_nodes: int) -> set[tuple[int, ...]]:
        """All histograms of rounds, should the request also take part in prefills.

        A prefill of its own after a retraction, or one of another request that it is mixed into, gives it one token.
        """
        rounds, length = self.rounds_anywhere(asked, num_nodes), len(self.expect(asked).output_ids)
        ways: list[set[tuple[int, ...]]] = [set() for _ in range(length + self.pair.max_path_len)]
        ways[1] = {()}  # by tokens emitted: numbers of correct drafts so far, ascending
        for done, one in enumerate(rounds, start=1):
            ways[done + 1] |= ways[done]
            ways[done + one.commit_len] |= {tuple(sorted((*way, one.commit_len - 1))) for way in ways[done]}
        return {
            tuple(way.count(correct) for correct in range(max(way, default=-1) + 1))
            for ended in ways[length:]
            for way in ended
        }

    @torch.inference_mode()
    def _round_after(
        self, asked: Asked, done: int, num_nodes: int, noise: torch.Generator | None, past_the_end: bool = False
    ) -> Round:
        """The round whose root is the last of the answer's first `done` tokens."""
        expected = self.expect(asked)
        num_nodes = num_nodes if asked.budget is None else min(asked.budget + 1, num_nodes)
        ids, logprobs, states, anchors = self._candidates(asked, expected.continuation, done)
        if noise is not None:
            logprobs = logprobs + self.noise * (2 * torch.rand(logprobs.shape, generator=noise) - 1)
            logprobs, order = logprobs.sort(dim=-1, descending=True)
            ids = ids.gather(-1, order)
        head = self.pair.head
        top_k = min(max(num_nodes - 1, 1), ids.shape[-1]) if head is None else head.top_k
        if self.reads_texts:
            top_k = min(max(top_k, LEAST_CANDIDATES), MOST_CANDIDATES)
        ids, logprobs = ids[:, :, :top_k].clone(), logprobs[:, :, :top_k].clone()
        keep_what_may_follow(ids[0, 0], logprobs[0, 0], asked, expected.continuation[:done])
        root = torch.tensor([expected.continuation[done - 1]])
        pairs = None
        if head is not None:
            pairs = pair_conditionals(head.scores(states, root, ids, logprobs, anchors), logprobs)
        if self.reads_texts:
            text = RequestText(LAW.order)
            text.extend((*asked.prompt, *expected.continuation[:done]))
            table = pair_table(ids[0].numpy(), logprobs[0].numpy(), text, LAW)
            ids, pairs = torch.from_numpy(table.topk_ids)[None], torch.from_numpy(table.logprobs)[None]
        tree = build_draft_tree(ids, logprobs, root, num_nodes, pairs)
        target_ids = follow(tree, expected.continuation[done - 1 :])
        accepted = walk_tree(tree, target_ids, self.pair.max_path_len)
        left = expected.continuation if past_the_end else expected.output_ids
        commit_len = min(int(accepted.commit_lens), len(left) - done)
        return Round(commit_len, tuple(accepted.accept_index[0, :commit_len].tolist()))

    def is_clear(self, asked: Asked, node_counts: Sequence[int], anywhere: bool = False) -> bool:
        """Whether rounding can change neither the tokens nor what is accepted at these numbers of nodes.

        `anywhere`: nor what a round behind any token of the answer accepts.
        """
        if self.expect(asked).margin < MIN_MARGIN:
            return False
        noise = torch.Generator().manual_seed(0)
        find = self.rounds_anywhere if anywhere else self.rounds
        return all(
            [one.commit_len for one in find(asked, nodes, noise)] == [one.commit_len for one in find(asked, nodes)]
            for nodes in node_counts
            for _ in range(2)
        )

    @torch.inference_mode()
    def chain_rounds(self, asked: Asked) -> list[Round]:
        """The rounds that stock DFLASH needs: the drafter's first choice at each depth."""
        expected = self.expect(asked)
        rounds, done = [], 1
        while done < len(expected.output_ids):
            ids, *_ = self._candidates(asked, expected.continuation, done)
            target = expected.continuation[done : done + self.pair.max_path_len - 1]
            hits = [draft == token for draft, token in zip(ids[0, :, 0].tolist(), target, strict=True)]
            commit_len = 1 + (hits.index(False) if False in hits else len(hits))
            rounds.append(Round(commit_len, tuple(range(commit_len))))
            done += commit_len
        return rounds

    def _candidates(self, asked: Asked, tokens: Sequence[int], done: int) -> Proposed:
        """Of the block whose root is the last of `done` tokens: ranked ids and log-probabilities `[1, D, V]`, states.

        And what the drafter makes of the features of the token before the root, `[1, H]`. Remembers them: they are
        ranked with noise and without, at several numbers of nodes.
        """
        text = (*asked.prompt, *tokens[:done])
        key = asked.adapter, asked.pictures, text, self._first_seen(len(text) - 1)
        if key not in self._drafted:
            self._drafted[key] = self._draft(asked, text)
        return self._drafted[key]

    def _draft(self, asked: Asked, text: Sequence[int]) -> Proposed:
        """The drafter has no adapter: it reads the states of a target that has one, through the base model's head."""
        target, drafter = self.pair.target, self.pair.drafter
        committed = torch.tensor([text[:-1]])
        hidden = self.target(asked)(committed, output_hidden_states=True, use_cache=False).hidden_states
        features = torch.cat([hidden[layer + 1] for layer in drafter.config.target_layer_ids], dim=-1)
        # Rotary attention knows distances alone, so what is left of a context may begin at position 0.
        features = features[:, self._first_seen(committed.shape[1]) :]
        blocks = drafter.block_token_ids(torch.tensor([[text[-1]]]))
        block_embeds = target.get_input_embeddings()(blocks)
        states = drafter(block_embeds, features, torch.tensor([[features.shape[1]]]))[:, 0]
        from_anchor = self.pair.head is not None and self.pair.head.from_anchor
        states = states if from_anchor else states[:, 1:]
        logprobs, ids = (states @ target.lm_head.weight.T).log_softmax(-1).sort(stable=True, dim=-1, descending=True)
        return ids, logprobs, states, drafter.hidden_norm(drafter.fc(features[:, -1]))

    def _first_seen(self, length: int) -> int:
        """First token that the drafter reads of a context: a page's first, `seen_tokens` before the end or earlier."""
        if self.seen_tokens is None:
            return 0
        return max(0, length - self.seen_tokens) // self.page_size * self.page_size


def follow(tree: Any, tokens: Sequence[int]) -> torch.Tensor:
    """The target's choices `[1, N]` at the nodes of one tree whose root is `tokens[0]`; 0 off the path of `tokens`."""
    parents, depths, ids = tree.parents[0].tolist(), tree.depths[0].tolist(), tree.token_ids[0].tolist()
    on_path = [False] * len(ids)
    choices = [0] * len(ids)
    for node, (parent, depth, token) in enumerate(zip(parents, depths, ids, strict=True)):
        is_root = node == 0
        on_path[node] = is_root or (parent >= 0 and on_path[parent] and token == tokens[depth])
        if on_path[node]:
            choices[node] = tokens[depth + 1]
    return torch.tensor([choices])


def keep_what_may_follow(ids: torch.Tensor, logprobs: torch.Tensor, asked: Asked, tokens: Sequence[int]) -> None:
    """Of the candidates `[K]` of a first position, give those that a mask forbids -inf, at the end."""
    if not asked.pairs and asked.thoughts is None:
        return
    is_allowed = allowed(torch.zeros(max(VOCABULARY, int(ids.max()) + 1)), asked, tokens).isfinite()
    ordered, order = logprobs.masked_fill(~is_allowed[ids], -torch.inf).sort(descending=True, stable=True)
    ids.copy_(ids[order])
    logprobs.copy_(ordered)


def allowed(logits: torch.Tensor, asked: Asked, tokens: Sequence[int]) -> torch.Tensor:
    """Logits `[V]` with those at -inf that the request's grammar, or its budget of thoughts, forbids after `tokens`."""
    if asked.pairs:
        return of_pairs(logits, tokens)
    if asked.thoughts is None or THOUGHTS_END in tokens:
        return logits
    forbidden = torch.full((len(logits),), len(tokens) >= asked.thoughts)
    forbidden[THOUGHTS_END] = not forbidden[THOUGHTS_END]
    return logits.masked_fill(forbidden, -torch.inf)


def of_pairs(logits: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """Logits `[V]` with those at -inf that the grammar of pairs forbids after these tokens of the answer.

    After an end token that was ignored anything may follow.
    """
    if EOS_TOKEN in tokens:
        return logits
    allowed = [*EVEN_TOKENS, EOS_TOKEN] if len(tokens) % 2 == 0 else ODD_TOKENS
    masked = torch.full_like(logits, -torch.inf)
    masked[allowed] = logits[allowed]
    return masked
