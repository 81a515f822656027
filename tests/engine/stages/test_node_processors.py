"""A processor is called on a tree as often, in the same order and with the same tokens as in plain decoding.

The target is a table: its logits hang on the last two tokens. Plain decoding is a loop over it with SGLang's own
sampler; the tree's rows are the same table's. Requests, parameters and the sampler are the engine's.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ddtree_sglang.core import build_draft_tree, commit_round, complete_tree
from ddtree_sglang.core.round_ends import RoundEnds
from ddtree_sglang.engine.processor_failures import let_processors_fail_alone
from ddtree_sglang.engine.run_ends import judge, needs_host
from ddtree_sglang.engine.stages import node_processors
from ddtree_sglang.engine.stages.node_processors import choice_by_processors, restored_outputs
from ddtree_sglang.engine.stages.round_ends import BatchEnds
from ddtree_sglang.engine.stages.target_choice import NodeAdjustments, choose_target_tokens
from tests.core.tree_cases import random_candidates

pytestmark = pytest.mark.sglang

V, DEPTH, NODES = 9, 4, 14
PROMPTS = ((1, 2, 3), (4, 5), (6, 7, 8, 1), (3, 3))
NEVER = -1


@dataclass
class Recorder:
    """A stateful processor that reads everything: bans the last token, counts its calls on itself and in parameters."""

    calls: list[list[tuple[int, ...]]]
    seen: int = 0

    def __call__(self, logits: torch.Tensor, params: list[Any]) -> torch.Tensor:
        self.seen += len(params)
        self.calls.append([])
        for row, mine in enumerate(params):
            req = mine["__req__"]
            tokens = [*req.origin_input_ids, *req.output_ids]
            self.calls[-1].append(tuple(tokens))
            mine["called"] = mine.get("called", 0) + 1
            logits[row, tokens[-1]] = float("-inf")
            logits[row, (sum(tokens) + mine["called"]) % V] += 2.5
        return logits


@pytest.fixture(scope="module")
def sampler() -> Any:
    """SGLang's, without the process groups that it looks up when it is built."""
    from sglang.srt.layers.sampler import Sampler

    made = Sampler.__new__(Sampler)
    torch.nn.Module.__init__(made)
    made.rl_on_policy_target = None
    made.enable_deterministic = made.use_log_softmax_logprob = made.use_ascend_backend = False
    return made


def request(prompt: tuple[int, ...], *, processed: bool = True, max_new_tokens: int = 64, **sampling: Any) -> Any:
    from sglang.srt.managers.schedule_batch import Req
    from sglang.srt.sampling.sampling_params import SamplingParams

    params = SamplingParams(temperature=0.0, max_new_tokens=max_new_tokens, custom_params={}, **sampling)
    params.normalize(None)
    text = "p" if processed else None
    return Req("rid", "", array("q", prompt), params, custom_logit_processor=text, vocab_size=V)


def parameters(reqs: list[Any], processor: Any, *, is_greedy: bool = True) -> Any:
    from sglang.srt.sampling.sampling_batch_info import ProcessorEntry, SamplingBatchInfo

    rows = [row for row, req in enumerate(reqs) if req.custom_logit_processor is not None]
    size = len(reqs)
    return SamplingBatchInfo(
        temperatures=torch.ones(size, 1),
        top_ps=torch.ones(size),
        top_ks=torch.ones(size, dtype=torch.int32),
        min_ps=torch.zeros(size),
        is_all_greedy=is_greedy,
        is_any_greedy=is_greedy,
        need_top_p_sampling=False,
        need_top_k_sampling=False,
        need_min_p_sampling=False,
        vocab_size=V,
        has_custom_logit_processor=bool(rows),
        custom_params=[req.sampling_params.custom_params for req in reqs],
        custom_logit_processor={7: ProcessorEntry(processor, rows, torch.tensor(rows))},
        device="cpu",
    )


TABLE = 2 * torch.randn(V, V, V, generator=torch.Generator().manual_seed(3))


def target_row(tokens: list[int]) -> torch.Tensor:
    return TABLE[tokens[-2], tokens[-1]].clone()


def tree_after(reqs: list[Any], seed: int, like: Callable[[Any], list[int]] | None = None) -> Any:
    """Trees behind the requests' last tokens; with `like`, its tokens are the drafter's first choices."""
    drafted = random_candidates(seed, len(reqs), DEPTH, V, V)
    ids, roots = drafted.ids.clone(), torch.tensor([req.output_ids[-1] for req in reqs])
    for row, req in enumerate(reqs if like is not None else []):
        for depth, token in enumerate(like(req)[:DEPTH]):  # type: ignore[misc]
            at = ids[row, depth].tolist().index(token)
            ids[row, depth, at], ids[row, depth, 0] = ids[row, depth, 0].clone(), token
    tree = build_draft_tree(ids, drafted.logprobs, roots, NODES)
    prefix_lens = torch.tensor([len(req.origin_input_ids) + len(req.output_ids) - 1 for req in reqs])
    return complete_tree(tree, prefix_lens), prefix_lens


