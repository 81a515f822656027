"""A round's texts end at its roots, whatever became of the requests before, and their law is core's."""

from __future__ import annotations

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ddtree_sglang.config import DDTreeConfig
from ddtree_sglang.core.candidates import DraftCandidates
from ddtree_sglang.core.request_ngrams import LAW, RequestText, pair_table
from ddtree_sglang.core.tree_builder import build_draft_tree
from ddtree_sglang.engine.stages import request_texts
from ddtree_sglang.engine.stages.request_texts import MOST_CANDIDATES, MOST_READ, MOST_REQUESTS, NoTexts, RequestTexts
from ddtree_sglang.exceptions import DDTreeConfigError

VOCABULARY = 50


class Request:
    """What is asked of SGLang's; one that the collector may take."""

    def __init__(self, prompt: list[int], *answer: int) -> None:
        self.origin_input_ids, self.output_ids = prompt, array("q", answer)


def batch(*reqs: Request, has_grammar: bool = False) -> Any:
    return SimpleNamespace(reqs=list(reqs), has_grammar=has_grammar)


def roots(*reqs: Request) -> torch.Tensor:
    return torch.tensor([req.output_ids[-1] for req in reqs])


def texts() -> RequestTexts:
    made = RequestTexts.of(DDTreeConfig(ngrams=True), SimpleNamespace(scorer=None), VOCABULARY)
    assert isinstance(made, RequestTexts)
    return made


def written(req: Request) -> RequestText:
    text = RequestText(LAW.order)
    text.extend([*req.origin_input_ids, *req.output_ids])
    return text


def ranked(batch_size: int, depth: int = 3, k: int = 20, seed: int = 0) -> DraftCandidates:
    generator = torch.Generator().manual_seed(seed)
    logprobs = torch.randn(batch_size, depth, VOCABULARY, generator=generator).log_softmax(-1)
    best = logprobs.sort(dim=-1, descending=True)
    return DraftCandidates(best.indices[..., :k], best.values[..., :k])


def test_a_text_follows_its_request_through_rounds_and_batches() -> None:
    known, one, two = texts(), Request([5, 6, 7, 5], 6), Request([1, 2], 3)
    for answer in ((), (7, 5), (6,), (7, 7, 7)):
        one.output_ids.extend(answer)
        found = known.of_batch(batch(one), roots(one))
        assert found is not None
        assert vars(found.texts[0]) == vars(written(one))
        both = known.of_batch(batch(two, one), roots(two, one))
        assert both is not None
        assert [vars(text) for text in both.texts] == [vars(written(two)), vars(written(one))]


def test_a_request_whose_answer_became_shorter_is_read_anew() -> None:
    known, req = texts(), Request([1, 2, 3], 4, 5, 6, 7)
    known.of_batch(batch(req), roots(req))
    del req.output_ids[1:]
    found = known.of_batch(batch(req), roots(req))
    assert found is not None
    assert vars(found.texts[0]) == vars(written(req))


def test_ended_requests_are_forgotten() -> None:
    known, req = texts(), Request([1, 2], 3)
    known.of_batch(batch(req), roots(req))
    assert len(known._read) == 1
    del req
    assert len(known._read) == 0


def test_what_no_text_is_for_has_none() -> None:
    known, req = texts(), Request([1, 2], 3)
    assert known.of_batch(batch(req, has_grammar=True), roots(req)) is None
    assert known.of_batch(batch(req), torch.tensor([2])) is None, "a text that is behind its root"
    many = [Request([1], 2) for _ in range(MOST_REQUESTS + 1)]
    assert known.of_batch(batch(*many), roots(*many)) is None
    assert known.of_batch(batch(*many[1:]), roots(*many[1:])) is not None


def test_the_law_of_a_batch_is_that_of_each_of_its_requests() -> None:
    known, reqs = texts(), (Request([5, 6, 7, 5], 6), Request([9, 9, 9], 9))
    found, block = known.of_batch(batch(*reqs), roots(*reqs)), ranked(2)
    assert found is not None
    mixed = found.mixed(block)
    assert mixed.pair_logprobs is not None
    assert mixed.topk_ids.shape == (2, 3, MOST_CANDIDATES)
    for index, req in enumerate(reqs):
        ids, logprobs = (part[index, :, :MOST_CANDIDATES].numpy() for part in (block.topk_ids, block.topk_logprobs))
        table = pair_table(ids, np.ascontiguousarray(logprobs), written(req), LAW)
        assert np.array_equal(mixed.topk_ids[index], table.topk_ids)
        assert np.array_equal(mixed.pair_logprobs[index], table.logprobs)
    tree = build_draft_tree(mixed.topk_ids, mixed.topk_logprobs, roots(*reqs), 9, mixed.pair_logprobs)
    # What followed 5, 6 and 9 in their texts is the first thing that is drafted.
    assert tree.token_ids[:, 1].tolist() == [7, 9]


