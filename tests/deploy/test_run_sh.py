"""`deploy/run.sh` end to end, with a fake server for SGLang: flags, progress, exit status, no orphans."""

from __future__ import annotations

import os
import signal
import socket
import time
from pathlib import Path

import pytest

from tests.deploy.fake_checkout import PATIENCE_S, Checkout, alive, wait_for


def read_until(process, text: str, timeout_s: float = PATIENCE_S) -> str:
    """Output up to the line that holds `text`."""
    seen = ""
    deadline = time.monotonic() + timeout_s
    while text not in seen:
        line = process.stdout.readline()
        assert line or process.poll() is None, f"ended before {text!r}: {seen}"
        assert time.monotonic() < deadline, f"waited in vain for {text!r}: {seen}"
        seen += line
    return seen


@pytest.mark.slow
def test_once_answers_compares_and_ends_with_status_0(checkout: Checkout) -> None:
    status, output = checkout.run("--once", "Why is the sky blue?")
    assert status == 0, output
    assert "> Why is the sky blue?" in output
    assert "The sky is blue" in output
    assert "accept length 2.50" in output
    assert "plain decoding" in output
    assert "identical" in output
    assert checkout.no_server_left()


def test_server_flags_are_the_ones_asked_for(checkout: Checkout) -> None:
    model = str(checkout.root / "model")
    flags = ("--model", model, "--draft", model, "--budget", "12", "--dtype", "bfloat16")
    status, output = checkout.run("--once", "hi", "--no-baseline", *flags)
    assert status == 0, output
    launches = [line for line in checkout.calls.splitlines() if "launch_server" in line]
    assert len(launches) == 1, "without a baseline there is one server"
    for part in (
        f"--model-path {model}",
        f"--speculative-draft-model-path {model}",
        "--speculative-algorithm DDTREE",
        "--speculative-ddtree-budget 12",
        "--dtype bfloat16",
        "--host 127.0.0.1",
        f"--port {checkout.port}",
    ):
        assert part in launches[0]


def test_run_from_a_folder_with_a_deploy_of_its_own_takes_paths_relative_to_it(
    checkout: Checkout, tmp_path: Path
) -> None:
    theirs = tmp_path / "theirs"
    for name in ("deploy", "mine", "drafter"):
        (theirs / name).mkdir(parents=True)
    for name in ("deploy/__init__.py", "deploy/serve_demo.py", "argparse.py"):
        (theirs / name).write_text("raise SystemExit('not ours')")
    for name in ("mine", "drafter"):
        (theirs / name / "config.json").write_text("{}")
    flags = ("--once", "hi", "--no-baseline", "--model", "mine", "--draft", "./drafter")
    status, output = checkout.run(*flags, folder=theirs)
    assert status == 0, output
    (launch,) = [line for line in checkout.calls.splitlines() if "launch_server" in line]
    assert launch.startswith("-P -m sglang.launch_server "), "nor does the server import from there"
    assert f"--model-path {theirs}/mine " in launch
    assert f"--speculative-draft-model-path {theirs}/drafter " in launch


@pytest.mark.parametrize(("given", "left"), [(None, "unset"), ("/users/own", "/users/own")])
def test_checkout_is_on_no_path_of_what_run_sh_starts(checkout: Checkout, given: str | None, left: str) -> None:
    if given is None:
        checkout.without = ("PYTHONPATH",)
    else:
        checkout.environment["PYTHONPATH"] = given
    status, output = checkout.run("--once", "hi", "--no-baseline")
    assert status == 0, output
    assert checkout.python_paths == {left}


@pytest.mark.slow
def test_plain_server_gets_the_same_flags_without_speculation(checkout: Checkout) -> None:
    checkout.run("--once", "hi")
    tree, plain = [line for line in checkout.calls.splitlines() if "launch_server" in line]
    speculative = ("--speculative-algorithm DDTREE", f"--speculative-draft-model-path {checkout.root}/model")
    # Without a GPU the demo's tree is the one that was measured fastest there.
    for value in (*speculative, "--speculative-ddtree-budget 8"):
        assert value in tree
        tree = tree.replace(f" {value}", "")
    port = plain.split("--port ")[1].split()[0]
    assert plain.replace(port, str(checkout.port)) == tree


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--port", "0"), "--port must be between 1 and 65535, got 0"),
        (("--budget", "0"), "--budget must be at least 1, got 0"),
        (("--max-tokens", "0"), "--max-tokens must be at least 1, got 0"),
        (("--model", "/nowhere", "--draft", "/nowhere"), "--model must be a folder with a config.json"),
        (("--model", "/nowhere"), "--model needs --draft"),
        (("--no-such-flag",), "unrecognized arguments"),
    ],
)
def test_bad_flag_is_refused_before_anything_loads(checkout: Checkout, flags: tuple[str, ...], reason: str) -> None:
    status, output = checkout.run(*flags)
    assert status == 2
    assert reason in output
    assert checkout.calls == ""


def test_port_in_use_is_refused_before_anything_loads(checkout: Checkout) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", checkout.port))
        holder.listen()
        status, output = checkout.run("--once", "hi")
    assert status == 2
    assert f"port {checkout.port} on 127.0.0.1 is in use" in output
    assert "--port" in output
    assert checkout.calls == ""


def test_server_death_during_start_shows_its_log_and_status_1(checkout: Checkout) -> None:
    checkout.environment["FAKE_MODE"] = "die"
    status, output = checkout.run("--once", "hi")
    assert status == 1
    assert "CUDA is out of cheese" in output
    assert checkout.server_pids, "the fake server must have been started"
    wait_for(checkout.no_server_left, "the server's own child is gone too")


def test_server_death_while_serving_ends_with_status_1(checkout: Checkout) -> None:
    checkout.environment["FAKE_MODE"] = "die-later"
    status, output = checkout.run("--no-baseline")
    assert status == 1
    assert "Serving at" in output
    assert "ended with status 9" in output
    wait_for(checkout.no_server_left, "the server's own child is gone too")


@pytest.mark.slow
def test_different_answers_in_float32_fail(checkout: Checkout) -> None:
    checkout.environment["FAKE_MODE"] = "differ"
    status, output = checkout.run("--once", "hi", "--dtype", "float32")
    assert status == 1
    assert "DIFFER" in output


def test_ctrl_c_while_loading_stops_the_server(checkout: Checkout) -> None:
    checkout.environment["FAKE_MODE"] = "slow"
    process = checkout.start("--once", "hi")
    wait_for(lambda: len(checkout.server_pids) == 2, "the server starts")
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 130
    assert checkout.no_server_left()


def test_ctrl_c_while_serving_stops_the_server_with_status_0(checkout: Checkout) -> None:
    process = checkout.start("--no-baseline")
    read_until(process, "Serving at")
    assert not checkout.no_server_left()
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(timeout=PATIENCE_S) == 0
    assert checkout.no_server_left()


def test_kill_9_of_run_sh_leaves_no_server(checkout: Checkout) -> None:
    process = checkout.start("--no-baseline")
    read_until(process, "Serving at")
    server = checkout.server_pids[0]
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=PATIENCE_S)
    wait_for(lambda: not alive(server), "the server follows its parent")