def rows_of_nodes(built: Any, reqs: list[Any]) -> torch.Tensor:
    """`[B * N, V]`: what the target says after each node."""
    rows = []
    for row, req in enumerate(reqs):
        parents, ids = built.tree.parents[row].tolist(), built.tree.token_ids[row].tolist()
        committed = [*req.origin_input_ids, *req.output_ids]
        for node in range(NODES):
            path: list[int] = []
            while node > 0:
                path.insert(0, ids[node])
                node = parents[node]
            rows.append(target_row([*committed, *path]))
    return torch.stack(rows)


def plain_step(reqs: list[Any], info: Any, sampler: Any) -> None:
    """One token of plain decoding for each request that goes on."""
    from sglang.srt.layers.logits_processor import LogitsProcessorOutput

    going = [row for row, req in enumerate(reqs) if not req.finished()]
    info = node_processors.rows_of(info, going)
    logits = torch.stack([target_row([*reqs[row].origin_input_ids, *reqs[row].output_ids]) for row in going])
    chosen = sampler(LogitsProcessorOutput(logits), info, False, [], [], torch.zeros(len(going)))
    for row, token in zip(going, chosen.tolist(), strict=True):
        reqs[row].output_ids.append(token)
        reqs[row].update_finish_state(1)


def ends_of(reqs: list[Any], limits: list[int] | None = None) -> RoundEnds:
    ends = BatchEnds.of(reqs, NODES, "cpu").ends
    return ends if limits is None else replace(ends, node_limits=torch.tensor(limits))


def tree_round(
    reqs: list[Any],
    info: Any,
    sampler: Any,
    built: Any,
    prefix_lens: torch.Tensor,
    limits: list[int] | None = None,
) -> torch.Tensor:
    """One round; commits to the requests, gives the logits that log-probabilities would be read from."""
    logits = rows_of_nodes(built, reqs)
    batch: Any = SimpleNamespace(reqs=reqs, sampling_info=info)
    choice = choice_by_processors(batch, built, ends_of(reqs, limits), sampler, lambda tokens: tokens)
    adjustments = NodeAdjustments(processors=choice)
    target_ids = choose_target_tokens(
        logits, info, built.layout.positions, sampler, keep_logits=True, adjustments=adjustments
    )
    path = commit_round(built.tree, target_ids, prefix_lens, DEPTH + 1, ends_of(reqs, limits)).path
    for row, req in enumerate(reqs):
        if not req.finished():
            tokens = path.token_ids[row, : int(path.commit_lens[row])].tolist()
            req.output_ids.extend(tokens)
            req.update_finish_state(len(tokens))
    return logits


def started(requests: list[Any]) -> list[Any]:
    for req in requests:
        req.output_ids.append(0)
    return requests


def run_plain(requests: list[Any], steps: int, sampler: Any) -> Recorder:
    recorder = Recorder([])
    info = parameters(requests, recorder)
    for _ in range(steps):
        plain_step(requests, info, sampler)
    return recorder


def test_one_request_is_called_as_in_plain_decoding(sampler: Any) -> None:
    plain = started([request(PROMPTS[0])])
    reference = run_plain(plain, 40, sampler)
    mine = started([request(PROMPTS[0])])
    recorder = Recorder([])
    info = parameters(mine, recorder)
    rounds = 0
    while len(mine[0].output_ids) < 30:
        rounds += 1
        at = len(mine[0].output_ids)
        built, prefix_lens = tree_after(mine, seed=rounds, like=lambda _req, at=at: plain[0].output_ids[at:])
        tree_round(mine, info, sampler, built, prefix_lens)
    length = len(mine[0].output_ids)
    assert list(mine[0].output_ids) == list(plain[0].output_ids[:length])
    assert recorder.calls == reference.calls[: length - 1]
    assert mine[0].sampling_params.custom_params["called"] == recorder.seen == length - 1
    assert rounds < 15, "trees must be accepted, or the test shows nothing"


def test_each_request_of_a_mixed_batch_gets_plain_decodings_tokens(sampler: Any) -> None:
    def batch() -> list[Any]:
        return started([request(prompt, processed=row != 1) for row, prompt in enumerate(PROMPTS)])

    plain, mine, recorder = batch(), batch(), Recorder([])
    reference = run_plain(plain, 40, sampler)
    info = parameters(mine, recorder)
    for seed in range(6):
        built, prefix_lens = tree_after(mine, seed, like=lambda req: list(plain[mine.index(req)].output_ids))
        tree_round(mine, info, sampler, built, prefix_lens)
    for row, req in enumerate(mine):
        assert list(req.output_ids) == list(plain[row].output_ids[: len(req.output_ids)])
        own = [seen for call in recorder.calls for seen in call if seen[: len(PROMPTS[row])] == PROMPTS[row]]
        theirs = [seen for call in reference.calls for seen in call if seen[: len(PROMPTS[row])] == PROMPTS[row]]
        assert own == theirs[: len(own)]
        assert len(own) == (len(req.output_ids) - 1 if row != 1 else 0)


