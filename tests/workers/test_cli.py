"""The command line up to Ray: flags over a file, and what is refused."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from ddtree_sglang.demo.drafter import CPU_BUDGET
from deploy.serve_demo import CPU_BUDGET as BUDGET_OF_RUN_SH
from workers import cli


def parsed(*argv: str) -> Any:
    return cli.worker_config(cli.build_parser().parse_args(["serve", *argv]))


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"model": "m", "draft": "d", "tp_size": 2, "ddtree": {"top_k": 4}, "max_replicas": 5}))
    config = parsed("--config", str(path), "--model", "other", "--budget", "7", "--replicas", "2")
    assert (config.model, config.draft, config.tp_size) == ("other", "d", 2)
    assert config.ddtree == {"top_k": 4, "budget": 7}
    assert (config.min_replicas, config.max_replicas) == (2, 2)


def test_demo_without_a_gpu_uses_the_tree_that_was_measured_fastest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddtree_sglang.demo.prepare.prepare_model", lambda: Path("m"))
    monkeypatch.setattr("ddtree_sglang.cpu_platform.activate", lambda: "the CPU platform")
    assert parsed("--demo").ddtree == {"budget": CPU_BUDGET}
    assert CPU_BUDGET == BUDGET_OF_RUN_SH
    assert parsed("--demo", "--budget", "3").ddtree == {"budget": 3}
    # A chain has no budget, and the nodes of another cluster are not this machine.
    assert parsed("--demo", "--algorithm", "DFLASH").ddtree == {}
    assert parsed("--demo", "--address", "cluster:6379").ddtree == {}
    monkeypatch.setattr("ddtree_sglang.cpu_platform.activate", lambda: None)
    assert parsed("--demo").ddtree == {}


def test_a_demo_and_a_file_are_refused_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each names a model: values of both would serve one under the other's name."""
    (tmp_path / "workers.json").write_text('{"model": "m", "draft": "d"}')
    assert cli.main(["serve", "--demo", "--config", str(tmp_path / "workers.json")]) == 2
    assert "--demo and --config both name a model" in capsys.readouterr().err


def test_a_demo_that_is_not_installed_ends_with_one_line_and_status_2(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("ddtree_sglang.demo.prepare.prepare_model", lambda: Path("m"))
    monkeypatch.setattr("ddtree_sglang.demo.drafter.DRAFTER_FOLDER", tmp_path)
    assert cli.main(["serve", "--demo"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("error: the demo needs the weights of its drafter")
    assert message.count("\n") == 1


def test_bad_values_end_with_one_line_and_status_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert cli.main(["serve", "--model", "m"]) == 2
    assert "needs a drafter" in capsys.readouterr().err
    assert cli.main(["serve", "--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml" in capsys.readouterr().err


def test_key_in_the_environment_is_required_of_the_ingress_and_an_open_address_needs_one() -> None:
    config = parsed("--model", "m", "--draft", "d")
    assert config.api_key_env is None
    assert cli.with_required_api_key(config, "127.0.0.1", {}).api_key_env is None
    with_key = cli.with_required_api_key(config, "0.0.0.0", {"DDTREE_API_KEY": "k"})
    assert with_key.api_key_env == "DDTREE_API_KEY"
    with pytest.raises(ValueError, match=r"must be a loopback address unless an API key is set, got 0\.0\.0\.0"):
        cli.with_required_api_key(config, "0.0.0.0", {})


@pytest.mark.parametrize(
    ("flags", "variables", "seen"),
    [
        ([], {}, ["local settings", "auto"]),
        (["--address", "auto"], {}, ["auto"]),
        ([], {"RAY_ADDRESS": "node:6379"}, ["node:6379"]),
    ],
)
def test_status_asks_the_local_cluster_as_that_was_started(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    variables: dict[str, str],
    seen: list[str],
) -> None:
    """Without its settings Ray looks at another address, and without the token it waits without end."""
    done: list[str] = []

    def connect(address: str) -> None:
        done.append(address)
        raise ConnectionError("nothing runs")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("workers.cluster.local.prepare_environment", lambda: done.append("local settings"))
    monkeypatch.setattr("workers.cluster.local.connect", connect)
    assert cli.main(["status", *flags]) == 2
    assert "needs a running Ray cluster, found none: nothing runs" in capsys.readouterr().err
    assert done == seen


def test_other_peoples_applications_survive_the_end_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    monkeypatch.setattr("ray.serve.shutdown", lambda: done.append("shutdown"))
    monkeypatch.setattr("ray.serve.delete", lambda name: done.append(f"delete {name}"))
    monkeypatch.setattr("ray.shutdown", lambda: done.append("disconnect"))
    cli._shut_down(is_own=False, deployed=True)
    assert done == ["delete ddtree", "disconnect"]
    cli._shut_down(is_own=True, deployed=True)
    assert done[2:] == ["shutdown", "disconnect"]
    # Stopped before anything was deployed: the application of that name is an earlier one's.
    cli._shut_down(is_own=False, deployed=False)
    assert done[4:] == ["disconnect"]


def test_without_an_address_ray_is_started_here_and_with_one_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[object] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("workers.cluster.local.connect", lambda address: seen.append(address))
    monkeypatch.setattr("workers.cluster.local.start_local_cluster", lambda cpus: seen.append(cpus))
    parser = cli.build_parser()
    assert cli._connect(parser.parse_args(["serve", "--local-cpus", "3"]))
    assert not cli._connect(parser.parse_args(["serve", "--address", "auto"]))
    monkeypatch.setenv("RAY_ADDRESS", "node:6379")
    assert not cli._connect(parser.parse_args(["serve"]))
    assert seen == [3.0, "auto", "node:6379"]


@pytest.mark.parametrize("key_variable", [None, "DDTREE_API_KEY"])
def test_the_command_that_is_printed_asks_the_server(key_variable: str | None) -> None:
    config = parsed("--model", "m", "--draft", "d").model_copy(update={"api_key_env": key_variable})
    words = shlex.split(cli.ready_message(config, "127.0.0.1", 8000).split("\n", 1)[1].replace("\\\n", " "))
    assert words[:3] == ["curl", "-N", "http://127.0.0.1:8000/v1/chat/completions"]
    assert json.loads(words[-1])["model"] == "m"
    asked = [word for word in words if word.startswith("Authorization")]
    assert asked == (["Authorization: Bearer $DDTREE_API_KEY"] if key_variable else [])


def test_what_a_file_leaves_out_stays_a_default(tmp_path: Path) -> None:
    """A number of requests that is named is a promise, so a default must not look as if the user had given it."""
    file = tmp_path / "workers.json"
    file.write_text('{"model": "m", "draft": "d"}')
    assert "max_running_requests" not in parsed("--config", str(file)).model_fields_set
    assert "max_running_requests" in parsed("--config", str(file), "--max-running-requests", "16").model_fields_set
