"""Masks per node with the engine's own grammars, against a fresh grammar that is advanced token by token."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ddtree_sglang.core.built_tree import BuiltTree, root_trees
from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.node_masks import fill_node_masks
from ddtree_sglang.core.tree_builder import build_draft_tree
from tests.engine.requests import FakeRequest

if TYPE_CHECKING:
    from tests.e2e.servers import Pair

pytestmark = pytest.mark.sglang

THINK_END = (504, 253)  # two tokens, so that a tree can stand between them
BACKENDS = ("xgrammar", "llguidance")

_PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 130}},
    "required": ["name"],
    "additionalProperties": False,
}
SCHEMAS: tuple[dict[str, Any], ...] = (
    _PERSON,
    {"type": "array", "items": _PERSON, "minItems": 1, "maxItems": 3},
    {"enum": ["red", "green", 7, None]},
    {"type": "number"},
    {"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]},
    {"$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}, "maxItems": 2}}, "$ref": "#/$defs/t"},
    {"type": "string", "pattern": "^[0-9]{3}-[0-9]{4}$"},
    {"type": "object", "properties": {"a": {"type": "boolean"}, "b": {"const": "x"}}, "additionalProperties": False},
    {"type": "object", "additionalProperties": {"type": "integer"}},
    {"type": "object"},
)
REGEXES = (r"[0-9]+", r"(yes|no)( sir)?", r"([a-z]{2} ){1,3}", r"a*b", r"\w+@\w+\.com", r"(\d{1,3}\.){3}\d{1,3}")
EBNF = {
    "xgrammar": 'root ::= term ("+" term)*\nterm ::= [0-9] | "(" root ")"\n',
    "llguidance": 'start: term ("+" term)*\nterm: /[0-9]/ | "(" start ")"\n',
}
TAG = {
    "type": "structural_tag",
    "structures": [{"begin": "<f=a>", "schema": _PERSON, "end": "</f>"}],
    "triggers": ["<f="],
}
SPECS = (
    *(("json", json.dumps(schema)) for schema in SCHEMAS),
    *(("regex", pattern) for pattern in REGEXES),
    ("ebnf", ""),
    ("structural_tag", json.dumps(TAG)),
)


@pytest.fixture(scope="module")
def tokenizer(pair: Pair) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pair.model)


@pytest.fixture(scope="module")
def compiled(tokenizer: Any) -> dict[tuple[str, str, str], Any]:
    """Each grammar of each backend, in its first state."""
    from sglang.srt.constrained.llguidance_backend import GuidanceBackend
    from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend

    size, ends = len(tokenizer), [tokenizer.eos_token_id]
    backends = {
        "xgrammar": XGrammarGrammarBackend(tokenizer, vocab_size=size, model_eos_token_ids=ends),
        "llguidance": GuidanceBackend(tokenizer, n_vocab=size, eos_token_ids=ends),
    }
    made = {}
    for name, backend in backends.items():
        for kind, spec in SPECS:
            made[name, kind, spec] = backend._init_value_dispatch((kind, spec or EBNF[name]), False)
    return made


@pytest.fixture(autouse=True)
def no_algorithm_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where another test has installed the hooks, they pass through."""
    spec = SimpleNamespace(speculative_algorithm=None)
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: spec)


def reasoning(grammar: Any) -> Any:
    """The same grammar behind a reasoning parser, for a request that begins to think."""
    from sglang.srt.constrained.reasoner_grammar_backend import ReasonerGrammarObject

    wrapped = ReasonerGrammarObject(grammar, THINK_END)
    wrapped.maybe_init_reasoning(True)
    return wrapped


