"""`deploy/docker`: hadolint, compose's own parser, the start script with a fake Python, every flag with its parser."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy import deploy_files, flag_parsers
from tests.deploy.fake_checkout import REPO

DOCKERFILE = deploy_files.DOCKER / "Dockerfile"
COMPOSE = deploy_files.DOCKER / "compose.yaml"
SERVE = deploy_files.DOCKER / "ddtree-serve.sh"
GOOD_KEY, GOOD_ADMIN_KEY = "0123456789abcdef", "fedcba9876543210"
FAKE_PYTHON = """#!/usr/bin/env bash
# Stands in for python3: keeps its arguments and the configuration file that they name.
printf '%s\\n' "$@" >"{folder}/arguments"
while (($#)); do if [[ "$1" == --config ]]; then cp -p "$2" "{folder}/config.yaml"; fi; shift; done
"""


def docker_instructions(text: str) -> list[tuple[str, str]]:
    """Instructions of a Dockerfile with their arguments, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in joined.splitlines())]


def argument_of(instruction: str, text: str) -> str:
    return [rest for word, rest in docker_instructions(text) if word == instruction][-1]


def dockerfile_problems(text: str) -> list[str]:
    """This repository's own rules: what hadolint does not look for."""
    problems = []
    if not re.search(r"FROM lmsysorg/sglang:\$\{SGLANG_TAG\}\$\{SGLANG_DIGEST:\+@\$\{SGLANG_DIGEST\}\}", text):
        problems.append("the base image is SGLang's, by tag and digest")
    if not re.search(r"^USER [1-9]\d+$", text, re.MULTILINE):
        problems.append("the user is a number and not root's")
    if "/health_generate" not in argument_of("HEALTHCHECK", text):
        problems.append("health is a generated token")
    if f"ARG SGLANG_TAG=v{deploy_files.pinned_version('sglang')}\n" not in text:
        problems.append("the base image is not of the pinned SGLang")
    if f'"ray[serve]=={deploy_files.pinned_version("ray")}"' not in text:
        problems.append("Ray is not the pinned one")
    installed = re.search(r"apt-get install (.*)", text)
    if installed is None or not {"openssh-client", "rsync"} <= set(installed[1].split()):
        problems.append("`ray up` needs rsync and ssh in the container (ray/autoscaler/_private/command_runner.py)")
    for word, rest in docker_instructions(text):
        if word == "COPY":
            sources = [part for part in rest.split()[:-1] if not part.startswith("--")]
            problems += [f"COPY: no {source}" for source in sources if not (REPO / source).exists()]
    return problems


def compose_problems(config: dict[str, Any]) -> list[str]:
    """Doors that a compose file may not open."""
    problems = []
    for name, service in config["services"].items():
        image = service["image"]
        if ":" not in image or image.endswith(":latest"):
            problems.append(f"{name}: image {image} has no version")
        problems += [
            f"{name}: {port} is public" for port in service.get("ports", []) if not str(port).startswith("127.0.0.1:")
        ]
        problems += [
            f"{name}: {key}" for key in ("privileged", "network_mode", "ipc", "pid", "userns_mode") if key in service
        ]
        if service.get("cap_drop") != ["ALL"] or "no-new-privileges:true" not in service.get("security_opt", []):
            problems.append(f"{name}: privileges can be gained")
        for path, value in deploy_files.walk({"environment": service.get("environment", {})}):
            if re.search(r"PASSWORD|TOKEN|KEY|SECRET", path) and not str(value).startswith("/run/secrets/"):
                problems.append(f"{name}: {path} is no file of a secret")
        problems += [
            f"{name}: unknown secret {secret}"
            for secret in service.get("secrets", [])
            if secret not in config["secrets"]
        ]
    return problems


def run_compose(path: Path, **environment: str) -> tuple[int, str]:
    """`docker compose config`, with the compose binary itself; needs no Docker."""
    tool = deploy_files.find_tool("docker-compose")
    return deploy_files.run_tool([tool, "-f", str(path), "config"], **environment)


def run_hadolint(path: Path) -> tuple[int, str]:
    return deploy_files.run_tool([deploy_files.find_tool("hadolint"), "--no-color", str(path)])


def test_hadolint_has_nothing_to_say() -> None:
    status, output = run_hadolint(DOCKERFILE)
    assert (status, output) == (0, "")


@pytest.mark.parametrize(
    ("old", "new", "rule"),
    [
        ("WORKDIR /opt/ddtree", "WORKDIR opt/ddtree", "DL3000"),
        ('"ray[serve]==2.60.0"', '"ray[serve]"', "DL3013"),
        ("pip install --no-cache-dir", "pip install", "DL3042"),
        ("USER 10001\n", "USER root\n", "DL3002"),
        ('CMD ["ddtree-serve",', 'CMD ["ddtree-serve"', "DL1000|DL3025|unexpected"),
        ("COPY workers", "COPPY workers", "unexpected"),
    ],
)
def test_hadolint_finds_a_mistake(tmp_path: Path, old: str, new: str, rule: str) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text(deploy_files.changed(DOCKERFILE, old, new), encoding="utf-8")
    status, output = run_hadolint(broken)
    assert status != 0
    assert re.search(rule, output), output


