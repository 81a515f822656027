"""Our flags become SGLang's own fields, and contradictions are refused before anything is loaded."""

from __future__ import annotations

import argparse
import json
import os
from types import SimpleNamespace
from typing import Any

import pytest

from ddtree_sglang.config import CONFIG_ENV, DDTreeConfig
from ddtree_sglang.engine.cli_flags import add_ddtree_flags, apply_config, translate_ddtree_flags
from ddtree_sglang.engine.spec import TREE_TOPK
from ddtree_sglang.exceptions import DDTreeConfigError


def parse(*argv: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--speculative-algorithm")
    parser.add_argument("--speculative-num-draft-tokens", type=int)
    parser.add_argument("--speculative-eagle-topk", type=int)
    add_ddtree_flags(None, parser)
    return parser.parse_args(argv)


def translate(*argv: str) -> argparse.Namespace:
    def original(cls: type, args: argparse.Namespace) -> argparse.Namespace:
        return args

    result: argparse.Namespace = translate_ddtree_flags(original, object, parse(*argv))
    return result


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, "")


def test_budget_flag_becomes_draft_tokens_with_the_root_and_the_tree_flag() -> None:
    args = translate("--speculative-algorithm", "ddtree", "--speculative-ddtree-budget", "31")
    assert args.speculative_num_draft_tokens == 32
    assert args.speculative_eagle_topk == TREE_TOPK
    assert json.loads(os.environ[CONFIG_ENV]) == {"budget": 31}


def test_an_untested_engine_is_allowed_by_a_flag_that_every_process_sees() -> None:
    translate("--speculative-algorithm", "DDTREE", "--speculative-ddtree-untested-engine")
    assert json.loads(os.environ[CONFIG_ENV]) == {"untested_engine": True}
    assert DDTreeConfig.from_env().untested_engine


def test_num_draft_tokens_alone_sets_the_budget() -> None:
    args = translate("--speculative-algorithm", "DDTREE", "--speculative-num-draft-tokens", "8")
    assert args.speculative_num_draft_tokens == 8


def test_default_budget_is_sixteen_nodes_besides_the_root() -> None:
    assert translate("--speculative-algorithm", "DDTREE").speculative_num_draft_tokens == 17


def test_flags_win_over_the_configuration_file(tmp_path: Any) -> None:
    path = tmp_path / "c.json"
    path.write_text('{"budget": 4, "top_k": 3}')
    translate(
        "--speculative-algorithm",
        "DDTREE",
        "--speculative-ddtree-config",
        str(path),
        "--speculative-ddtree-budget",
        "9",
    )
    assert json.loads(os.environ[CONFIG_ENV]) == {"budget": 9, "top_k": 3}


def test_a_flag_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CONFIG_ENV, '{"policy": "load"}')
    translate("--speculative-algorithm", "DDTREE", "--speculative-ddtree-policy", "fixed")
    assert DDTreeConfig.from_env() == DDTreeConfig(policy="fixed")


def test_trace_of_a_configuration_file_is_found_from_every_folder(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "c.json"
    path.write_text('{"trace": "~/trace.jsonl"}')
    translate("--speculative-algorithm", "DDTREE", "--speculative-ddtree-config", str(path))
    assert json.loads(os.environ[CONFIG_ENV]) == {"trace": str(tmp_path / "trace.jsonl")}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--speculative-ddtree-budget", "8"], "belongs to --speculative-algorithm DDTREE"),
        (["--speculative-algorithm", "DFLASH", "--speculative-ddtree-top-k", "8"], "DFLASH"),
        (["--speculative-algorithm", "DDTREE", "--speculative-ddtree-budget", "256"], "from 1 to 255, got 256"),
        (["--speculative-algorithm", "DDTREE", "--speculative-num-draft-tokens", "1"], "got 0"),
        (["--speculative-algorithm", "DDTREE", "--speculative-eagle-topk", "8"], "--speculative-ddtree-top-k"),
        (
            [
                *("--speculative-algorithm", "DDTREE"),
                *("--speculative-ddtree-budget", "8", "--speculative-num-draft-tokens", "8"),
            ],
            "got 8 with --speculative-ddtree-budget 8",
        ),
    ],
)
def test_contradicting_flags_are_refused_with_what_to_do(argv: list[str], message: str) -> None:
    with pytest.raises(DDTreeConfigError, match=message):
        translate(*argv)


def test_other_algorithms_are_left_alone() -> None:
    args = translate("--speculative-algorithm", "EAGLE", "--speculative-num-draft-tokens", "5")
    assert (args.speculative_num_draft_tokens, args.speculative_eagle_topk) == (5, None)


def test_apply_config_reaches_engine_users_who_set_no_flag() -> None:
    cfg = SimpleNamespace(speculative_num_draft_tokens=None, speculative_eagle_topk=None)
    apply_config(cfg, DDTreeConfig(budget=12))
    assert cfg.speculative_num_draft_tokens == 13
