"""Configurations of the fifteen drafters that DFlash's authors list: read without weights, served, and told of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ddtree_sglang import cli
from ddtree_sglang.config import CONFIG_ENV
from ddtree_sglang.engine.admission.drafter_checks import check_drafter_fits_target
from ddtree_sglang.engine.admission.drafter_families import family_of
from ddtree_sglang.engine.admission.drafter_report import report_of
from ddtree_sglang.engine.admission.pair_facts import suspicions
from tests.support.published import PAIRS, Published
from tests.support.published_configs import SLIDING


@pytest.fixture(params=PAIRS)
def published(request: pytest.FixtureRequest) -> Published:
    return PAIRS[request.param]


def test_doctor_reads_it_without_weights_and_says_that_it_is_served(
    published: Published, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder with the file alone."""
    monkeypatch.setenv(CONFIG_ENV, "")
    (tmp_path / "config.json").write_text(json.dumps(published.draft), encoding="utf-8")
    assert cli.main(["doctor", "--draft", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "ok      DDTREE serves it" in out
    assert "        architecture: DFlashDraftModel" in out


def test_what_doctor_says_is_what_is_published(published: Published) -> None:
    draft, facts = published.draft, dict(report_of(published.draft).facts)
    size, features = draft["block_size"], draft["dflash_config"]
    assert facts["family"] == "DFlash"
    assert facts["block"] == f"{size} tokens, the root and {size - 1} drafted positions"
    assert facts["layers"] == f"{draft['num_hidden_layers']}, hidden size {published.target['hidden_size']}"
    reads, layers = features["target_layer_ids"], published.target["num_hidden_layers"]
    assert facts["reads target layers"] == f"{reads} of {layers}"
    by_name = "<|MASK|>, by its name in the target's vocabulary"
    assert facts["mask token"] == str(features.get("mask_token_id", by_name))
    heads = draft["num_attention_heads"], draft["num_key_value_heads"]
    assert facts["attention"] == f"{heads[0]} heads, {heads[1]} of keys"
    sliding = draft["layer_types"].count(SLIDING)
    windows = f"{draft.get('sliding_window')} tokens in {sliding} of {draft['num_hidden_layers']} layers"
    assert facts["window"] == (windows if sliding else "none")
    assert facts["embedding and LM head"] == "the target's"


def test_it_fits_its_own_target_and_no_other_of_another_size(published: Published) -> None:
    assert family_of(published.draft).name == "DFlash"
    assert check_drafter_fits_target(published.draft, published.target).block_size == published.draft["block_size"]
    for other in PAIRS.values():
        if other.target["hidden_size"] != published.target["hidden_size"]:
            with pytest.raises(ValueError, match="hidden_size"):
                check_drafter_fits_target(published.draft, other.target)


@pytest.mark.parametrize("name", [name for name, pair in PAIRS.items() if pair.other_draft])
def test_its_other_revision_is_read_and_served_and_fits_the_target(name: str) -> None:
    """Kinds of layers that nobody quotes are as in the first revision: one full layer behind sliding ones."""
    published = PAIRS[name]
    fields = dict(published.other_draft)
    own = {key: fields.pop(key) for key in ("target_layer_ids", "mask_token_id") if key in fields}
    num_layers = fields.get("num_hidden_layers", published.draft["num_hidden_layers"])
    sliding = fields.pop("sliding layers", num_layers - 1)
    kinds = [SLIDING] * sliding + ["full_attention"] * (num_layers - sliding)
    draft = {**published.draft, **fields, "layer_types": kinds}
    draft["dflash_config"] = {**draft["dflash_config"], **own}
    report = report_of(draft)
    assert report.refusal is None
    assert dict(report.facts)["reads target layers"].startswith(str(own["target_layer_ids"]))
    assert check_drafter_fits_target(draft, published.target).block_size == draft["block_size"]


def test_nothing_of_it_looks_like_another_targets_drafter(published: Published) -> None:
    """But for a mask token that was not found here."""
    told = suspicions(published.draft, published.target)
    is_known = "mask_token_id" in published.draft["dflash_config"]
    assert [line.partition(":")[0] for line in told] == ([] if is_known else ["mask token"])
