"""Rows of requests with penalties over their lives, against SGLang's own penalizers counting one token at a time."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import DraftTree
from ddtree_sglang.core.acceptance import AcceptedPath
from ddtree_sglang.core.node_penalties import PenaltyState
from ddtree_sglang.core.round_commit import RoundCommit
from ddtree_sglang.engine.stages.node_penalties import FEWEST_ROWS, PenaltyTable
from tests.core.plain_penalties import Asked, PlainPenalties, V, random_asked
from tests.core.test_node_penalties import path_of, random_tree

pytestmark = pytest.mark.sglang

SLOTS = 40


def request(asked: Asked, slot: int = 1, output_ids: tuple[int, ...] = ()) -> Any:
    """As much of SGLang's request as penalties read."""
    # A class of its own: a namespace takes no weak reference to it in SGLang's place.
    return Request(
        sampling_params=SimpleNamespace(
            frequency_penalty=asked.frequency,
            presence_penalty=asked.presence,
            repetition_penalty=asked.repetition,
            min_new_tokens=asked.min_len,
            stop_token_ids=set(asked.ends),
        ),
        eos_token_ids=None,
        tokenizer=SimpleNamespace(additional_stop_token_ids=None, eos_token_id=None),
        output_ids=list(output_ids),
        retraction_count=0,
        kv=SimpleNamespace(req_pool_idx=slot),
    )


class Request(SimpleNamespace):
    """A request that may be referred to weakly and told from its equals."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class Batch(SimpleNamespace):
    """SGLang's orchestrator refers to its batch weakly."""

    __hash__ = object.__hash__


def sums_of(requests: list[Any]) -> Any:
    """SGLang's orchestrator for a new batch."""
    from sglang.srt.sampling import penaltylib

    batch = Batch(reqs=requests, device="cpu")
    kinds = {
        penaltylib.BatchedFrequencyPenalizer,
        penaltylib.BatchedMinNewTokensPenalizer,
        penaltylib.BatchedPresencePenalizer,
        penaltylib.BatchedRepetitionPenalizer,
    }
    return batch, penaltylib.BatchedPenalizerOrchestrator(V, batch, kinds)


def batch_of(requests: list[Any]) -> Any:
    """A batch as a forward gets it: its sampling parameters with SGLang's sums of a new batch."""
    batch, orchestrator = sums_of(requests)
    additive = scaling = None
    if orchestrator.is_required:
        additive = torch.zeros(len(requests), V)
        orchestrator.accumulate_additive_penalties(additive)
        scaling = orchestrator.accumulate_scaling_penalties()
    batch.sampling_info = SimpleNamespace(acc_additive_penalties=additive, acc_scaling_penalties=scaling)
    batch.req_pool_indices_cpu = torch.tensor([one.kv.req_pool_idx for one in requests])
    batch.req_pool_indices = batch.req_pool_indices_cpu.clone()
    return batch


def table() -> PenaltyTable:
    return PenaltyTable(SLOTS, V, "cpu")


def commit_of(emitted: list[list[int]]) -> RoundCommit:
    """A round that emits these tokens."""
    lens = torch.tensor([len(tokens) for tokens in emitted])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(tokens) for tokens in emitted], batch_first=True)
    return RoundCommit(AcceptedPath(ids, lens - 1, lens, ids, lens), lens, lens, ids, ids)


def logits_after(made: PenaltyTable, batch: Any, tree: DraftTree, logits: torch.Tensor) -> torch.Tensor:
    """`[B, N, V]` of a round."""
    adjusted = logits.clone()
    change = made.change(batch, tree)
    assert change is not None
    change(adjusted)
    return adjusted.view(tree.batch_size, tree.num_nodes, V)


def expected(asked: Asked, emitted: list[int], logits: torch.Tensor) -> torch.Tensor:
    plain = PlainPenalties(asked)
    for token in emitted:
        plain.count(token)
    return plain.adjusted(logits)


def assert_as_plain(made: PenaltyTable, requests: list[Any], asked: list[Asked], emitted: list[list[int]]) -> None:
    """The next round's logits, all nodes of it; the last emitted token is its root."""
    tree = random_tree(torch.Generator().manual_seed(len(emitted[0])), len(requests), 7)
    tree.token_ids[:, 0] = torch.tensor([tokens[-1] for tokens in emitted])
    logits = torch.randn(len(requests) * 7, V)
    found = logits_after(made, batch_of(requests), tree, logits)
    for index, (one, tokens) in enumerate(zip(asked, emitted, strict=True)):
        for node in range(7):
            path = path_of(tree, index, node)
            row = logits[index * 7 + node]
            assert torch.equal(found[index, node], expected(one, [*tokens[:-1], *path], row)), (index, node)


