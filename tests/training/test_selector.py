"""A selector for a trained drafter: what it learns, that its tables are what it learned, the stage and its kills."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ddtree_sglang.core.candidates import pair_conditionals
from ddtree_sglang.training.__main__ import main
from ddtree_sglang.training.fit import selector_fit
from ddtree_sglang.training.fit.drafted_blocks import DraftedBlocks
from ddtree_sglang.training.fit.selector_fit import SelectorConfig, SelectorTrainer
from ddtree_sglang.training.fit.selector_head import RARE, SelectorHead, selector_loss
from ddtree_sglang.training.model.drafter_model import DFlashDrafter
from ddtree_sglang.training.model.export import export_drafter, load_drafter
from tests.training.tiny import save_tiny_target, tiny_config, tiny_target, write_conversations

VOCABULARY, HIDDEN, DEPTH, TOP_K = 12, 16, 3, 4


def _blocks(count: int, seed: int) -> DraftedBlocks:
    """A drafter that finds all four candidates alike, of a text in which token t is followed by (5 t + 1) mod 12."""
    generator = torch.Generator().manual_seed(seed)
    root_ids = torch.randint(0, VOCABULARY, (count,), generator=generator)
    labels = torch.empty(count, DEPTH, dtype=torch.int64)
    token = root_ids
    for depth in range(DEPTH):
        token = (5 * token + 1) % VOCABULARY
        labels[:, depth] = token
    noise = torch.rand(count, DEPTH, VOCABULARY, generator=generator)
    ids = noise.scatter(-1, labels.unsqueeze(-1), 2.0).topk(TOP_K, -1).indices
    order = torch.rand(count, DEPTH, TOP_K, generator=generator).argsort(-1)
    states = 1 + 0.3 * torch.randn(count, DEPTH, HIDDEN, generator=generator)
    return DraftedBlocks(
        states.to(torch.bfloat16),
        ids.gather(-1, order).int(),
        torch.full((count, DEPTH, TOP_K), 0.2).log(),
        root_ids,
        labels,
    )


def _head(blocks: DraftedBlocks, rank: int = 12, strength: float = 0.0) -> SelectorHead:
    """Of a target with random rows."""
    torch.manual_seed(0)
    return SelectorHead(torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY, HIDDEN), blocks, rank, strength)


def test_what_follows_from_the_token_before_is_learned(tmp_path: Path) -> None:
    train, fresh, weights = _blocks(400, 1), _blocks(200, 2), torch.ones(DEPTH)
    head = _head(train, strength=0.0)
    before = selector_loss(head, fresh, weights)
    assert before.loss.item() == pytest.approx(math.log(4), rel=1e-5)  # of no strength it has no say
    assert torch.equal(before.right, before.right_without)
    config = SelectorConfig(steps=300, blocks=64, learning_rate=1e-2, tables_rate=1.0, top_k=TOP_K)
    SelectorTrainer(
        head=head,
        train=train,
        held_out=fresh,
        config=config,
        folder=tmp_path,
        log_every=300,
        checkpoint_every=300,
        identity="one",
    ).run()
    after = selector_loss(head, fresh, weights)
    assert after.loss.item() < 0.1
    assert torch.equal(after.counted, torch.full((DEPTH,), 200.0))
    assert (after.right > 195).all()
    assert (after.right_without < 100).all()


def test_texts_that_end_and_tokens_that_are_no_candidate_count_for_nothing() -> None:
    blocks, weights = _blocks(50, 3), torch.ones(DEPTH)
    labels = blocks.labels.clone()
    labels[:25, 1:] = -1  # the text has ended
    labels[25:, 2] = VOCABULARY + 7  # not among the candidates
    cut = DraftedBlocks(blocks.states, blocks.topk_ids, blocks.topk_logprobs, blocks.root_ids, labels)
    head = _head(blocks, strength=1.0)
    found = selector_loss(head, cut, weights)
    assert found.counted.tolist() == [50, 25, 0]
    first, second = (
        selector_loss(head, blocks, torch.tensor([1.0, 0, 0])),
        selector_loss(head, blocks.chosen(torch.arange(25, 50)), torch.tensor([0, 1.0, 0])),
    )
    assert found.loss.item() == pytest.approx((50 * first.loss.item() + 25 * second.loss.item()) / 75, rel=1e-5)


def test_the_tables_give_the_scores_that_were_trained() -> None:
    """Along the text: the row of its token's rank is the trained product and the drafter's own log-probability."""
    blocks = _blocks(30, 4)
    head = _head(blocks, rank=5)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ids, logprobs, states = blocks.topk_ids.long(), blocks.topk_logprobs, blocks.states.float()
    trained = logprobs + head(states, blocks.parent_ids(), ids)
    served = head.tables().scores(states, blocks.root_ids, ids, logprobs)
    rank = (ids[:, :-1] == blocks.labels[:, :-1, None]).int().argmax(-1)
    ranks = torch.cat((torch.zeros(30, 1, dtype=torch.int64), rank), dim=1)
    rows = served.gather(2, ranks[..., None, None].expand(-1, -1, 1, TOP_K)).squeeze(2)
    torch.testing.assert_close(rows, trained)
    assert (pair_conditionals(served, logprobs).exp().sum(-1) - 0.8).abs().max() < 1e-5


def test_the_tables_begin_as_the_best_approximation_of_the_targets_pairs() -> None:
    """Of full rank they are the logits after each token, less those after any; of less, no other is closer."""
    blocks = _blocks(200, 5)
    torch.manual_seed(0)
    states, rows = torch.randn(VOCABULARY, HIDDEN), torch.randn(VOCABULARY, HIDDEN)
    ids = torch.arange(VOCABULARY)

    def products(rank: int) -> tuple[torch.Tensor, SelectorHead]:
        head = SelectorHead(states, rows, blocks, rank, 1.0)
        return head.predecessor(head.token_states[ids]) @ head.successor(head.head[ids]).T, head

    whole, head = products(HIDDEN)
    wanted = head.token_states @ head.head.T
    torch.testing.assert_close(whole, wanted, rtol=1e-3, atol=1e-3)
    parents = torch.bincount(
        torch.cat((blocks.parent_ids().flatten(), blocks.topk_ids[..., 0].flatten())), minlength=12
    )
    candidates = torch.bincount(blocks.topk_ids.flatten(), minlength=12)
    weights = ((parents + RARE) / parents.sum()).sqrt()[:, None] * ((candidates + RARE) / candidates.sum()).sqrt()
    best = torch.linalg.svdvals((weights * wanted).double())[5:].square().sum()
    missed = (weights * (products(5)[0] - wanted)).double().square().sum()
    assert float(missed.detach()) == pytest.approx(float(best.detach()), rel=1e-3)
    assert float(best.detach()) > 0.1


def test_a_gate_of_strength_one_gives_the_targets_pairs_at_the_mean_state() -> None:
    blocks = _blocks(50, 6)
    head = _head(blocks, rank=HIDDEN, strength=1.0)
    mean = blocks.states.float().flatten(0, 1).mean(0)
    torch.testing.assert_close(head.hidden_projection(mean), torch.ones(HIDDEN))


@pytest.fixture(scope="module")
def flags(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The stage's flags for a tiny target, its conversations and a random drafter."""
    folder = tmp_path_factory.mktemp("inputs")
    data = write_conversations(folder / "data.npz", tiny_target())
    torch.manual_seed(3)
    export_drafter(DFlashDrafter(tiny_config(tiny_target())), folder / "draft", torch.float32)
    given = ["--target", str(save_tiny_target(folder / "target")), "--data", str(data)]
    given += ["--draft", str(folder / "draft"), "--held-out-percent", "30", "--threads", "1", "--float32"]
    given += ["--selector-rank", "6", "--selector-top-k", "8", "--selector-blocks", "32", "--selector-anchors", "20"]
    return [*given, "--selector-steps", "20", "--checkpoint-every", "5", "--log-every", "10"]