def plain_row(template: Any, tokens: Sequence[int], size: int) -> torch.Tensor | None:
    """What plain decoding's mask is after these tokens, as its steps make it; None where it would not get there."""
    grammar = template.copy()
    for token in tokens:
        row = _row(grammar, size)
        if grammar.is_terminated() or not int(row[token // 32]) >> token % 32 & 1:
            return None
        grammar.accept_token(token)
        grammar.finished = False
    return _row(grammar, size)


def _row(grammar: Any, size: int) -> torch.Tensor:
    mask: torch.Tensor = grammar.allocate_vocab_mask(vocab_size=size, batch_size=1, device="cpu")
    if not grammar.finished and not grammar.is_terminated():
        grammar.fill_vocab_mask(mask, 0)
    return mask[0]


def allowed(row: torch.Tensor, size: int) -> list[int]:
    bits = row.unsqueeze(1) >> torch.arange(32, dtype=torch.int32) & 1
    return bits.flatten()[:size].nonzero().flatten().tolist()


def a_tree(
    template: Any, committed: Sequence[int], rng: random.Random, num_nodes: int, end: int, size: int
) -> tuple[list[int], list[int]]:
    """Parents and tokens of a tree whose tokens are often, but not always, what the grammar allows."""
    parents, tokens, paths = [-1], [7], {0: list[int]()}
    for node in range(1, num_nodes - 2):
        parent = rng.randrange(max(0, node - 5), node)
        row = plain_row(template, [*committed, *paths[parent]], size)
        choices = [end, rng.randrange(size), *THINK_END]
        if row is not None:
            choices += rng.sample(allowed(row, size), 1) * 4
        token = rng.choice(choices)
        parents.append(parent)
        tokens.append(token)
        paths[node] = [*paths[parent], token]
    return [*parents, -1, -1], [*tokens, 0, 0]


def a_walk(template: Any, rng: random.Random, steps: int, size: int, end: int) -> list[int]:
    """Tokens that the grammar takes, never the end token."""
    walked: list[int] = []
    for _ in range(steps):
        row = plain_row(template, walked, size)
        assert row is not None
        going_on = [token for token in allowed(row, size) if token != end]
        if not going_on:
            break
        # Short tokens, which end structures, as often as others.
        walked.append(rng.choice([rng.choice(going_on), going_on[rng.randrange(min(20, len(going_on)))]]))
    return walked


def walk_in_flat_order(
    grammar: Any, parents: Sequence[int], tokens: Sequence[int], mask: torch.Tensor, first: int
) -> None:
    """The wrong rule: one state, advanced from node to node in the order of their numbers."""
    grammar.fill_vocab_mask(mask, first)
    for node in range(1, len(parents)):
        if parents[node] < 0 or grammar.is_terminated():
            return
        try:
            grammar.accept_token(tokens[node])
        except ValueError:
            return
        if not grammar.is_terminated():
            grammar.fill_vocab_mask(mask, first + node)


def differences(template: Any, seed: int, size: int, end: int, fill: Callable[..., Any]) -> list[int]:
    """Nodes of a random tree whose row is not plain decoding's, of those that the target can get to."""
    rng = random.Random(seed)
    committed = a_walk(template, rng, rng.randrange(6), size, end)
    parents, tokens = a_tree(template, committed, rng, 14, end, size)
    grammar = template.copy()
    for token in committed:
        grammar.accept_token(token)
    before = _row(grammar, size)
    mask = grammar.allocate_vocab_mask(vocab_size=size, batch_size=len(parents) + 1, device="cpu")
    fill(grammar, parents, tokens, mask, 1)
    wrong = []
    paths = {0: list[int]()}
    for node, parent in enumerate(parents):
        if node and parent < 0:
            continue
        if node:
            paths[node] = [*paths[parent], tokens[node]]
        row = plain_row(template, [*committed, *paths[node]], size)
        if row is not None and not torch.equal(mask[1 + node], row):
            wrong.append(node)
    if fill is fill_node_masks and not torch.equal(_row(grammar, size), before):
        wrong.append(-1)  # the grammar is not where it was
    return wrong


@pytest.mark.parametrize("wrap", [lambda grammar: grammar, reasoning], ids=["bare", "reasoning"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("kind", "spec"), SPECS, ids=lambda text: str(text)[:24])
def test_each_node_is_masked_as_plain_decoding_masks_after_its_path(
    kind: str, spec: str, backend: str, wrap: Callable[[Any], Any], compiled: dict[Any, Any], tokenizer: Any
) -> None:
    template = wrap(compiled[backend, kind, spec])
    for seed in range(3):
        assert differences(template, seed, len(tokenizer), tokenizer.eos_token_id, fill_node_masks) == [], seed


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_along_the_flat_order_are_seen_to_be_wrong(
    backend: str, compiled: dict[Any, Any], tokenizer: Any
) -> None:
    found = [
        [
            differences(compiled[backend, *spec], seed, len(tokenizer), tokenizer.eos_token_id, walk_in_flat_order)
            for seed in range(3)
        ]
        for spec in SPECS
    ]
    assert sum(any(nodes) for nodes in found) > len(SPECS) / 2


def batch_of(*reqs: tuple[Any, bool], size: int) -> Any:
    """A batch of requests, each a grammar or None and whether it has finished."""
    made = [FakeRequest(grammar=one, finished=lambda done=end: done, rid="r", to_finish=None) for one, end in reqs]
    return SimpleNamespace(reqs=made, has_grammar=True, sampling_info=SimpleNamespace(vocab_size=size))


def grammars_of(batch: Any, barrier: Callable[[], None] | None) -> Any:
    from ddtree_sglang.engine.stages.node_grammar import BatchGrammars

    return BatchGrammars.of(batch, barrier)


def roots(count: int) -> BuiltTree:
    return root_trees(torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.int64))


def first_letters(logits: torch.Tensor, tokenizer: Any) -> set[str]:
    return {tokenizer.decode([token])[0] for token in logits.isfinite().nonzero().flatten().tolist()}


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_a_batch_are_its_requests_and_those_without_a_grammar_stay_open(
    backend: str, compiled: dict[Any, Any], tokenizer: Any
) -> None:
    size, order = len(tokenizer), list[str]()
    digits = compiled[backend, "regex", REGEXES[0]].copy()
    answer = compiled[backend, "regex", REGEXES[1]].copy()
    batch = batch_of((None, False), (digits, False), (answer, True), (answer, False), size=size)
    grammars = grammars_of(batch, lambda: order.append("barrier"))
    grammars.follow(roots(4))
    assert order == []
    logits = torch.zeros(4, size)
    grammars.masking(logits)(logits)
    assert order == ["barrier"]
    assert bool(logits[[0, 2]].isfinite().all())
    assert first_letters(logits[1], tokenizer) == set("0123456789")
    assert first_letters(logits[3], tokenizer) == {"y", "n"}


@pytest.mark.parametrize("backend", BACKENDS)
def test_candidates_that_cannot_follow_a_root_are_no_candidates(
    backend: str, compiled: dict[Any, Any], tokenizer: Any
) -> None:
    size, order = len(tokenizer), list[str]()
    digits = compiled[backend, "regex", REGEXES[0]].copy()
    batch = batch_of((digits, False), (None, False), (digits, True), size=size)
    grammars = grammars_of(batch, lambda: order.append("barrier"))
    one, two, a, b = (tokenizer.convert_tokens_to_ids(letter) for letter in "12ab")
    ids = torch.tensor([a, one, b, two]).expand(3, 2, 4).contiguous()
    logprobs = torch.tensor([-1.0, -2.0, -2.0, -3.0]).expand(3, 2, 4).contiguous()
    pruned = grammars.prune_roots(DraftCandidates(ids, logprobs))
    assert order == ["barrier"]
    assert pruned.topk_ids[0, 0].tolist() == [one, two, a, b]
    assert pruned.topk_logprobs[0, 0].tolist() == [-2.0, -3.0, -torch.inf, -torch.inf]
    assert torch.equal(pruned.topk_ids[0, 1], ids[0, 1])
    assert torch.equal(pruned.topk_ids[1:], ids[1:])
    assert torch.equal(pruned.topk_logprobs[1:], logprobs[1:])
    # The barrier is not asked twice in a round.
    grammars.follow(roots(3))
    grammars.masking(torch.zeros(3, size))
    assert order == ["barrier"]


def check_planted(grammars: Any, tree: DraftTree, template: Any, size: int) -> list[list[int]]:
    """The second of two trees holds what its grammar allows, masked as after its paths, which it returns.

    The first request has no grammar.
    """
    num_nodes = tree.num_nodes
    tree.check_invariants()
    grammars.follow(None)
    logits = torch.zeros(2 * num_nodes, size)
    grammars.masking(logits)(logits)
    assert bool(logits[:num_nodes].isfinite().all())
    paths = {0: list[int]()}
    for node, parent in enumerate(tree.parents[1].tolist()):
        if node and parent < 0:
            continue
        if node:
            paths[node] = [*paths[parent], int(tree.token_ids[1, node])]
        row = plain_row(template, paths[node], size)
        assert row is not None, "a node that plain decoding cannot get to"
        assert logits[num_nodes + node].isfinite().nonzero().flatten().tolist() == allowed(row, size)
    return list(paths.values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("kind", "spec"), [SPECS[0], SPECS[5], SPECS[10], SPECS[12], SPECS[-1]], ids=lambda text: str(text)[:24]
)
def test_planted_trees_hold_what_the_grammar_allows_with_the_masks_of_plain_decoding(
    kind: str, spec: str, backend: str, compiled: dict[Any, Any], tokenizer: Any
) -> None:
    """Of a drafter that scores pairs, too, whose trees without a grammar are those of pairs."""
    template, size, num_nodes = compiled[backend, kind, spec], len(tokenizer), 9
    walked = a_walk(template, random.Random(1), 6, size, tokenizer.eos_token_id)
    common = list(dict.fromkeys([tokenizer.eos_token_id, *range(size - 200, size), *walked]))
    ids = torch.tensor([common, common, common]).expand(2, 3, len(common)).contiguous()
    logprobs = torch.randn(2, 3, len(common), generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    logprobs, order = logprobs.sort(descending=True)
    ids, root_ids = ids.gather(2, order), torch.tensor([3, 4])
    pairs = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)).log_softmax(-1)
    for scored, law in ((len(common), None), (16, pairs)):
        grammars = grammars_of(batch_of((None, False), (template.copy(), False), size=size), None)
        tree = grammars.plant(DraftCandidates(ids, logprobs, law), num_nodes, root_ids)
        assert tree.token_ids[:, 0].tolist() == [3, 4]
        best = (part[..., :scored].contiguous() for part in (ids, logprobs))
        assert torch.equal(tree.token_ids[0], build_draft_tree(*best, root_ids, num_nodes, law).token_ids[0])
        check_planted(grammars, tree, template, size)


def test_a_device_is_waited_for_when_its_trees_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddtree_sglang.engine.stages import node_grammar

    order = list[str]()
    event = SimpleNamespace(record=lambda: order.append("recorded"), synchronize=lambda: order.append("waited"))
    monkeypatch.setattr(node_grammar, "is_device_path", lambda: True)
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(Event=lambda: event))
    copied = node_grammar.CopiedTrees.copy(roots(2))
    assert order == ["recorded"]
    assert copied.lists() == ([[-1], [-1]], [[0], [0]])
    assert order == ["recorded", "waited"]


