"""Checks of rendered Kubernetes manifests: the schemas, and what has to agree between them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import yaml

from tests.deploy import deploy_files, flag_parsers, serve_config

KUBERNETES = "1.37"
SCHEMAS = Path(__file__).resolve().parent / "schemas"
OWN_SCHEMAS = {"RayService": "rayservice.yaml", "PodMonitor": "podmonitor.yaml"}

Manifest = dict[str, Any]


def render(folder: Path) -> list[Manifest]:
    """What `kubectl kustomize` makes of a folder.

    Raises:
        ValueError: kubectl refused it; the message is kubectl's.
    """
    status, output = deploy_files.run_tool([deploy_files.find_tool("kubectl"), "kustomize", str(folder)])
    if status != 0:
        raise ValueError(output)
    return [document for document in yaml.safe_load_all(output) if document]


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["kind"] == kind]


def serve_configuration(manifests: list[Manifest]) -> dict[str, Any]:
    """The Serve configuration inside the only RayService."""
    (service,) = of_kind(manifests, "RayService")
    return dict(yaml.safe_load(service["spec"]["serveConfigV2"]))


def pod_templates(service: Manifest) -> dict[str, Manifest]:
    """Pod templates of a RayService, by the name of their group; `head` is the head's."""
    cluster = service["spec"]["rayClusterConfig"]
    groups = {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}
    return {"head": cluster["headGroupSpec"]["template"], **groups}


def all_problems(manifests: list[Manifest]) -> list[str]:
    """Everything that any check below has to say; the later ones rely on the schemas."""
    problems = schema_problems(manifests)
    if problems:
        return problems
    (service,) = of_kind(manifests, "RayService")
    return [
        *ray_problems(service),
        *pod_problems(service),
        *capacity_problems(service),
        *agreement_problems(manifests),
        *serve_config.serve_problems(serve_configuration(manifests)),
    ]


def schema_problems(manifests: list[Manifest]) -> list[str]:
    """Schemas of Kubernetes with unknown keys forbidden, and ours for the two kinds that are not Kubernetes' own."""
    problems = []
    for manifest in manifests:
        own = OWN_SCHEMAS.get(manifest["kind"])
        found = _own_schema_problems(manifest, own) if own else _kubernetes_problems(manifest)
        problems += [f"{manifest['kind']}: {problem}" for problem in found]
    for service in of_kind(manifests, "RayService") if not problems else []:
        for group, template in pod_templates(service).items():
            problems += [
                f"{group}: {found}" for found in _kubernetes_problems({**template, "apiVersion": "v1", "kind": "Pod"})
            ]
    return problems


def ray_problems(service: Manifest) -> list[str]:
    """Flags, version, token authentication and the environment that SGLang under Ray needs."""
    cluster = service["spec"]["rayClusterConfig"]
    problems = []
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        problems += flag_parsers.ray_start_params_problems(group["rayStartParams"])
    if cluster.get("rayVersion") != deploy_files.pinned_version("ray"):
        problems.append(f"rayVersion {cluster.get('rayVersion')} is not the pinned one")
    if cluster.get("authOptions", {}).get("mode") != "token":
        problems.append("authOptions.mode must be token")
    for group, container in _containers(service):
        environment = {entry["name"]: entry for entry in container["env"]}
        for name, value in (("RAY_AUTH_MODE", "token"), (serve_config.NOSET, "1")):
            if environment.get(name, {}).get("value") != value:
                problems.append(f"{group}: the environment must have {name}={value}")
        key = serve_configuration([service])["applications"][0]["args"]["api_key_env"]
        if "secretKeyRef" not in environment.get(key, {}).get("valueFrom", {}):
            problems.append(f"{group}: {key} must come from a Secret")
    return problems


def pod_problems(service: Manifest) -> list[str]:
    """What the namespace's `restricted` level would refuse, and images that could be another tomorrow."""
    problems = []
    for group, template in pod_templates(service).items():
        pod = template["spec"]
        security = pod.get("securityContext", {})
        if security.get("runAsNonRoot") is not True or security.get("seccompProfile") != {"type": "RuntimeDefault"}:
            problems.append(f"{group}: runAsNonRoot and seccompProfile RuntimeDefault are needed")
        problems += [f"{group}: {key}" for key in ("hostNetwork", "hostIPC", "hostPID") if pod.get(key)]
        problems += [f"{group}: hostPath" for volume in pod.get("volumes", []) if "hostPath" in volume]
        if pod.get("automountServiceAccountToken") is not False:
            problems.append(f"{group}: a service account's token is mounted")
    for group, container in _containers(service):
        security = container.get("securityContext", {})
        if security.get("allowPrivilegeEscalation") is not False or security.get("capabilities") != {"drop": ["ALL"]}:
            problems.append(f"{group}: privileges can be gained")
        if ":" not in container["image"] or container["image"].endswith(":latest"):
            problems.append(f"{group}: image {container['image']} has no version")
        if not {"requests", "limits"} <= set(container.get("resources", {})):
            problems.append(f"{group}: resources are not bounded")
    return problems


