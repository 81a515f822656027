"""llguidance at its limit of lexer states: below a root it costs a tree, at a root it is plain decoding's.

`MANY_STATES` has more states than llguidance allows. Limits are lowered here, so that they are met after few tokens.
"""

from __future__ import annotations

import random
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.node_masks import fill_node_masks
from ddtree_sglang.core.round_ends import RoundEnds
from tests.core.tree_cases import make_tree
from tests.engine.stages.test_node_grammar import (
    THINK_END,
    _row,
    allowed,
    batch_of,
    differences,
    grammars_of,
    reasoning,
)

if TYPE_CHECKING:
    from tests.e2e.servers import Pair

pytestmark = pytest.mark.sglang

MANY_STATES = ".*[ae].{25}[io].{25}x"
LIMIT = 20_000  # trees meet it within two rounds, plain decoding after ten tokens and more
NODES = 17
PERSON = '{"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}'


@pytest.fixture(scope="module")
def tokenizer(pair: Pair) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(pair.model)


@pytest.fixture(scope="module")
def backend(tokenizer: Any) -> Any:
    from sglang.srt.constrained.llguidance_backend import GuidanceBackend

    return GuidanceBackend(tokenizer, n_vocab=len(tokenizer), eos_token_ids=[tokenizer.eos_token_id])


