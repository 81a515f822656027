"""`deploy/ray`: the launcher's YAML with Ray's own validation, `ray start` with its parser, the Serve configuration."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import deploy_files, flag_parsers, serve_config

CLUSTERS = [deploy_files.RAY / "cluster-onprem.yaml", deploy_files.RAY / "cluster-aws.yaml"]
SERVE = deploy_files.RAY / "serve-config.yaml"
START_COMMANDS = ("head_start_ray_commands", "worker_start_ray_commands")


def launcher_problems(config: dict[str, Any]) -> list[str]:
    """What Ray's launcher has against a cluster file; no machine is contacted."""
    import jsonschema
    from ray.autoscaler._private.util import prepare_config, validate_config

    try:
        validate_config(prepare_config(config))
    except (jsonschema.ValidationError, ValueError, AssertionError) as error:
        return [str(error)]
    return []


def start_problems(config: dict[str, Any]) -> list[str]:
    """Wrong flags of `ray start`, a public dashboard, a node without token authentication."""
    problems = []
    for key in START_COMMANDS:
        starts = [command for command in config[key] if command.startswith("ray start")]
        assert len(starts) == 1, f"{key} starts Ray once"
        problems += flag_parsers.ray_start_problems(shlex.split(starts[0])[2:])
        if "--head" in starts[0] and "--dashboard-host=127.0.0.1" not in starts[0]:
            problems.append("the dashboard must listen on 127.0.0.1")
    options = config["docker"]["run_options"]
    problems += [
        f"docker.run_options lacks {needed}"
        for needed in (
            "--env=RAY_AUTH_MODE=token",
            f"--env={serve_config.NOSET}=1",
            "--security-opt=no-new-privileges:true",
        )
        if needed not in options
    ]
    token = next(
        (option.partition("RAY_AUTH_TOKEN_PATH=")[2] for option in options if "RAY_AUTH_TOKEN_PATH=" in option), ""
    )
    if token not in config["file_mounts"]:
        problems.append(f"no file is mounted as the token, {token!r}")
    mounted = config["file_mounts"].get("/home/ddtree/serve-config.yaml", "")
    if not mounted or deploy_files.REPO / mounted != SERVE:
        problems.append("the Serve configuration is not copied to the nodes")
    # On EC2 the launcher makes a key of its own; elsewhere the head could not reach the workers without one.
    if config["provider"]["type"] == "local" and "ssh_private_key" not in config["auth"]:
        problems.append("the head gets no key for the workers")
    return problems


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_launcher_accepts_the_cluster_file(path: Path) -> None:
    assert launcher_problems(deploy_files.load_yaml(path)) == []


@pytest.mark.parametrize(
    ("path", "old", "new", "reason"),
    [
        (CLUSTERS[0], "max_workers:", "max_worker:", "max_worker"),
        (CLUSTERS[0], "  container_name:", "  container:", "container"),
        (CLUSTERS[0], "idle_timeout_minutes: 5", "idle_timeout_minutes: soon", "soon"),
        (CLUSTERS[1], "head_node_type: head", "head_node_type: boss", "head_node_type"),
        (CLUSTERS[1], "\nmax_workers: 2", "\nmax_workers: 1", "max_workers"),
        (CLUSTERS[1], "    min_workers: 2", "    min_worker: 2", "min_worker"),
    ],
)
def test_launcher_refuses_a_mistake(path: Path, old: str, new: str, reason: str) -> None:
    assert reason in " ".join(launcher_problems(yaml.safe_load(deploy_files.changed(path, old, new))))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_nodes_start_with_real_flags_a_token_and_a_private_dashboard(path: Path) -> None:
    assert start_problems(deploy_files.load_yaml(path)) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("--metrics-export-port", "--metric-export-port", "--metric-export-port"),
        ("--port=6379", "--port=redis", "redis"),
        ("--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0", "dashboard"),
        ("RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled", "RAY_AUTH_MODE"),
        (f"{serve_config.NOSET}=1", f"{serve_config.NOSET}=0", serve_config.NOSET),
        ("/.ray/auth_token: ", "/.ray/auth_tokens: ", "token"),
    ],
)
@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_wrong_flag_or_open_door_is_found(path: Path, old: str, new: str, reason: str) -> None:
    assert reason in " ".join(start_problems(yaml.safe_load(deploy_files.changed(path, old, new))))


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_serve_configuration_that_is_not_copied_is_found(path: Path) -> None:
    broken = deploy_files.changed(path, ": deploy/ray/serve-config.yaml", ": deploy/serve-config.yaml")
    assert "not copied" in " ".join(start_problems(yaml.safe_load(broken)))