def capacity_problems(service: Manifest) -> list[str]:
    """Whether the replicas that Serve is told to keep fit the pods that there are."""
    arguments = serve_configuration([service])["applications"][0]["args"]
    per_replica = arguments["tp_size"] if arguments["device"] != "cpu" else 0
    room = 0
    for group in service["spec"]["rayClusterConfig"]["workerGroupSpecs"]:
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        gpus = int(limits.get("nvidia.com/gpu", 0))
        by_cpu = int(float(limits["cpu"]) // (1 + arguments["cpus_per_rank"] * arguments["tp_size"]))
        room += group["maxReplicas"] * (min(gpus // per_replica, by_cpu) if per_replica else by_cpu)
        grace = group["template"]["spec"].get("terminationGracePeriodSeconds", 30)
        if grace <= arguments["drain_timeout_s"]:
            return [f"{group['groupName']}: killed after {grace} s, before drain_timeout_s"]
    if room < arguments["max_replicas"]:
        return [f"{arguments['max_replicas']} replicas of {arguments['tp_size']} do not fit, there is room for {room}"]
    return []


def agreement_problems(manifests: list[Manifest]) -> list[str]:
    """Names and labels that one manifest uses of another, which no schema checks."""
    (service,) = of_kind(manifests, "RayService")
    labels = [template["metadata"]["labels"] for template in pod_templates(service).values()]
    ports = {port["name"] for _, container in _containers(service) for port in container["ports"]}
    problems = [
        f"{m['kind']} in no namespace"
        for m in manifests
        if m["kind"] != "Namespace" and "namespace" not in m["metadata"]
    ]
    problems += [
        f"{secret['metadata']['name']}: no Secret belongs in a manifest" for secret in of_kind(manifests, "Secret")
    ]
    policies = of_kind(manifests, "NetworkPolicy")
    for label in labels:
        if not any(_selects(policy["spec"]["podSelector"], label) for policy in policies):
            problems.append(f"no NetworkPolicy holds for pods with {label}")
    for budget in of_kind(manifests, "PodDisruptionBudget"):
        if not any(_selects(budget["spec"]["selector"], label) for label in labels):
            problems.append(f"{budget['metadata']['name']} protects no pod")
    for monitor in of_kind(manifests, "PodMonitor"):
        if not all(_selects(monitor["spec"]["selector"], label) for label in labels):
            problems.append(f"{monitor['metadata']['name']} does not see every pod")
        problems += [
            f"no port {end['port']}" for end in monitor["spec"]["podMetricsEndpoints"] if end["port"] not in ports
        ]
    return problems


def crd_problems(manifests: list[Manifest], crd_file: Path) -> list[str]:
    """Check the RayServices against the whole CRD of a KubeRay checkout, with unknown keys forbidden throughout."""
    crd = deploy_files.load_yaml(crd_file)
    version = next(entry for entry in crd["spec"]["versions"] if entry["name"] == "v1")
    schema = version["schema"]["openAPIV3Schema"]
    for _, node in [("", schema), *deploy_files.walk(schema)]:
        if isinstance(node, dict) and isinstance(node.get("properties"), dict) and "type" in node:
            node.setdefault("additionalProperties", False)
    schema["properties"]["metadata"] = {"type": "object"}
    validator = jsonschema.Draft202012Validator(schema)
    return [error.message for service in of_kind(manifests, "RayService") for error in validator.iter_errors(service)]


def _own_schema_problems(manifest: Manifest, name: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(deploy_files.load_yaml(SCHEMAS / name))
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(manifest)]


def _kubernetes_problems(manifest: Manifest) -> list[str]:
    try:
        kubernetes_validate.validate(manifest, KUBERNETES, strict=True)
    except (kubernetes_validate.ValidationError, kubernetes_validate.SchemaNotFoundError) as error:
        return [str(getattr(error, "message", error))]
    return []


def _containers(service: Manifest) -> Iterator[tuple[str, Manifest]]:
    for group, template in pod_templates(service).items():
        for container in template["spec"]["containers"]:
            yield group, container


def _selects(selector: Manifest, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()