@pytest.fixture(autouse=True)
def scouts(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module, with its hook in place and a low limit."""
    from llguidance import LLMatcher, LLParserLimits
    from sglang.srt.constrained.llguidance_backend import GuidanceGrammar

    from ddtree_sglang.engine.stages import grammar_scouts

    # Where another test has installed the hooks, what they are around.
    stock = getattr(GuidanceGrammar.accept_token, "__wrapped__", GuidanceGrammar.accept_token)

    def accept_token(grammar: Any, token: int) -> None:
        stock(grammar, token)
        grammar_scouts.follow_token(None, grammar, token)

    spec = SimpleNamespace(speculative_algorithm="DDTREE")
    monkeypatch.setattr("sglang.srt.runtime_context.get_spec", lambda: spec)
    monkeypatch.setattr(GuidanceGrammar, "accept_token", accept_token)
    limited = partial(LLMatcher, limits=LLParserLimits(max_lexer_states=LIMIT))
    monkeypatch.setattr(grammar_scouts, "LLMatcher", limited)
    grammar_scouts._first_states.clear()
    return grammar_scouts


def a_round(grammar: Any, committed: list[int], rng: random.Random, size: int) -> tuple[torch.Tensor, bool]:
    """The root's row of logits and whether the request was kept at its root, of a tree that goes where it may."""
    may_follow = allowed(_row(grammar, size), size)
    parents = [-1, *(rng.randrange(max(0, node - 6), node) for node in range(1, NODES))]
    tree = make_tree([committed[-1], *(rng.choice(may_follow) for _ in parents[1:])], parents)
    batch = batch_of((grammar, False), size=size)
    grammars = grammars_of(batch, None)
    grammars.follow(SimpleNamespace(tree=tree))
    logits = torch.zeros(NODES, size)
    grammars.masking(logits)(logits)
    assert batch.reqs[0].to_finish is None
    limits = grammars.limit(RoundEnds.none(1, torch.device("cpu"))).node_limits
    return logits[0], limits.tolist() == [1]


def test_nodes_off_the_path_end_no_request(backend: Any, tokenizer: Any) -> None:
    """Beside a grammar of plain decoding, which has a lexer of its own and asks for a mask a token."""
    size, rng = len(tokenizer), random.Random(0)
    template = backend._init_value_dispatch(("regex", MANY_STATES), False)
    grammar, plain = template.copy(), backend._init_value_dispatch(("regex", MANY_STATES), False)
    committed, kept_at_root = [7], list[bool]()
    for _ in range(9):
        root, is_kept = a_round(grammar, committed, rng, size)
        kept_at_root.append(is_kept)
        may_follow = allowed(_row(plain, size), size)
        assert root.isfinite().nonzero().flatten().tolist() == may_follow
        token = rng.choice([one for one in may_follow if one != tokenizer.eos_token_id])
        committed.append(token)
        for one in (grammar, plain):
            one.accept_token(token)
            one.finished = False
    assert not grammar.ll_matcher.is_error()
    assert kept_at_root[-1], "the limit was not met, so this shows nothing"
    # The next request with the same grammar begins with a lexer of its own.
    another = template.copy()
    parents, mask = [-1, 0], another.allocate_vocab_mask(size, 2, "cpu")
    letter = tokenizer.convert_tokens_to_ids("b")
    from ddtree_sglang.engine.stages.grammar_scouts import explored

    assert fill_node_masks(explored(another), parents, [7, letter], mask, 0) == [True, True]


@pytest.mark.parametrize("wrap", [lambda grammar: grammar, reasoning], ids=["bare", "reasoning"])
def test_scouts_have_taken_in_what_was_committed(wrap: Any, backend: Any, tokenizer: Any, scouts: Any) -> None:
    """Each node's mask is plain decoding's, and the grammar stands where it stood."""
    template = wrap(backend._init_value_dispatch(("json", PERSON), False))

    def fill(grammar: Any, parents: Any, tokens: Any, mask: torch.Tensor, first: int) -> None:
        before, noted = _row(grammar, len(tokenizer)), str(vars(grammar))
        fill_node_masks(scouts.explored(grammar), parents, tokens, mask, first)
        assert torch.equal(_row(grammar, len(tokenizer)), before)
        assert wrap is not reasoning or _stripped(noted) == _stripped(str(vars(grammar)))

    for seed in range(12):
        assert differences(template, seed, len(tokenizer), tokenizer.eos_token_id, fill) == [], seed


def _stripped(noted: str) -> str:
    """Without the last token that was looked at, which SGLang notes and does not take back."""
    start = noted.index("'current_token'")
    return noted[:start] + noted[noted.index(",", start) :]


def test_a_reasoning_grammar_is_taken_back_when_its_scout_gives_up(backend: Any, tokenizer: Any, scouts: Any) -> None:
    from ddtree_sglang.core.node_masks import GrammarGaveUp

    size = len(tokenizer)
    grammar = reasoning(backend._init_value_dispatch(("regex", MANY_STATES), False))
    grammar.accept_token(tokenizer.convert_tokens_to_ids("b"))
    before = _stripped(str(vars(grammar)))
    # A path out of the reasoning into the grammar, which is longer than its lexer lasts.
    letters = [tokenizer.convert_tokens_to_ids(letter) for letter in 8 * "aeiobcdf"]
    tokens = [7, *THINK_END, *letters]
    parents = [-1, *range(len(tokens) - 1)]
    mask = grammar.allocate_vocab_mask(size, len(tokens), "cpu")
    with pytest.raises(GrammarGaveUp, match="too many states"):
        fill_node_masks(scouts.explored(grammar), parents, tokens, mask, 0)
    assert _stripped(str(vars(grammar))) == before
    with pytest.raises(GrammarGaveUp, match="before"):
        fill_node_masks(scouts.explored(grammar), parents, tokens, mask, 0)


def at_its_limit(backend: Any) -> Any:
    from llguidance import LLMatcher, LLParserLimits
    from sglang.srt.constrained.llguidance_backend import GuidanceGrammar

    template = backend._init_value_dispatch(("regex", MANY_STATES), False)
    few = LLParserLimits(max_lexer_states=5)
    known = template.llguidance_tokenizer, template.serialized_grammar
    return GuidanceGrammar(*known, ll_matcher=LLMatcher(*known, log_level=0, limits=few))


@pytest.mark.parametrize("moment", ["plant", "prune", "walk"])
def test_at_a_root_the_limit_is_plain_decodings(moment: str, backend: Any, tokenizer: Any) -> None:
    """SGLang's native fill ignores the error: an end token alone may follow, which the grammar takes."""
    from sglang.srt.constrained.base_grammar_backend import GrammarRow

    size, end = len(tokenizer), tokenizer.eos_token_id
    plain = at_its_limit(backend)
    row = plain.allocate_vocab_mask(size, 1, "cpu")
    plain.fill_vocab_mask_batched([GrammarRow(0, plain)], row)
    assert allowed(row[0], size) == [end]
    grammar = at_its_limit(backend)
    batch = batch_of((grammar, False), size=size)
    grammars = grammars_of(batch, None)
    ids = torch.tensor([[[tokenizer.convert_tokens_to_ids("b"), end]]])
    ranked = DraftCandidates(ids, torch.tensor([[[-1.0, -2.0]]]))
    if moment == "prune":
        pruned = grammars.prune_roots(ranked)
        assert pruned.topk_logprobs.tolist() == [[[-2.0, -torch.inf]]]
    else:
        tree = make_tree([7, end, 9], [-1, 0, 0])
        if moment == "plant":
            tree = grammars.plant(ranked, 3, torch.tensor([7]))
            assert tree.parents.tolist() == [[-1, -1, -1]]
        grammars.follow(SimpleNamespace(tree=tree))
        logits = torch.zeros(3, size)
        grammars.masking(logits)(logits)
        assert logits[0].isfinite().nonzero().flatten().tolist() == [end]
        limits = grammars.limit(RoundEnds.none(1, torch.device("cpu"))).node_limits
        assert moment == "plant" or limits.tolist() == [1]
    assert batch.reqs[0].to_finish is None
    grammar.accept_token(end)
    assert grammar.is_terminated()
