"""The pair that is made on the spot: its tokens follow from far and near, its drafter knows something, a tree helps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import tiny_pair
from benchmarks.harness import tiny_measure
from benchmarks.harness.byte_tokenizer import ASSISTANT_ID, MASK_ID, USER_ID, VOCABULARY
from ddtree_sglang.engine.admission.drafter_checks import check_drafter_fits_target
from ddtree_sglang.training.model.export import load_drafter


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Tiny products: threads that wait for each other on busy cores take minutes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return tiny_pair.write_pair(tmp_path_factory.mktemp("tiny-pair"))


@pytest.fixture(scope="module")
def target(folders: tuple[Path, Path]) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folders[0], dtype=torch.float32)


def test_drafter_fits_the_target_and_bytes_are_tokens(folders: tuple[Path, Path]) -> None:
    from transformers import AutoTokenizer

    target, draft = (json.loads((folder / "config.json").read_text()) for folder in folders)
    assert check_drafter_fits_target(draft, target).block_size == tiny_pair.BLOCK_SIZE
    tokenizer = AutoTokenizer.from_pretrained(folders[0])
    text = "Zwölf\n\x00 ok"
    assert tokenizer(text)["input_ids"] == list(text.encode())
    assert tokenizer.decode(list(text.encode())) == text
    assert len(tokenizer) == VOCABULARY
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert tokenizer(chat)["input_ids"] == [USER_ID, *b"hi", ASSISTANT_ID]


def test_the_same_seed_gives_the_same_weights(folders: tuple[Path, Path], tmp_path: Path) -> None:
    again = tiny_pair.write_pair(tmp_path)
    for folder, other in zip(folders, again, strict=True):
        assert (folder / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def share_of_changed_choices(target: Any, place: int) -> float:
    """How many of 64 prompts have another next token when the token `place` before the end is another one."""
    prompts = torch.tensor(tiny_measure.random_prompts(64, 48, 5))
    changed = prompts.clone()
    changed[:, -place] = (changed[:, -place] + 101) % 256
    with torch.inference_mode():
        first, second = (target(rows).logits[:, -1].argmax(-1) for rows in (prompts, changed))
    return float((first != second).float().mean())


def test_a_token_depends_on_the_prefix_and_on_its_parent(target: Any) -> None:
    """A mask or a table that shows a node other keys must change tokens: a model that copies would hide it."""
    assert share_of_changed_choices(target, tiny_pair.FAR[0]) > 0.4
    assert share_of_changed_choices(target, tiny_pair.FAR[1]) > 0.1
    assert share_of_changed_choices(target, 1) > 0.15, "the current token"
    assert share_of_changed_choices(target, 2) > 0.15, "its parent"


def test_a_node_that_sees_its_parents_sibling_chooses_another_token(target: Any) -> None:
    """Two tokens at one position, as siblings of a tree have: only a mask tells a child which one is its parent."""
    prefixes = torch.tensor(tiny_measure.random_prompts(64, 48, 8))
    nodes = torch.tensor(tiny_measure.random_prompts(64, 3, 9))  # sibling, parent, child
    rows = torch.cat([prefixes, nodes], 1)
    positions = torch.cat([torch.arange(48), torch.tensor([48, 48, 49])]).expand(64, -1)
    sees_all = torch.ones(51, 51).tril().bool()
    honoured = sees_all.clone()
    honoured[[49, 50], [48, 48]] = False
    chosen = []
    with torch.inference_mode():
        for mask in (honoured, sees_all):
            bias = torch.zeros(51, 51).masked_fill(~mask, torch.finfo(torch.float32).min).expand(64, 1, 51, 51)
            chosen.append(target(rows, attention_mask=bias, position_ids=positions).logits[:, -1].argmax(-1))
        alone = target(torch.cat([prefixes, nodes[:, 1:2], nodes[:, 2:]], 1)).logits[:, -1].argmax(-1)
    assert torch.equal(chosen[0], alone), "an honoured mask is decoding the path alone"
    assert float((chosen[1] != chosen[0]).float().mean()) > 0.15


def test_the_drafter_is_often_right_and_a_tree_more_often(folders: tuple[Path, Path]) -> None:
    found = tiny_measure.measure(*folders, num_prompts=8, new_tokens=32, budgets=(16, 64))
    lengths = found["accept_length"]
    assert lengths["chain"] > 1.5
    assert lengths["tree-16"] > 1.15 * lengths["chain"]
    assert lengths["tree-64"] > lengths["tree-16"]
    assert found["tokens_turned_by_bfloat16"] < 0.03


def test_a_drafter_that_reads_wrong_keys_is_accepted_for_nothing(folders: tuple[Path, Path], target: Any) -> None:
    drafter = load_drafter(folders[1])
    rows = torch.tensor(tiny_measure.random_prompts(6, 48, 7))
    with torch.inference_mode():
        rows = tiny_measure.greedy(target, rows, 24)
        states = target.model(rows, output_hidden_states=True).hidden_states
        features = torch.cat([states[i + 1] for i in drafter.config.target_layer_ids], -1)
        right = tiny_measure.accept_length(target, drafter, rows, features, 48, 17)
        # As if the window of another request were read, or partial results were merged at wrong offsets.
        other = tiny_measure.accept_length(target, drafter, rows, features.roll(1, 0), 48, 17)
        shifted = tiny_measure.accept_length(target, drafter, rows, features.roll(1, 1), 48, 17)
    assert right > 1.8
    assert other < 1.3
    assert shifted < 1.3


def test_the_mask_token_has_no_code_and_is_never_chosen(target: Any) -> None:
    assert not target.lm_head.weight[MASK_ID].any()
    assert not target.model.embed_tokens.weight[MASK_ID, tiny_pair.CODE].any()