def test_the_places_of_an_image_are_no_tokens() -> None:
    """SGLang marks them by ids past the vocabulary, which no embedding has."""
    image = [1_000_007] * 3
    known, req = texts(), Request([5, 6, *image, 7, 5, 6, *image], 6)
    found = known.of_batch(batch(req), roots(req))
    assert found is not None
    assert found.texts[0].tail == (6,), "what stands before an image is no context of what stands behind it"
    req.output_ids.extend([7, 5])
    found, block = known.of_batch(batch(req), roots(req)), ranked(1)
    assert found is not None
    (text,) = found.texts
    assert text.after([5]) == [{6: 2}]
    assert text.after([6]) == [{7: 1}]
    assert text.after(image) == []
    assert text.after([7, 5]) == [{6: 2}, {6: 1}]
    assert int(found.mixed(block).topk_ids.max()) < VOCABULARY


def test_a_prompt_is_read_with_its_prefill_and_of_a_long_one_the_end() -> None:
    known = texts()
    first, long = Request([1, 2, 3]), Request([5, 6, *[7] * (MOST_READ - 1)])
    known.read(batch(first, long))
    read = {req: known._read[req].num_tokens for req in (first, long)}
    assert read == {first: 3, long: MOST_READ + 1}
    first.output_ids.append(9)
    long.output_ids.append(8)
    found = known.of_batch(batch(first, long), roots(first, long))
    assert found is not None
    assert [text.tail for text in found.texts] == [(1, 2, 3, 9), (7, 7, 7, 7, 8)]
    # The first id of the long one was left out, the second one was read.
    assert [found.texts[1].after(context) for context in ((5,), (6,))] == [[], [{7: 1}]]


def test_a_block_of_two_depths_keeps_all_candidates() -> None:
    """Sixteen of each would not hold a large tree."""
    known, req = texts(), Request([1, 2], 3)
    found = known.of_batch(batch(req), roots(req))
    assert found is not None
    assert found.mixed(ranked(1, depth=2, k=40)).topk_ids.shape == (1, 2, 40)


@pytest.mark.parametrize(
    ("given", "on_a_device", "reads"),
    [
        ({"policy": "adaptive"}, False, True),
        ({"policy": "adaptive"}, True, False),
        ({"policy": "adaptive", "ngrams": False}, False, False),
        ({"policy": "adaptive", "top_k": 1}, False, False),
        ({"policy": "fixed"}, False, False),
        ({"policy": "load"}, False, False),
        ({"policy": "fixed", "ngrams": True}, False, True),
        ({"policy": "adaptive", "top_k": 1, "ngrams": True}, False, True),
    ],
)
def test_who_reads_texts(
    given: dict[str, Any], on_a_device: bool, reads: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(request_texts, "is_device_path", lambda: on_a_device)
    found = RequestTexts.of(DDTreeConfig(**given), SimpleNamespace(scorer=None), VOCABULARY)
    assert isinstance(found, RequestTexts) is reads


def test_a_drafter_that_scores_pairs_has_its_own_law() -> None:
    scores_pairs = SimpleNamespace(scorer=object())
    without = RequestTexts.of(DDTreeConfig(policy="adaptive"), scores_pairs, VOCABULARY)
    assert type(without) is NoTexts
    with pytest.raises(DDTreeConfigError, match="--speculative-ddtree-ngrams needs a drafter without a head"):
        RequestTexts.of(DDTreeConfig(policy="adaptive", ngrams=True), scores_pairs, VOCABULARY)


def test_a_host_that_is_a_round_behind_has_a_text_for_no_round() -> None:
    """Why texts are refused where rounds overlap: it has read no root by the time of the draft, and waits for it."""
    known, req, answer = texts(), Request([5, 6, 7, 5], 6), [7, 5, 6, 7]
    found = []
    for root in answer:
        found.append(known.of_batch(batch(req), torch.tensor([root])))
        req.output_ids.append(root)
    assert found == [None] * len(answer)


def test_a_law_of_pairs_would_be_replaced_by_a_texts() -> None:
    """What the refusal is for: nodes would be chosen as if the head had scored nothing."""
    plain, of = ranked(1), texts().of_batch(batch(request := Request([5, 6, 7, 5], 6)), roots(request))
    assert of is not None
    k = plain.topk_ids.shape[-1]
    scored = DraftCandidates(plain.topk_ids, plain.topk_logprobs, torch.randn(1, 3, k, k).log_softmax(-1))
    laws = [of.mixed(one).pair_logprobs for one in (plain, scored)]
    assert laws[0] is not None
    torch.testing.assert_close(*laws)
