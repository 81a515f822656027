"""What grammars cost a round, and what it brings to keep forbidden tokens out of its trees.

    python -m benchmarks grammars [--asked few|schemas] [--output benchmarks/results/grammars.jsonl]

The embedded target answers prompts under JSON schemas and regular expressions, greedily and one token at a time, with
xgrammar's masks. For each root of each answer the drafter's candidates are ranked, and trees of each kind are built of
them and walked by the answer: `free` without a look at the grammar, `roots` with the root's children pruned, as on a
device, `nodes` pruned at every node, as on a host. All kinds see the same answers.

`tokens_per_round` counts the bonus token. `build_ms` is a tree's building with what the grammar asks for it, `mask_ms`
what is left of the masks of its nodes: the medians over all rounds, for one request, of one thread's CPU time.
One JSON line per kind and number of nodes goes to the output file.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.json_schemas import CASES
from benchmarks.harness.provenance import collect_provenance
from ddtree_sglang.core.acceptance import walk_tree
from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.draft_tree import DraftTree
from ddtree_sglang.core.grammar_tree import Drafted, allowed_first, build_grammar_tree
from ddtree_sglang.core.node_masks import fill_node_masks
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.engine.stages.trees import GRAMMAR_CANDIDATES

KINDS = ("free", "roots", "nodes")
NODES = (9, 17)
MAX_NEW_TOKENS = 96

_STRINGS = {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 3}
_PERSON = {"name": {"type": "string"}, "age": {"type": "integer"}, "city": {"type": "string"}, "hobbies": _STRINGS}
_UNIT = {"enum": ["g", "ml", "piece"]}
_INGREDIENT = {"name": {"type": "string"}, "amount": {"type": "number"}, "unit": _UNIT}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


_INGREDIENTS = {"type": "array", "items": _object(_INGREDIENT), "minItems": 1, "maxItems": 2}
_RECIPE = {"title": {"type": "string"}, "ingredients": _INGREDIENTS, "vegan": {"type": "boolean"}}
_REVIEW = {"stars": {"enum": [1, 2, 3, 4, 5]}, "mood": {"enum": ["positive", "neutral", "negative"]}}

ASKED: tuple[tuple[str, str, str], ...] = (
    *(
        (question, "json", json.dumps(_object(_PERSON)))
        for question in (
            "Describe Alice, a programmer from Berlin, as JSON.",
            "Extract the person: Bob, 42, lives in Rome and likes chess and tennis.",
            "Who is Marie Curie? Answer as JSON.",
        )
    ),
    *(
        (f"Write a recipe for {dish} as JSON.", "json", json.dumps(_object(_RECIPE)))
        for dish in ("pancakes", "a salad", "a soup")
    ),
    *(
        (f"Classify the review: {review}", "json", json.dumps(_object(_REVIEW)))
        for review in ("I loved it.", "It broke after two days.", "It is fine.")
    ),
    ("What is the address of the local host?", "regex", r"([0-9]{1,3}\.){3}[0-9]{1,3}"),
    ("When did the war end? Answer with a date.", "regex", r"(19|20)[0-9]{2}-[01][0-9]-[0-3][0-9]"),
    ("Is the sky blue? Answer in a sentence.", "regex", r"(Yes|No), because [a-z ]{10,40}\."),
)
"""A question, and the kind and text of the grammar of its answer."""


def questions(asked: str) -> tuple[tuple[str, str, str], ...]:
    """The `few` above, or one for each of the `schemas` that `request_suites` asks servers for."""
    if asked == "few":
        return ASKED
    return tuple((f"{case.question} Answer in JSON.", "json", json.dumps(case.schema)) for case in CASES)


@dataclass
class Rounds:
    """What trees of one kind and size came to."""

    tokens: int = 0
    rounds: int = 0
    build_ms: list[float] = field(default_factory=list)
    mask_ms: list[float] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """The result line's numbers."""
        return {
            "tokens_per_round": round(self.tokens / self.rounds, 3),
            "rounds": self.rounds,
            "build_ms": round(statistics.median(self.build_ms), 3),
            "mask_ms": round(statistics.median(self.mask_ms), 3),
        }