def test_dockerfile_keeps_our_rules() -> None:
    assert dockerfile_problems(DOCKERFILE.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("SGLANG_TAG=v0.5.23", "SGLANG_TAG=latest", "pinned SGLang"),
        ("lmsysorg/sglang:", "someone/sglang:", "base image"),
        ("ray[serve]==2.60.0", "ray[serve]==2.59.0", "Ray"),
        ("USER 10001", "USER ddtree", "number"),
        ("/health_generate", "/health", "generated token"),
        ("COPY workers", "COPY worker", "no worker"),
        (" openssh-client rsync", " rsync", "rsync and ssh"),
        (" openssh-client rsync", " openssh-client", "rsync and ssh"),
    ],
)
def test_our_rules_find_a_mistake(old: str, new: str, reason: str) -> None:
    assert reason in " ".join(dockerfile_problems(deploy_files.changed(DOCKERFILE, old, new)))


def test_builder_gets_only_what_is_copied() -> None:
    """An ignore file that forgets a source breaks the build; one that forgets nothing would send keys."""
    lines = (deploy_files.DOCKER / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    allowed = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        part
        for word, rest in docker_instructions(DOCKERFILE.read_text(encoding="utf-8"))
        if word == "COPY"
        for part in rest.split()[:-1]
        if not part.startswith("--")
    }
    assert "*" in lines
    assert allowed == copied


def test_compose_accepts_the_file() -> None:
    status, output = run_compose(COMPOSE, DDTREE_MODELS="/models")
    assert status == 0, output
    assert set(yaml.safe_load(output)["services"]) == {"server", "prometheus", "grafana"}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("    command:", "    comand:", "comand"),
        ("shm_size: 16gb", "shm_size: 16gigs", "shm_size|suffix|size"),
        ("      - ddtree_api_key\n", "      - ddtree_key\n", "ddtree_key"),
        ("      - prometheus\n", "      - prometeus\n", "prometeus"),
        ("127.0.0.1:3000:3000", "127.0.0.1:3000:http", "http"),
    ],
)
def test_compose_refuses_a_mistake(tmp_path: Path, old: str, new: str, reason: str) -> None:
    broken = tmp_path / "compose.yaml"
    broken.write_text(deploy_files.changed(COMPOSE, old, new), encoding="utf-8")
    status, output = run_compose(broken, DDTREE_MODELS="/models")
    assert status != 0
    assert re.search(reason, output), output


def test_compose_asks_for_the_models() -> None:
    status, output = run_compose(COMPOSE, DDTREE_MODELS="")
    assert status != 0
    assert "DDTREE_MODELS" in output


def test_compose_file_opens_no_door() -> None:
    assert compose_problems(deploy_files.load_yaml(COMPOSE)) == []


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("127.0.0.1:9090:9090", "9090:9090", "public"),
        ("127.0.0.1:30000:30000", "0.0.0.0:30000:30000", "public"),
        ("grafana/grafana:12.1.0", "grafana/grafana:latest", "no version"),
        ("grafana/grafana:12.1.0", "grafana/grafana", "no version"),
        ("shm_size: 16gb", "ipc: host", "ipc"),
        ("cap_drop: [ALL]", "cap_drop: [NET_RAW]", "privileges"),
        ("PASSWORD__FILE: /run/secrets/grafana_admin_password", "PASSWORD: admin", "no file of a secret"),
    ],
)
def test_open_door_is_found(old: str, new: str, reason: str) -> None:
    assert reason in " ".join(compose_problems(yaml.safe_load(deploy_files.changed(COMPOSE, old, new))))


def test_mounted_files_exist() -> None:
    config = deploy_files.load_yaml(COMPOSE)
    mounts = [
        volume for service in config["services"].values() for volume in service["volumes"] if isinstance(volume, str)
    ]
    paths = [mount.split(":")[0] for mount in mounts if mount.startswith(".")]
    assert paths
    assert [path for path in paths if not (deploy_files.DOCKER / path).exists()] == []
    ignored = (REPO / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert "deploy/docker/secrets/" in ignored


def server_commands() -> dict[str, list[str]]:
    """Every command line of ours that ends in SGLang's parser, without its first word."""
    compose = deploy_files.load_yaml(COMPOSE)["services"]["server"]["command"]
    commands = {
        "Dockerfile": json.loads(argument_of("CMD", DOCKERFILE.read_text(encoding="utf-8"))),
        "compose": compose,
    }
    assert {command[0] for command in commands.values()} == {"ddtree-serve"}
    return {name: command[1:] for name, command in commands.items()}


@pytest.mark.sglang
@pytest.mark.parametrize("name", ["Dockerfile", "compose"])
def test_server_flags_are_real(name: str) -> None:
    flags = server_commands()[name]
    assert flag_parsers.sglang_problems(flags) == []
    arguments = flag_parsers.sglang_parser().parse_args(flags)
    assert (arguments.port, arguments.enable_metrics) == (30000, True), "what HEALTHCHECK and Prometheus ask for"
    assert arguments.speculative_algorithm == "DDTREE"


@pytest.mark.sglang
@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("--speculative-ddtree-budget", "--speculative-ddtree-buget", "--speculative-ddtree-buget"),
        ("--enable-metrics", "--enable-metric", "--enable-metric"),
        ("--port", "--prt", "--prt"),
        ("30000", "thirty", "thirty"),
        ("DDTREE", "DDTRE", "DDTRE"),
        ("--enable-metrics", "--trust-remote-code", "trust_remote_code"),
    ],
)
def test_wrong_server_flag_is_found(old: str, new: str, reason: str) -> None:
    flags = [flag.replace(old, new) for flag in server_commands()["Dockerfile"]]
    assert reason in " ".join(flag_parsers.sglang_problems(flags))