def test_plain_penalties_of_these_tests_are_sglangs_own() -> None:
    """Its classes, fed token by token as plain decoding feeds them, applied as a forward applies their sums."""
    from sglang.srt.sampling.penaltylib.repetition_penalty import apply_scaling_penalties

    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        asked = [random_asked(generator) for _ in range(3)]
        _batch, orchestrator = sums_of([request(one) for one in asked])
        plain = [PlainPenalties(one) for one in asked]
        for _ in range(9):
            logits = torch.randn(3, V, generator=generator)
            mine = torch.stack([one.adjusted(row) for one, row in zip(plain, logits, strict=True)])
            additive = torch.zeros(3, V)
            orchestrator.accumulate_additive_penalties(additive)
            logits.add_(additive)
            scaling = orchestrator.accumulate_scaling_penalties()
            if scaling is not None:
                logits = torch.where(logits < 0, logits * scaling, logits / scaling)
            assert torch.equal(mine, logits)
            tokens = torch.randint(0, V, (3,), generator=generator)
            orchestrator.cumulate_output_tokens(tokens)
            for one, token in zip(plain, tokens.tolist(), strict=True):
                one.count(token)
    assert callable(apply_scaling_penalties)


def test_a_request_is_penalized_as_by_plain_decoding_round_after_round() -> None:
    generator = torch.Generator().manual_seed(1)
    for case in range(20):
        made, asked = table(), [random_asked(generator) for _ in range(3)]
        requests = [request(one, slot) for slot, one in enumerate(asked, 1)]
        made.prefill(batch_of(requests))
        emitted = [[int(torch.randint(0, V, (1,), generator=generator))] for _ in asked]
        for _ in range(4):
            assert_as_plain(made, requests, asked, emitted)
            lengths = torch.randint(1, 6, (3,), generator=generator).tolist()
            new = [torch.randint(0, V, (length,), generator=generator).tolist() for length in lengths]
            made.count(batch_of(requests), torch.tensor([tokens[-1] for tokens in emitted]), commit_of(new))
            emitted = [[*before, *after] for before, after in zip(emitted, new, strict=True)]
        assert_as_plain(made, requests, asked, emitted), case


def test_a_batch_without_penalties_changes_nothing_and_makes_nothing() -> None:
    made, batch = table(), batch_of([request(Asked()), request(Asked(), 2)])
    made.prefill(batch)
    assert made.change(batch, random_tree(torch.Generator().manual_seed(0), 2, 3)) is None
    made.count(batch, torch.zeros(2), commit_of([[1], [2]]))
    assert made._state is None
    batch.sampling_info = None
    assert made.change(batch, random_tree(torch.Generator().manual_seed(0), 2, 3)) is None


def test_batches_may_shrink_grow_and_change_their_order() -> None:
    """What SGLang's filter and merge do to a batch: rows are found by slots, whoever stands beside whom."""
    generator = torch.Generator().manual_seed(2)
    made, asked = table(), [random_asked(generator) for _ in range(3)]
    asked[1] = Asked()
    requests = [request(one, slot) for slot, one in zip((9, 4, 7), asked, strict=True)]
    made.prefill(batch_of(requests[:1]))
    made.count(batch_of(requests[:1]), torch.tensor([3]), commit_of([[5, 3]]))
    made.prefill(batch_of(requests[1:]))
    made.count(batch_of(requests), torch.tensor([3, 6, 6]), commit_of([[1], [1, 2], [2, 2, 2]]))
    order = [2, 0]
    emitted = [[3, 5, 3, 1], [6, 1, 2], [6, 2, 2, 2]]
    assert_as_plain(made, [requests[i] for i in order], [asked[i] for i in order], [emitted[i] for i in order])


def test_a_slot_that_another_request_gets_begins_anew_and_one_without_penalties_loses_its_row() -> None:
    made, first = table(), request(Asked(frequency=1.0))
    made.prefill(batch_of([first]))
    made.count(batch_of([first]), torch.tensor([3]), commit_of([[3, 3]]))
    second = request(Asked(presence=2.0))
    made.prefill(batch_of([second]))
    assert_as_plain(made, [second], [Asked(presence=2.0)], [[3]])
    third, fourth = request(Asked()), request(Asked(frequency=0.5), 2)
    made.prefill(batch_of([third, fourth]))
    assert_as_plain(made, [third, fourth], [Asked(), Asked(frequency=0.5)], [[3], [4]])


def test_rows_of_requests_that_are_gone_are_given_on_before_more_are_made() -> None:
    """A slot whose row was given on, and that a request without penalties gets, must not keep the row's number."""
    made = table()
    gone = [request(Asked(frequency=1.0), slot) for slot in range(1, FEWEST_ROWS + 1)]
    made.prefill(batch_of(gone))
    for one in gone[:-1]:
        one.kv.req_pool_idx = None
    asked = [Asked(presence=float(number)) for number in range(1, FEWEST_ROWS)]
    new = [request(one, 20 + number) for number, one in enumerate(asked)]
    made.prefill(batch_of(new))
    assert made._state is not None
    assert made._state.num_rows == FEWEST_ROWS
    unpenalized = request(Asked(), 1)
    made.prefill(batch_of([unpenalized]))
    everyone, theirs = [unpenalized, gone[-1], *new], [Asked(), Asked(frequency=1.0), *asked]
    assert_as_plain(made, everyone, theirs, [[2]] * len(everyone))