class Answerer:
    """The embedded pair in Hugging Face's and the training package's forms, with xgrammar's masks."""

    def __init__(self, any_whitespace: bool) -> None:
        from sglang.srt.constrained.xgrammar_backend import XGrammarGrammarBackend
        from transformers import AutoModelForCausalLM, AutoTokenizer

        from ddtree_sglang.demo.drafter import shipped_drafter
        from ddtree_sglang.demo.prepare import prepare_model
        from ddtree_sglang.training.model.export import load_drafter

        model = prepare_model()
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.target = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.drafter = load_drafter(Path(shipped_drafter())).eval()
        self.vocab_size = len(self.tokenizer)
        self.backend = XGrammarGrammarBackend(
            self.tokenizer,
            vocab_size=self.vocab_size,
            model_eos_token_ids=[self.tokenizer.eos_token_id],
            any_whitespace=any_whitespace,
        )

    def grammar(self, kind: str, text: str) -> Any:
        """In its first state."""
        return self.backend._init_value_dispatch((kind, text), False)

    def open_mask(self, rows: int) -> torch.Tensor:
        """`[rows, words]` int32, everything allowed."""
        mask: torch.Tensor = self.backend.allocate_vocab_mask(self.vocab_size, rows, "cpu")
        return mask

    @torch.inference_mode()
    def answer(self, question: str, grammar: Any) -> tuple[list[int], DraftCandidates]:
        """The answer's tokens, and the candidates `[T, D, K]` of the block whose root is each of them."""
        prompt = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        tokens, features, past, step = list[int](), [], None, torch.tensor([prompt])
        while len(tokens) < MAX_NEW_TOKENS and not grammar.is_terminated():
            out = self.target(step, past_key_values=past, use_cache=True, output_hidden_states=True)
            past = out.past_key_values
            features.append(torch.cat([out.hidden_states[i + 1] for i in self.drafter.config.target_layer_ids], -1))
            tokens.append(self._choose(out.logits[0, -1], grammar))
            step = torch.tensor([tokens[-1:]])
        return tokens, self._candidates(len(prompt), tokens, torch.cat(features, dim=1))

    def _choose(self, logits: torch.Tensor, grammar: Any) -> int:
        mask = self.open_mask(1)
        grammar.fill_vocab_mask(mask, 0)
        grammar.apply_vocab_mask(logits=logits.unsqueeze(0), vocab_mask=mask)
        token = int(logits.argmax())
        grammar.accept_token(token)
        return token

    def _candidates(self, prompt_len: int, tokens: list[int], features: torch.Tensor) -> DraftCandidates:
        anchors = prompt_len + torch.arange(len(tokens)).unsqueeze(0)
        blocks = self.drafter.block_token_ids(torch.tensor([tokens]))
        missing = features.new_zeros(1, 1, features.shape[-1])
        states = self.drafter(self.target.model.embed_tokens(blocks), torch.cat((features, missing), dim=1), anchors)[
            0, :, 1:
        ]
        logprobs = (states @ self.target.lm_head.weight.T).log_softmax(-1)
        best = logprobs.topk(GRAMMAR_CANDIDATES, dim=-1)
        return DraftCandidates(best.indices, best.values)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.thread_time()
    made = call()
    return made, 1e3 * (time.thread_time() - start)


def build(kind: str, ranked: DraftCandidates, root: int, num_nodes: int, grammar: Any, mask: torch.Tensor) -> DraftTree:
    """One tree; of the kind `nodes` with its masks in the rows of `mask`."""
    roots = torch.tensor([root])
    narrow = DraftCandidates(*(part[:, :, : num_nodes - 1] for part in (ranked.topk_ids, ranked.topk_logprobs)))
    if kind == "free":
        return build_draft_tree(narrow.topk_ids, narrow.topk_logprobs, roots, num_nodes)
    if kind == "roots":
        grammar.fill_vocab_mask(mask, 0)
        pruned = allowed_first(narrow, mask[:1])
        mask[0] = -1
        return build_draft_tree(pruned.topk_ids, pruned.topk_logprobs, roots, num_nodes)
    tree = build_draft_tree(ranked.topk_ids, ranked.topk_logprobs, roots, num_nodes)
    drafted = [Drafted.of(*part) for part in zip(ranked.topk_ids[0], ranked.topk_logprobs[0], strict=True)]
    build_grammar_tree(grammar, drafted, num_nodes, mask, 0).write_into(tree, 0)
    return tree


def play(
    kind: str, num_nodes: int, tokens: list[int], candidates: DraftCandidates, grammar: Any, mask: torch.Tensor
) -> Iterator[tuple[int, float, float]]:
    """Round by round: tokens that it emits of the answer, and the milliseconds of its tree and of its other masks."""
    done = 1
    grammar.accept_token(tokens[0])
    while done < len(tokens):
        mask.fill_(-1)
        here = slice(done - 1, done)
        ranked = DraftCandidates(candidates.topk_ids[here], candidates.topk_logprobs[here])
        tree, build_ms = _timed(partial(build, kind, ranked, tokens[done - 1], num_nodes, grammar, mask))
        mask_ms = 0.0
        if kind != "nodes":
            parents, token_ids = tree.parents[0].tolist(), tree.token_ids[0].tolist()
            _, mask_ms = _timed(partial(fill_node_masks, grammar, parents, token_ids, mask, 0))
        # At each node the target chooses the answer's token of that depth; off the answer's path nobody looks.
        following = torch.tensor([*tokens[done:], *[-1] * num_nodes])
        accepted = walk_tree(tree, following[tree.depths], candidates.topk_ids.shape[1] + 1)
        emitted = min(int(accepted.commit_lens), len(tokens) - done)
        for token in tokens[done : done + emitted]:
            grammar.accept_token(token)
        done += emitted
        yield emitted, build_ms, mask_ms


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print, and append to the output file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--asked", choices=("few", "schemas"), default="few", help="12 questions, or over a hundred")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/grammars.jsonl"))
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    # As `request_suites` starts its servers: an answer full of blank lines would not end.
    answerer, asked = Answerer(any_whitespace=args.asked == "few"), questions(args.asked)
    found = {(kind, num_nodes): Rounds() for kind in KINDS for num_nodes in NODES}
    for question, grammar_kind, text in asked:
        tokens, candidates = answerer.answer(question, answerer.grammar(grammar_kind, text))
        for (kind, num_nodes), rounds in found.items():
            mask = answerer.open_mask(num_nodes)
            for emitted, build_ms, mask_ms in play(
                kind, num_nodes, tokens, candidates, answerer.grammar(grammar_kind, text), mask
            ):
                rounds.tokens += emitted
                rounds.rounds += 1
                rounds.build_ms.append(build_ms)
                rounds.mask_ms.append(mask_ms)
    provenance = collect_provenance()
    with args.output.open("a", encoding="utf-8") as file:
        for (kind, num_nodes), rounds in found.items():
            line = {"bench": "grammars", "kind": kind, "num_nodes": num_nodes, "asked": args.asked}
            line |= {"answers": len(asked), **rounds.record()}
            print(json.dumps(line))
            file.write(json.dumps({**line, **provenance}) + "\n")
    return 0