def test_a_request_with_a_smaller_tree_is_called_for_its_own_nodes(sampler: Any) -> None:
    """Of two nodes and of one: the walk stops where the commit does, and nothing is called twice."""
    plain = started([request(PROMPTS[0]), request(PROMPTS[1])])
    run_plain(plain, 30, sampler)
    mine, recorder = started([request(PROMPTS[0]), request(PROMPTS[1])]), Recorder([])
    info = parameters(mine, recorder)
    for seed in range(4):
        like = {id(req): list(plain[row].output_ids[len(req.output_ids) :]) for row, req in enumerate(mine)}
        built, prefix_lens = tree_after(mine, seed, like=lambda req, like=like: like[id(req)])
        tree_round(mine, info, sampler, built, prefix_lens, limits=[1, 2])
    for row, req in enumerate(mine):
        assert list(req.output_ids) == list(plain[row].output_ids[: len(req.output_ids)])
        assert req.sampling_params.custom_params["called"] == len(req.output_ids) - 1
    assert [len(req.output_ids) - 1 for req in mine] == [4, 8]


def test_log_probabilities_are_read_from_processed_rows(sampler: Any) -> None:
    reqs = started([request(PROMPTS[0])])
    built, prefix_lens = tree_after(reqs, seed=1)
    last = reqs[0].output_ids[-1]
    logits = tree_round(reqs, parameters(reqs, Recorder([])), sampler, built, prefix_lens)
    assert logits[0, last] == float("-inf")
    assert logits[0].argmax() == reqs[0].output_ids[1]


def test_draws_leave_logits_and_use_the_nodes_position(sampler: Any) -> None:
    """Sampling turns rows into probabilities in place; what log-probabilities are read from must stay."""
    reqs = started([request(PROMPTS[0]), request(PROMPTS[1])])
    built, _ = tree_after(reqs, seed=1)
    seen: list[list[int]] = []

    def drawing(output: Any, info: Any, **options: Any) -> torch.Tensor:
        assert not info.has_custom_logit_processor
        seen.append(options["positions"].tolist())
        chosen = output.next_token_logits.argmax(-1).to(torch.int32)
        output.next_token_logits.fill_(7.0)
        return chosen

    drawing._preprocess_logits = sampler._preprocess_logits  # type: ignore[attr-defined]
    info = parameters(reqs, Recorder([]), is_greedy=False)
    logits = rows_of_nodes(built, reqs)
    batch: Any = SimpleNamespace(reqs=reqs, sampling_info=info)
    chosen = choice_by_processors(batch, built, ends_of(reqs), drawing, lambda tokens: tokens)(logits)  # type: ignore[arg-type,misc]
    assert not bool((logits == 7.0).all(1).any())
    # A draw's position is that of the last token read, as in plain decoding.
    assert seen[0] == [len(req.origin_input_ids) for req in reqs]
    assert chosen.dtype == torch.int64


def test_what_ranks_agree_on_decides_the_way(sampler: Any) -> None:
    """Another rank drew another token at the root: the processor is asked next behind that one."""
    reqs = started([request(PROMPTS[0])])
    recorder = Recorder([])
    built, _ = tree_after(reqs, seed=1)
    child = int(built.tree.token_ids[0, built.layout.retrieve_next_token[0, 0]])
    answers = iter([child])

    def agree(tokens: torch.Tensor) -> torch.Tensor:
        return tokens.fill_(next(answers, NEVER))

    batch: Any = SimpleNamespace(reqs=reqs, sampling_info=parameters(reqs, recorder))
    choice = choice_by_processors(batch, built, ends_of(reqs), sampler, agree)
    assert choice is not None
    chosen = choice(rows_of_nodes(built, reqs))
    assert int(chosen[0, 0]) == child
    assert [call[0][-1] for call in recorder.calls] == [0, child]