@pytest.mark.sglang
@pytest.mark.parametrize("document", ["README.md", "deploy/README.md", "ddtree_sglang/docs/operating.md"])
def test_server_flags_in_the_documentation_are_real(document: str) -> None:
    text = (REPO / document).read_text(encoding="utf-8").replace("\\\n", " ")
    for command in re.findall(r"python -m sglang\.launch_server (.+)", text):
        assert flag_parsers.sglang_problems(shlex.split(command)) == [], command


def test_prometheus_flags_are_real() -> None:
    prometheus = shutil.which("prometheus")
    if prometheus is None:
        pytest.skip("prometheus is not installed (Debian has it; no package does)")
    _, usage = deploy_files.run_tool([prometheus, "--help"])
    flags = [flag.partition("=")[0] for flag in deploy_files.load_yaml(COMPOSE)["services"]["prometheus"]["command"]]
    assert [flag for flag in flags if f"{flag}=" not in usage] == []


class Start:
    """A run of `ddtree-serve` with a folder of keys and a fake Python."""

    def __init__(self, folder: Path, api_key: str | None, admin_key: str | None) -> None:
        for name, key in (("ddtree_api_key", api_key), ("ddtree_admin_api_key", admin_key)):
            if key is not None:
                (folder / name).write_text(key, encoding="utf-8")
        python = folder / "python3"
        python.write_text(FAKE_PYTHON.format(folder=folder), encoding="utf-8")
        python.chmod(0o755)
        self.folder = folder
        self.status, self.output = deploy_files.run_tool(
            ["bash", str(SERVE), "--model-path", "/models/target"],
            DDTREE_SECRETS=str(folder),
            PATH=f"{folder}{os.pathsep}{os.environ['PATH']}",
            TMPDIR=str(folder),
        )

    @property
    def arguments(self) -> list[str]:
        return (self.folder / "arguments").read_text(encoding="utf-8").splitlines()


def test_keys_travel_in_a_private_file_and_not_on_the_command_line(tmp_path: Path) -> None:
    start = Start(tmp_path, f"{GOOD_KEY}\n", GOOD_ADMIN_KEY)
    assert start.status == 0, start.output
    assert start.arguments[:3] == ["-m", "sglang.launch_server", "--config"]
    assert start.arguments[-2:] == ["--model-path", "/models/target"]
    assert not set(start.arguments) & {GOOD_KEY, GOOD_ADMIN_KEY}
    assert stat.S_IMODE((tmp_path / "config.yaml").stat().st_mode) == 0o600


@pytest.mark.sglang
def test_sglang_reads_both_keys_from_that_file(tmp_path: Path) -> None:
    from sglang.srt.utils.server_args_config_parser import ConfigArgumentMerger

    start = Start(tmp_path, GOOD_KEY, GOOD_ADMIN_KEY)
    parser = flag_parsers.sglang_parser()
    arguments = parser.parse_args(ConfigArgumentMerger(parser).merge_config_with_args(start.arguments[2:]))
    assert (arguments.api_key, arguments.admin_api_key) == (GOOD_KEY, GOOD_ADMIN_KEY)
    assert arguments.model_path == "/models/target"


@pytest.mark.parametrize(
    ("api_key", "admin_key", "reason"),
    [
        (None, GOOD_ADMIN_KEY, "must hold a key"),
        (GOOD_KEY, None, "must hold a key"),
        ("", GOOD_ADMIN_KEY, "at least 16"),
        ("short", GOOD_ADMIN_KEY, "at least 16"),
        ("-dash-first-0123456789", GOOD_ADMIN_KEY, "letter or digit first"),
        ('quote"0123456789abcdef', GOOD_ADMIN_KEY, "at least 16"),
        ("two lines\n0123456789abcdef", GOOD_ADMIN_KEY, "at least 16"),
        (GOOD_KEY, GOOD_KEY, "must not be the API key"),
    ],
)
def test_server_does_not_start_without_two_good_keys(
    tmp_path: Path, api_key: str | None, admin_key: str | None, reason: str
) -> None:
    start = Start(tmp_path, api_key, admin_key)
    assert start.status == 1
    assert reason in start.output
    assert not (tmp_path / "arguments").exists()
