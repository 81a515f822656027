"""Serving under open load: SGLang's client as it is asked, the arithmetic on its records, the report."""

from __future__ import annotations

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks import serving
from benchmarks.serving_report import COMPLETED, CONCURRENCY, METRICS, THROUGHPUT, Turn, at_rates, result_lines, table
from deploy.local.server_process import ServerError

SPEC = find_spec("sglang")
assert SPEC is not None
assert SPEC.submodule_search_locations
CLIENT = (Path(SPEC.submodule_search_locations[0]) / "benchmark/serving.py").read_text(encoding="utf-8")


def record(tpot_ms: float, completed: int = 4) -> dict[str, Any]:
    fields = [field for fields in METRICS.values() for field in fields.values()]
    return {**dict.fromkeys(fields, tpot_ms), THROUGHPUT: 100 / tpot_ms, CONCURRENCY: 2.0, COMPLETED: completed}


def turns(rate: float = 0.5, **tpots: tuple[float, ...]) -> list[Turn]:
    return [
        Turn(system.replace("_", "-"), rate, repeat, 4, record(value))
        for system, values in tpots.items()
        for repeat, value in enumerate(values)
    ]


@pytest.mark.parametrize("kind", ["custom", "random-ids"])
def test_every_flag_and_field_is_one_of_sglangs_client(kind: str) -> None:
    """Read as text: importing the client costs a quarter of a minute."""
    args = serving.parse_args(["--kind", kind, "--num-prompts", "7"])
    command = serving.client_command("http://h:1", "m", Path("p.jsonl"), 0.5, 3, args)
    flags = [part for part in command[command.index(serving.CLIENT) :] if part.startswith("--")]
    assert [flag for flag in [*flags, "--output-file"] if f'"{flag}"' not in CLIENT] == []
    assert f'"{kind}",' in CLIENT
    assert command[command.index("--num-prompts") + 1] == "7"
    fields = [field for fields in METRICS.values() for field in fields.values()]
    assert [field for field in [*fields, THROUGHPUT, CONCURRENCY, COMPLETED] if f'"{field}": ' not in CLIENT] == []


@pytest.mark.parametrize("text", ["0", "-1", "inf", "nan"])
def test_a_rate_is_finite_and_above_zero(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="above 0"):
        serving.rate(text)


def test_ratios_are_of_the_same_turn(tmp_path: Path) -> None:
    """The second turn had other arrivals and was twice as slow for all."""
    lines = result_lines(turns(plain=(20.0, 40.0), dflash=(16.0, 32.0), ddtree_8=(10.0, 20.0)), {"ddtree-8": 1}, {})
    tree = {line["system"]: line for line in lines}["ddtree-8"]
    assert tree["tpot_ratios_of_turns"]["plain"] == {"median": 2.0, "min": 2.0, "max": 2.0, "n": 2}
    assert tree["tpot_ratios_of_turns"]["chain"]["median"] == pytest.approx(1.6)
    assert tree["tpot_ms"]["p99"] == {"median": 15.0, "min": 10.0, "max": 20.0, "n": 2}
    assert (tree["prompts_unlike_plain"], tree["failed"]) == (1, 0)
    assert "| 0.5 | ddtree-8 | 15.0 (10.0-20.0) |" in table(lines)
    assert "| 2.00 (2.00-2.00) | 1.60 (1.60-1.60) | 0 |" in table(lines)
    json.dumps(lines, allow_nan=False)


def test_requests_that_failed_are_counted() -> None:
    (line,) = result_lines([Turn("plain", 1.0, 0, 4, record(9.0, completed=1))], {}, {})
    assert line["failed"] == 3
    assert line["tpot_ratios_of_turns"]["chain"] is None
    assert table([line]).endswith("| 1.00 (1.00-1.00) | - | 3 |")


def test_a_system_of_several_groups_is_one_curve() -> None:
    lines = [*result_lines(turns(plain=(10.0, 20.0)), {}, {}), *result_lines(turns(plain=(30.0,)), {}, {})]
    lines += result_lines(turns(rate=0.25, plain=(5.0,)), {}, {})
    assert at_rates(lines, "tpot_ms", "p50") == {
        0.25: {"median": 5.0, "min": 5.0, "max": 5.0},
        0.5: {"median": 22.5, "min": 10.0, "max": 30.0},
    }


def test_a_client_that_fails_shows_what_it_said(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"ended with status 3; the end of what it said:\n    no server here"):
        serving.ask_client([sys.executable, "-c", "print('no server here'); raise SystemExit(3)"], tmp_path, 60.0)
    with pytest.raises(ServerError, match="did not end within 1 s"):
        serving.ask_client([sys.executable, "-c", "import time; time.sleep(60)"], tmp_path, 1.0)


def test_prompts_are_written_as_sglangs_custom_set_reads_them(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    serving.write_prompts(["How many?", "two\nlines"], file)
    conversations = [json.loads(line)["conversations"] for line in file.read_text().splitlines()]
    assert [one[0]["content"] for one in conversations] == ["How many?", "two\nlines"]
    assert all(len(one) == 2 for one in conversations)


class Tokenizer:
    """Splits at spaces; `adds` is what it puts before every text."""

    bos_token, bos_token_id = "<s>", 1

    def __init__(self, *adds: int) -> None:
        self.adds = list(adds)

    def __call__(self, text: str) -> dict[str, list[int]]:
        return {"input_ids": [*self.adds, *(1 if word == "<s>" else 7 for word in text.split())]}


def test_what_begins_a_text_is_there_once_and_stays_elsewhere() -> None:
    assert serving.without_second_bos("<s> user hello <s> assistant", Tokenizer(1)) == " user hello <s> assistant"
    assert serving.without_second_bos("<s> user hello <s> assistant", Tokenizer()) == "<s> user hello <s> assistant"
    assert serving.without_second_bos("user hello", Tokenizer(1)) == "user hello"


def test_sglangs_client_would_take_the_beginning_of_turns_away() -> None:
    """Why the template is applied here: once this line is gone, its own flag may do."""
    custom = Path(SPEC.submodule_search_locations[0]) / "benchmark/datasets/custom.py"
    assert 'prompt = prompt.replace(tokenizer.bos_token, "")' in custom.read_text(encoding="utf-8")