def test_more_requests_than_rows_make_more_rows_and_keep_what_was_counted() -> None:
    made, old = table(), request(Asked(frequency=0.25))
    made.prefill(batch_of([old]))
    made.count(batch_of([old]), torch.tensor([3]), commit_of([[3, 8]]))
    new = [request(Asked(repetition=1.5), slot) for slot in range(2, FEWEST_ROWS + 4)]
    made.prefill(batch_of(new))
    assert made._state is not None
    assert made._state.num_rows == 2 * FEWEST_ROWS
    asked = [Asked(frequency=0.25), *[Asked(repetition=1.5)] * len(new)]
    assert_as_plain(made, [old, *new], asked, [[3, 3, 8], *[[1]] * len(new)])


def test_a_request_that_was_retracted_goes_on_as_if_it_had_not_been() -> None:
    """Its prefill samples the next token of the answer: with all of the answer counted, minimum length included."""
    generator = torch.Generator().manual_seed(4)
    for _ in range(40):
        made, asked = table(), random_asked(generator)
        fresh, length = random_asked(generator), int(torch.randint(1, 12, (1,), generator=generator))
        answer = torch.randint(0, V, (length,), generator=generator).tolist()
        requests = [request(fresh, 1), request(asked, 2, tuple(answer))]
        batch = batch_of(requests)
        if batch.sampling_info.acc_additive_penalties is None:
            continue
        made.prefill(batch)
        info = batch.sampling_info
        for index, (one, tokens) in enumerate(((fresh, []), (asked, answer))):
            logits = torch.randn(V, generator=generator)
            changed = logits + info.acc_additive_penalties[index]
            if info.acc_scaling_penalties is not None:
                scaling = info.acc_scaling_penalties[index]
                changed = torch.where(changed < 0, changed * scaling, changed / scaling)
            assert torch.equal(changed, expected(one, tokens, logits))
        assert_as_plain(made, requests, [fresh, asked], [[7], [*answer, 7]])


def test_a_chunk_of_a_prompt_opens_a_row_again() -> None:
    made, asked = table(), Asked(0.5, min_len=3, ends=(1,))
    one = request(asked)
    made.prefill(batch_of([one]))
    made.prefill(batch_of([one]))
    assert isinstance(made._state, PenaltyState)
    assert len(made._free) == FEWEST_ROWS - 1
    assert_as_plain(made, [one], [asked], [[4]])


def adopting() -> PenaltyTable:
    """Of a server that decodes what another one prefilled."""
    return PenaltyTable(SLOTS, V, "cpu", adopts=True)


def test_requests_that_another_server_prefilled_are_adopted_once() -> None:
    """Their last token is the root, which the round counts itself. The scheduler knows of an answer a round late."""
    generator = torch.Generator().manual_seed(6)
    for _ in range(10):
        made, asked = adopting(), [random_asked(generator) for _ in range(2)]
        emitted = [[3], [9, 4, 9, 6]]  # the second one was retracted
        requests = [request(one, slot, tuple(ids)) for one, slot, ids in zip(asked, (3, 5), emitted, strict=True)]
        for new in ([[8, 2], [1]], [[5, 5, 8], [2, 8]]):
            assert_as_plain(made, requests, asked, emitted)
            made.count(batch_of(requests), torch.tensor([tokens[-1] for tokens in emitted]), commit_of(new))
            emitted = [[*before, *after] for before, after in zip(emitted, new, strict=True)]


@pytest.mark.parametrize("slot", [3, 6])
def test_a_round_that_a_retraction_takes_back_is_forgotten(slot: int) -> None:
    """Under overlap the last round of a retracted request is never handed out; it may come back to the same slot."""
    generator = torch.Generator().manual_seed(7)
    for _ in range(10):
        made, asked = adopting(), [random_asked(generator) for _ in range(2)]
        requests = [request(one, place, (4,)) for one, place in zip(asked, (3, 5), strict=True)]
        assert_as_plain(made, requests, asked, [[4], [4]])
        made.count(batch_of(requests), torch.tensor([4, 4]), commit_of([[7, 2], [8]]))
        requests[0].kv.req_pool_idx, requests[0].retraction_count = slot, 1
        assert_as_plain(made, requests, asked, [[4], [4, 8]])


def test_a_request_without_penalties_gets_none_of_the_one_whose_slot_it_takes() -> None:
    made, first = adopting(), request(Asked(frequency=1.0), 3, (2,))
    assert_as_plain(made, [first], [Asked(frequency=1.0)], [[2]])
    asked = [Asked(), Asked(presence=0.5)]
    requests = [request(one, place, (6,)) for one, place in zip(asked, (3, 4), strict=True)]
    assert_as_plain(made, requests, asked, [[6], [6]])
