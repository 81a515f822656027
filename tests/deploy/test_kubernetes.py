"""`deploy/k8s`: rendered by kubectl, checked against schemas with unknown keys forbidden, and against each other."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import yaml

from tests.deploy import deploy_files, kubernetes_checks, serve_config

RENDERED = ["base", "overlays/h200", "overlays/dev"]
SERVICE = "base/rayservice.yaml"


def checked(folder: Path) -> list[str]:
    """Problems of a folder, whichever step finds them."""
    try:
        manifests = kubernetes_checks.render(folder)
    except ValueError as error:
        return [str(error)]
    return kubernetes_checks.all_problems(manifests)


@pytest.mark.parametrize("name", RENDERED)
def test_manifests_are_valid_and_agree(name: str) -> None:
    assert checked(deploy_files.K8S / name) == []


@pytest.mark.parametrize("name", RENDERED)
def test_worker_configuration_is_valid(name: str) -> None:
    pytest.importorskip("workers.config", reason="the Ray workers are not in this tree")
    config = kubernetes_checks.serve_configuration(kubernetes_checks.render(deploy_files.K8S / name))
    assert serve_config.worker_config_problems(config["applications"][0]["args"]) == []


@pytest.mark.sglang
@pytest.mark.parametrize("name", RENDERED)
def test_engine_arguments_are_sglangs_and_the_tree_is_valid(name: str) -> None:
    config = kubernetes_checks.serve_configuration(kubernetes_checks.render(deploy_files.K8S / name))
    assert serve_config.engine_problems(config["applications"][0]["args"]) == []


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        # The RayService itself.
        (SERVICE, "serveConfigV2:", "serveConfgV2:", "serveConfgV2"),
        (SERVICE, "maxReplicas: 2", "maxReplica: 2", "maxReplica"),
        (SERVICE, "authOptions:", "authOption:", "authOption"),
        (SERVICE, "mode: token", "mode: tokens", "tokens"),
        (SERVICE, "mode: token", "mode: disabled", "authOptions.mode"),
        (SERVICE, "type: None", "type: Never", "Never"),
        (SERVICE, "rayVersion: 2.60.0", "rayVersion: 2.59.0", "rayVersion"),
        (SERVICE, "dashboard-host: 0.0.0.0", "dashbord-host: 0.0.0.0", "--dashbord-host"),
        (SERVICE, 'num-gpus: "0"', "num-gpus: 0", "rayStartParams"),
        # The Serve configuration inside it.
        (SERVICE, "import_path: workers", "import_pth: workers", "import_path"),
        (SERVICE, "      route_prefix: /", "      route_prefx: /", "route_prefx"),
        (SERVICE, "tp_size: 1", "tp_size: 2", "do not fit"),
        (SERVICE, "max_replicas: 2", "max_replicas: 3", "do not fit"),
        (SERVICE, "drain_timeout_s: 120.0", "drain_timeout_s: 500.0", "drain_timeout_s"),
        # Its pods.
        (SERVICE, "readinessProbe:", "readynessProbe:", "readynessProbe"),
        (SERVICE, "containerPort: 8080", 'containerPort: "metrics"', "metrics"),
        (SERVICE, "runAsNonRoot: true", "runAsNonRoot: false", "runAsNonRoot"),
        (SERVICE, "drop: [ALL]", "drop: [NET_RAW]", "privileges"),
        (SERVICE, "image: ddtree-sglang", "image: other", "no version"),
        (SERVICE, "            automount", "            hostIPC: true\n            automount", "hostIPC"),
        (SERVICE, "name: RAY_AUTH_MODE", "name: RAY_AUTH_MODES", "RAY_AUTH_MODE"),
        (SERVICE, 'value: "1"', 'value: "0"', serve_config.NOSET),
        (SERVICE, "secretKeyRef:", "configMapKeyRef:", "must come from a Secret"),
        # What refers to them.
        (
            "base/networkpolicy.yaml",
            "podSelector:\n    matchLabels:\n      app.kubernetes.io/part-of",
            "podSelector:\n    matchLabels:\n      app",
            "no NetworkPolicy",
        ),
        ("base/networkpolicy.yaml", "policyTypes:", "policyType:", "policyType"),
        ("base/networkpolicy.yaml", "protocol: TCP, port: 8080", "protocol: HTTP, prt: 8080", "prt"),
        ("base/poddisruptionbudget.yaml", "component: worker", "component: workers", "protects no pod"),
        ("base/poddisruptionbudget.yaml", "minAvailable", "minAvailabel", "minAvailabel"),
        ("base/kustomization.yaml", "resources:", "resource:", "resource"),
        ("base/kustomization.yaml", "namespace: ddtree\n", "", "in no namespace"),
        (
            "base/namespace.yaml",
            "apiVersion: v1",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: keys}\n---\napiVersion: v1",
            "no Secret belongs",
        ),
    ],
)
def test_mistake_in_the_base_is_found(tmp_path: Path, file: str, old: str, new: str, reason: str) -> None:
    shutil.copytree(deploy_files.K8S, tmp_path / "k8s")
    (tmp_path / "k8s" / file).write_text(deploy_files.changed(deploy_files.K8S / file, old, new), encoding="utf-8")
    assert reason in " ".join(checked(tmp_path / "k8s/base"))


@pytest.mark.parametrize(
    ("file", "old", "new", "reason"),
    [
        (
            "overlays/h200/workers.yaml",
            "workerGroupSpecs/0/template/spec/containers/0",
            "workerGroupSpecs/1/template/spec/containers/0",
            "workerGroupSpecs/1",
        ),
        ("overlays/h200/workers.yaml", 'nvidia.com/gpu: "8"', 'nvidia.com/gpu: "4"', "do not fit"),
        ("overlays/h200/kustomization.yaml", "path: serve.yaml", "path: serv.yaml", "serv.yaml"),
        ("components/podmonitor/podmonitor.yaml", "port: metrics", "port: metric", "no port metric"),
        ("components/podmonitor/podmonitor.yaml", "metricRelabelings", "metricRelabeling", "metricRelabeling"),
        ("components/podmonitor/podmonitor.yaml", "interval: 15s", "interval: 15", "15"),
        (
            "components/podmonitor/podmonitor.yaml",
            "part-of: ddtree-sglang",
            "part-of: ddtree",
            "does not see every pod",
        ),
    ],
)
def test_mistake_in_the_overlay_is_found(tmp_path: Path, file: str, old: str, new: str, reason: str) -> None:
    shutil.copytree(deploy_files.K8S, tmp_path / "k8s")
    (tmp_path / "k8s" / file).write_text(deploy_files.changed(deploy_files.K8S / file, old, new), encoding="utf-8")
    assert reason in " ".join(checked(tmp_path / "k8s/overlays/h200"))


def test_secret_template_is_valid_and_holds_no_secret() -> None:
    template = deploy_files.load_yaml(deploy_files.K8S / "secret-template.yaml")
    assert kubernetes_checks.schema_problems([template]) == []
    assert set(template["stringData"].values()) == {""}


def test_pods_read_the_key_that_the_template_has() -> None:
    template = deploy_files.load_yaml(deploy_files.K8S / "secret-template.yaml")
    (service,) = kubernetes_checks.of_kind(kubernetes_checks.render(deploy_files.K8S / "base"), "RayService")
    references = [value for path, value in deploy_files.walk(service) if path.endswith(".secretKeyRef")]
    assert references
    for reference in references:
        assert reference["name"] == template["metadata"]["name"]
        assert reference["key"] in template["stringData"]


def test_only_named_peers_reach_the_pods() -> None:
    (policy,) = kubernetes_checks.of_kind(kubernetes_checks.render(deploy_files.K8S / "base"), "NetworkPolicy")
    assert set(policy["spec"]["policyTypes"]) == {"Ingress", "Egress"}
    for rule in policy["spec"]["ingress"]:
        assert rule["from"], "an empty `from` lets everybody in"
        own_pods_only = all(set(peer) == {"podSelector"} for peer in rule["from"])
        assert own_pods_only or rule["ports"], "other pods reach named ports only"


def test_serve_configurations_differ_only_where_they_must() -> None:
    """One product in three sizes: a default that is changed in one file is changed in all."""
    configs = {
        name: kubernetes_checks.serve_configuration(kubernetes_checks.render(deploy_files.K8S / name))
        for name in RENDERED
    }
    configs["ray"] = deploy_files.load_yaml(deploy_files.RAY / "serve-config.yaml")
    places = {"proxy_location", "http_options.host"}
    sizes = {
        "tp_size",
        "device",
        "dtype",
        "min_replicas",
        "max_replicas",
        "max_running_requests",
        "engine_args",
        "ddtree",
        # A prefill on a CPU may take longer than a GPU may hang.
        "health_check_timeout_s",
    }
    reference = dict(deploy_files.walk(configs["base"]))
    for name, config in configs.items():
        different = {path for path, value in deploy_files.walk(config) if reference.get(path) != value}
        leaves = {path.partition(".args.")[2].split(".")[0] or path.lstrip(".") for path in different}
        assert leaves - {"applications", "applications[0].args", "http_options"} <= places | sizes, name


@pytest.mark.parametrize("name", RENDERED)
def test_rayservice_passes_the_whole_crd(name: str) -> None:
    crd = os.environ.get("KUBERAY_CRD")
    if crd is None:
        pytest.skip(
            "KUBERAY_CRD=ray-operator/config/crd/bases/ray.io_rayservices.yaml of a KubeRay checkout is not set"
        )
    manifests = kubernetes_checks.render(deploy_files.K8S / name)
    assert kubernetes_checks.crd_problems(manifests, Path(crd)) == []
    (service,) = kubernetes_checks.of_kind(manifests, "RayService")
    broken = yaml.safe_load(
        yaml.safe_dump(service).replace("serveConfigV2", "serveConfgV2").replace("mode: token", "mode: tokens")
    )
    assert len(kubernetes_checks.crd_problems([broken], Path(crd))) == 2