def test_a_killed_run_ends_as_it_would_have(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert main(["selector", *flags, "--work", str(whole / "work"), "--output", str(whole / "out")]) == 0

    again = ["selector", *flags, "--work", str(killed / "work"), "--output", str(killed / "out")]
    loss, calls = selector_fit.selector_loss, 0

    def dying(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 14:  # past the checkpoint of step 10 and what is shown there
            raise KeyboardInterrupt
        return loss(*args)

    monkeypatch.setattr(selector_fit, "selector_loss", dying)
    with pytest.raises(KeyboardInterrupt):
        main(again)
    monkeypatch.setattr(selector_fit, "selector_loss", loss)
    next((killed / "work" / "drafts").glob("*.pt")).unlink()  # as if killed while drafting, too
    assert main(again) == 0
    found, expected = (load_file(one / "out" / "model.safetensors") for one in (killed, whole))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    steps = [
        json.loads(line)["step"] for line in (killed / "work" / "selector" / "curve.jsonl").read_text().splitlines()
    ]
    assert steps == [10, 20]


def test_the_exported_drafter_is_the_plain_one_and_its_head(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert main(["selector", *flags, "--work", str(tmp_path / "work"), "--output", str(output)]) == 0
    config = json.loads((output / "config.json").read_text())
    assert config["architectures"] == ["DFlash2DraftModel"]
    assert (config["dflash_config"]["selector_rank"], config["dflash_config"]["selector_top_k"]) == (6, 8)
    plain = load_drafter(Path(flags[flags.index("--draft") + 1])).state_dict()
    model = load_drafter(output)
    head = {name for name in model.state_dict() if name not in plain}
    assert head == {
        f"candidate_selector.{part}"
        for part in ("predecessor_codebook", "successor_codebook", "hidden_projection.weight")
    }
    assert all(torch.equal(model.state_dict()[name], value) for name, value in plain.items())
    assert model.state_dict()["candidate_selector.successor_codebook"].abs().max() > 0
    # It has a head now, so it is not given another, and another drafter's or another plan's files are not gone on with.
    for changed, message in (
        (["--draft", str(output)], "without one"),
        (["--selector-steps", "21"], "must keep its flags"),
        (["--selector-anchors", "7"], "must hold drafts of this drafter, target and flags"),
    ):
        assert main(["selector", *flags, *changed, "--work", str(tmp_path / "work"), "--output", str(output)]) == 2
        assert message in capsys.readouterr().err