def test_head_without_a_key_for_its_workers_is_found() -> None:
    broken = deploy_files.changed(CLUSTERS[0], "ssh_private_key", "ssh_proxy_command")
    assert "no key" in " ".join(start_problems(yaml.safe_load(broken)))


def test_metrics_port_is_the_one_that_is_scraped() -> None:
    """KubeRay's default too, so that one PodMonitor and one firewall rule fit both."""
    for path in CLUSTERS:
        assert path.read_text(encoding="utf-8").count("--metrics-export-port=8080") == len(START_COMMANDS)


@pytest.mark.parametrize("path", CLUSTERS, ids=lambda path: path.name)
def test_ray_commands_in_the_comments_exist(path: Path) -> None:
    words = re.findall(r"\bray ([a-z][a-z-]+) (?:deploy/|--)", path.read_text(encoding="utf-8"))
    assert {"up", "dashboard", "get-auth-token", "start"} <= set(words)
    assert set(words) <= flag_parsers.ray_commands()


@pytest.mark.parametrize("path", [*CLUSTERS, SERVE], ids=lambda path: path.name)
def test_ray_version_named_is_the_pinned_one(path: Path) -> None:
    named = set(re.findall(r"Ray (\d+\.\d+\.\d+)", path.read_text(encoding="utf-8")))
    assert named <= {deploy_files.pinned_version("ray")}


def test_serve_accepts_the_configuration_and_no_key_is_unknown() -> None:
    assert serve_config.serve_problems(deploy_files.load_yaml(SERVE)) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("    import_path:", "    import_pth:", "import_path"),
        ("proxy_location:", "proxy_locations:", "unknown key proxy_locations"),
        ("    route_prefix:", "    route_prefx:", "unknown key applications.route_prefx"),
        ("  request_timeout_s:", "  request_timeout:", "unknown key http_options.request_timeout"),
        ("proxy_location: HeadOnly", "proxy_location: HeadNode", "proxy_location"),
        ("workers.app:build_app", "workers.app:build", "import_path must be"),
        (f'{serve_config.NOSET}: "1"', f'{serve_config.NOSET}: "0"', serve_config.NOSET),
        ("request_timeout_s: 660", "request_timeout_s: 60", "request_deadline_s"),
        ("  log_level: INFO", "  log_levl: INFO", "log_levl"),
    ],
)
def test_serve_configuration_with_a_mistake_is_refused(old: str, new: str, reason: str) -> None:
    problems = serve_config.serve_problems(yaml.safe_load(deploy_files.changed(SERVE, old, new)))
    assert reason in " ".join(problems)


def test_serve_listens_on_loopback_of_the_head_only() -> None:
    config = deploy_files.load_yaml(SERVE)
    assert (config["http_options"]["host"], config["proxy_location"]) == ("127.0.0.1", "HeadOnly")


def arguments_of(text: str) -> dict[str, Any]:
    return dict(yaml.safe_load(text)["applications"][0]["args"])


def test_worker_configuration_is_valid() -> None:
    pytest.importorskip("workers.config", reason="the Ray workers are not in this tree")
    assert serve_config.worker_config_problems(arguments_of(SERVE.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("tp_size:", "tp:"),
        ("tp_size: 8", "tp_size: many"),
        ("algorithm: DDTREE", "algorithm: TREE"),
        ("device: cuda", "device: gpu"),
    ],
)
def test_worker_configuration_with_a_mistake_is_refused(old: str, new: str) -> None:
    pytest.importorskip("workers.config", reason="the Ray workers are not in this tree")
    assert serve_config.worker_config_problems(arguments_of(deploy_files.changed(SERVE, old, new)))


@pytest.mark.sglang
def test_engine_arguments_are_sglangs_and_the_tree_is_valid() -> None:
    assert serve_config.engine_problems(arguments_of(SERVE.read_text(encoding="utf-8"))) == []


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("mem_fraction_static:", "mem_fraction:", "mem_fraction is no argument"),
        ("context_length: 32768", "trust_remote_code: true", "trust_remote_code"),
        ("policy: load", "policy: clever", "clever"),
        ("budget: 16", "budgets: 16", "budgets"),
    ],
)
def test_wrong_engine_argument_or_tree_is_found(old: str, new: str, reason: str) -> None:
    problems = serve_config.engine_problems(arguments_of(deploy_files.changed(SERVE, old, new)))
    assert reason in " ".join(problems)