@pytest.mark.parametrize("end", ["stop_token_ids", "max_new_tokens"])
def test_nothing_is_called_behind_an_end(end: str, sampler: Any) -> None:
    plain = started([request(PROMPTS[0])])
    run_plain(plain, 4, sampler)
    tokens = list(plain[0].output_ids)
    assert tokens[2] not in tokens[:2]
    limit = {"stop_token_ids": [tokens[2]]} if end == "stop_token_ids" else {"max_new_tokens": 3}
    mine, recorder = started([request(PROMPTS[0], **limit)]), Recorder([])  # type: ignore[arg-type]
    built, prefix_lens = tree_after(mine, seed=1, like=lambda _req: tokens[1:])
    tree_round(mine, parameters(mine, recorder), sampler, built, prefix_lens)
    assert [call[0][-1] for call in recorder.calls] == tokens[:2]
    assert mine[0].finished()
    assert list(mine[0].output_ids_through_stop) == tokens[:3]
    # A round that was launched before the end was known asks nothing.
    tree_round(mine, parameters(mine, recorder), sampler, built, prefix_lens)
    assert len(recorder.calls) == 2


@pytest.mark.parametrize("tokens_before", range(1, 6))
def test_the_tokens_before_one_that_a_processor_raises_at_are_kept(
    tokens_before: int, sampler: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever in an accepted path it raises, the answer has plain decoding's tokens, beside one that goes on."""
    from sglang.srt.layers import sampler as module

    stock = module.apply_custom_logit_processor
    monkeypatch.setattr(module, "apply_custom_logit_processor", lambda *args: let_processors_fail_alone(stock, *args))

    def raising(logits: torch.Tensor, params: list[Any]) -> torch.Tensor:
        if any(len(one["__req__"].output_ids) == tokens_before and one.get("raises") for one in params):
            raise KeyError("here")
        return logits

    def batch() -> list[Any]:
        made = started([request(PROMPTS[0]), request(PROMPTS[1])])
        made[0].sampling_params.custom_params["raises"] = True
        return made

    reference = started([request(PROMPTS[0]), request(PROMPTS[1])])
    info = parameters(reference, lambda logits, _: logits)
    for _ in range(9):
        plain_step(reference, info, sampler)
    tokens = list(reference[0].output_ids)
    mine = batch()
    info, run = parameters(mine, raising), list[int]()
    for seed in range(6):
        at = {id(req): list(one.output_ids[len(req.output_ids) :]) for one, req in zip(reference, mine, strict=True)}
        built, prefix_lens = tree_after(mine, seed, like=lambda req, at=at: at[id(req)])
        choice = choice_by_processors(
            SimpleNamespace(reqs=mine, sampling_info=info),
            built,
            ends_of(mine),
            sampler,
            lambda ids: ids,  # type: ignore[arg-type]
        )
        assert choice is not None
        ids = choice(rows_of_nodes(built, mine))
        path = commit_round(built.tree, ids, prefix_lens, DEPTH + 1, ends_of(mine)).path
        assert not needs_host(mine[1])
        for row, req in enumerate(mine):
            run = path.token_ids[row, : int(path.commit_lens[row])].tolist()
            judged = judge(req, run)
            assert req.to_finish is None, "until it is judged, the run goes to its end"
            req.output_ids.extend(judged.token_ids)
            req.finished_reason = judged.finished_reason
        if mine[0].finished():
            break
    assert list(mine[0].output_ids) == tokens[: tokens_before + 1]
    assert "custom_logit_processor raised KeyError" in mine[0].finished_reason.message
    assert not mine[1].finished()
    assert list(mine[1].output_ids) == list(reference[1].output_ids[: len(mine[1].output_ids)])


def test_outputs_are_restored_when_a_processor_fails() -> None:
    req = started([request(PROMPTS[0])])[0]

    def fail() -> None:
        with restored_outputs([req]):
            req.output_ids.append(5)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert list(req.output_ids) == [0]


def test_a_batch_without_processors_pays_nothing() -> None:
    reqs = started([request(PROMPTS[0], processed=False)])
    for info in (None, parameters(reqs, None)):
        batch: Any = SimpleNamespace(reqs=reqs, sampling_info=info)
        assert choice_by_processors(batch, None, None, None, None) is None  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("algorithm", "processed", "queued", "expected"),
    [
        ("DDTREE", True, [1], True),
        ("DDTREE", True, [], False),
        ("DDTREE", False, [1], False),
        ("DFLASH", True, [1], False),
    ],
)
def test_results_are_processed_before_a_batch_with_processors(
    algorithm: str, processed: bool, queued: list[int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sglang.srt.runtime_context as context

    monkeypatch.setattr(context, "get_spec", lambda: SimpleNamespace(speculative_algorithm=algorithm))
    scheduler = SimpleNamespace(result_queue=queued)
    batch = SimpleNamespace(sampling_info=SimpleNamespace(has_custom_logit_processor=processed))
    finish = node_processors.finish_the_round_before
    assert finish(lambda *_: False, scheduler, batch, None) is expected
    assert finish(lambda *_: True, scheduler, batch, None) is True
    assert finish(lambda *_: False, scheduler, None, None) is False