def test_rows_that_are_part_of_wider_ones_are_masked_where_they_are(
    compiled: dict[Any, Any], tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGLang's kernel takes the width of the logits for the distance of their rows; here torch stands for it."""
    from sglang.srt.constrained.base_grammar_backend import GrammarMask

    size = len(tokenizer)
    digits = compiled["xgrammar", "regex", REGEXES[0]].copy()
    grammars = grammars_of(batch_of((digits, False), (digits, False), size=size), None)
    grammars.follow(roots(2))
    apply = GrammarMask.apply

    def by_width(mask: Any, logits: torch.Tensor) -> None:
        apply(mask, logits.as_strided(logits.shape, (logits.shape[1], 1)))

    monkeypatch.setattr(GrammarMask, "apply", by_width)
    wide = torch.zeros(2, size + 5)
    grammars.masking(wide[:, :size])(wide[:, :size])
    assert first_letters(wide[0, :size], tokenizer) == set("0123456789")
    assert first_letters(wide[1, :size], tokenizer) == set("0123456789")
    assert bool((wide[:, size:] == 0).all())


@pytest.mark.parametrize("serves", [True, False])
def test_a_prefills_masks_meet_the_rows_of_a_padded_vocabulary(serves: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sglang.srt.constrained.base_grammar_backend import GrammarMask

    from ddtree_sglang.engine import grammar_rows

    class Kernel:
        def apply_vocab_mask(self, logits: torch.Tensor, vocab_mask: torch.Tensor) -> None:
            rows = logits.as_strided(logits.shape, (logits.shape[1], 1))
            rows.masked_fill_(~vocab_mask, -torch.inf)

    monkeypatch.setattr(grammar_rows, "serves_ddtree", lambda: serves)
    allowed = torch.tensor([[True, True, True], [True, False, True], [True, True, True]])
    wide = torch.zeros(3, 8)
    grammar_rows.mask_whole_rows(GrammarMask.apply, GrammarMask(Kernel(), allowed), wide[:, :3])  # type: ignore[arg-type]
    assert torch.equal(wide[:, :3] == 0, allowed) == serves
    assert bool((wide[:, 3:] == 0).all()) == serves


def test_a_batch_without_grammars_costs_nothing() -> None:
    assert grammars_of(SimpleNamespace(has_grammar=False), None) is None


class Exhausted:
    """A grammar at a limit of its parser."""

    finished = False

    def __init__(self, other: Any) -> None:
        self.other = other

    def allocate_vocab_mask(self, **sizes: Any) -> Any:
        return self.other.allocate_vocab_mask(**sizes)

    def is_terminated(self) -> bool:
        return False

    def fill_vocab_mask(self, vocab_mask: torch.Tensor, idx: int) -> None:
        raise ValueError("too many items")

    def apply_vocab_mask(self, **given: Any) -> None:
        self.other.apply_vocab_mask(**given)


@pytest.mark.parametrize("moment", ["plant", "prune", "walk"])
def test_a_grammar_that_gives_up_ends_its_request_alone(moment: str, compiled: dict[Any, Any], tokenizer: Any) -> None:
    size = len(tokenizer)
    good = compiled["xgrammar", "regex", REGEXES[0]].copy()
    batch = batch_of((Exhausted(good), False), (good, False), size=size)
    grammars = grammars_of(batch, None)
    ranked = DraftCandidates(torch.full((2, 1, 1), tokenizer.convert_tokens_to_ids("a")), torch.zeros(2, 1, 1))
    if moment == "prune":
        pruned = grammars.prune_roots(ranked)
        assert pruned.topk_logprobs.flatten().tolist() == [0.0, -torch.inf]
    else:
        built = roots(2)
        if moment == "plant":
            grammars.plant(ranked, 1, torch.zeros(2, dtype=torch.int64))
        grammars.follow(built)
        logits = torch.zeros(2, size)
        grammars.masking(logits)(logits)
        assert bool(logits[0].isfinite().all())
        assert first_letters(logits[1], tokenizer) == set("0123456789")
    assert "too many items" in batch.reqs[0].to_finish.message
    assert batch.reqs[1].to_finish is None


def test_an_answer_that_has_ended_is_not_replaced_by_an_error(compiled: dict[Any, Any], tokenizer: Any) -> None:
    """Under overlap a run that ends its request is judged before it is processed; an abort waits as well."""
    from ddtree_sglang.engine import run_ends

    good = compiled["xgrammar", "regex", REGEXES[0]].copy()
    batch = batch_of((Exhausted(good), False), (Exhausted(good), False), (Exhausted(good), False), size=len(tokenizer))
    ended, going_on, aborted = batch.reqs
    run_ends._judged[ended] = run_ends.JudgedRun([1], "stop", 1)
    run_ends._judged[going_on] = run_ends.JudgedRun([1], None, None)
    aborted.to_finish = "aborted by its client"
    grammars = grammars_of(batch, None)
    grammars.follow(roots(3))
    grammars.masking(torch.zeros(3, len(tokenizer)))
    assert ended.to_finish is None
    assert "too many items" in going_on.to_finish.message
    assert aborted.to_finish == "aborted by its client"
