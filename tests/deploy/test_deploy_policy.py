"""What holds for every deployment file: clean YAML, one version, no open door, no secret, and a README that agrees."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from yamllint import linter
from yamllint.config import YamlLintConfig

from tests.deploy import deploy_files
from tests.deploy.fake_checkout import REPO

LINT = YamlLintConfig((Path(__file__).parent / "yamllint.yaml").read_text(encoding="utf-8"))
TEXTS = [
    path
    for path in sorted(deploy_files.DEPLOY.rglob("*"))
    if path.is_file() and path.suffix not in {".py", ".pyc"} and "secrets" not in path.parts
]
CLUSTERS = ("ray/cluster-onprem.yaml", "ray/cluster-aws.yaml")
FORBIDDEN = {
    "an image that changes under its name": r":latest\b",
    "code that came with a model": r"trust[-_]remote[-_]code",
    "code that came with a request": r"enable[-_]custom[-_]logit[-_]processor",
    "the host's namespaces": r"\bhost(Network|IPC|PID): true|--(ipc|pid|network)[= ]host|\bipc: host",
    "all privileges": r"privileged: true|--privileged",
    "an authentication that is off": r"RAY_AUTH_MODE=disabled|mode: disabled|ANONYMOUS_ENABLED: \"?true",
    "a key": r"(?i)(api[-_]key|password|token)[\"']?[:=] *[\"']?[A-Za-z0-9+/]{20,}",
    "a key of a known kind": r"-----BEGIN|\bAKIA[0-9A-Z]{16}|\bhf_\w{20,}",
    "the usual password": r"(?i)password[^\n]*\b(admin|changeme|password)$",
    "a path of somebody's machine": r"/(root|Users|home/(?!ddtree\b)\w+)/",
    "a server for everybody": r"dashboard-host=0\.0\.0\.0",
}


def lint_problems(text: str) -> list[str]:
    return [f"{problem.line}: {problem.message}" for problem in linter.run(text, LINT)]


def policy_problems(text: str) -> list[str]:
    return [what for what, pattern in FORBIDDEN.items() if re.search(pattern, text, re.MULTILINE)]


@pytest.mark.parametrize("path", deploy_files.YAML_FILES, ids=lambda path: str(path.relative_to(deploy_files.DEPLOY)))
def test_yamllint_has_nothing_to_say(path: Path) -> None:
    assert lint_problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: 1\na: 2\n", "duplication"),
        ("a:\n   b: 1\n  c: 2\n", "syntax error"),
        ("a: 1 \n", "trailing spaces"),
        ("a: yes\n", "truthy"),
        ("a: &x 1\nb: *y\n", "undeclared alias"),
        (f"a: {'b ' * 80}\n", "line too long"),
    ],
)
def test_yamllint_finds_a_mistake(text: str, reason: str) -> None:
    assert reason in " ".join(lint_problems(text))


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: str(path.relative_to(deploy_files.DEPLOY)))
def test_file_opens_no_door_and_holds_no_secret(path: Path) -> None:
    assert policy_problems(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "text",
    [
        "image: prom/prometheus:latest",
        "--trust-remote-code",
        "  hostIPC: true",
        "docker run --ipc=host",
        "privileged: true",
        "RAY_AUTH_MODE=disabled",
        "  mode: disabled",
        'GF_AUTH_ANONYMOUS_ENABLED: "true"',
        "--api-key=0123456789abcdef0123456789abcdef",
        "api-key: 'c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0'",
        "GF_SECURITY_ADMIN_PASSWORD: admin",
        "source: /root/models",
        "source: /home/somebody/models",
        "ray start --head --dashboard-host=0.0.0.0",
    ],
)
def test_open_door_or_secret_is_found(text: str) -> None:
    assert policy_problems(text)


def test_image_is_named_the_same_everywhere_with_both_versions() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    expected = f"{project['version']}-sglang{deploy_files.pinned_version('sglang')}"
    naming = {
        str(path.relative_to(deploy_files.DEPLOY)): set(
            re.findall(r"\b\d+\.\d+\.\d+-sglang\d+\.\d+\.\d+\b", path.read_text())
        )
        for path in TEXTS
    }
    must = {"docker/Dockerfile", "docker/compose.yaml", "k8s/base/kustomization.yaml", *CLUSTERS}
    assert [name for name in must if not naming[name]] == []
    assert {version for versions in naming.values() for version in versions} == {expected}


def test_readme_names_what_exists_and_all_of_it() -> None:
    text = (deploy_files.DEPLOY / "README.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])]
    assert [name for name in named if not (deploy_files.DEPLOY / name).exists()] == []
    folders = {path.parent.relative_to(deploy_files.DEPLOY).parts[0] for path in deploy_files.YAML_FILES}
    assert folders == {name.split("/")[0] for name in named if "/" in name}


def test_readme_counts_the_alerts() -> None:
    words = ["no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    alerts = (deploy_files.MONITORING / "rules.yml").read_text(encoding="utf-8").count("- alert: ")
    assert f"{words[alerts]} alerts" in (deploy_files.DEPLOY / "README.md").read_text(encoding="utf-8")
