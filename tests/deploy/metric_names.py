"""Which metrics exist: SGLang's, read from its collectors' source, the Ray ingress's, and what the rules record."""

from __future__ import annotations

import ast
import functools
import importlib.util
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.deploy import deploy_files

OF_A_HISTOGRAM = ("_bucket", "_sum", "_count")
CONSTRUCTORS = {"Counter", "Gauge", "Histogram", "Summary"}


def existing_metrics() -> set[str]:
    """Every name that may stand in PromQL."""
    return {"up"} | sglang_metrics() | decision_metrics() | ingress_metrics() | recorded_metrics()


def decision_metrics() -> set[str]:
    """What a server of policy "adaptive" says of its rounds, and any server of its pair."""
    from ddtree_sglang.engine.decision_metrics import NODES, ROUNDS, SUMS
    from ddtree_sglang.engine.pair_watch import METRIC

    return {NODES, ROUNDS, *SUMS, METRIC}


@functools.cache
def sglang_metrics() -> frozenset[str]:
    """Names as Prometheus sees them: a counter ends in `_total`, a histogram has its three series."""
    found: set[str] = set()
    for kind, name in _collectors_of(_sglang_source("metrics_collector.py")):
        if kind == "Counter":
            found.add(name if name.endswith("_total") else f"{name}_total")
        elif kind == "Gauge":
            found.add(name)
        else:
            found |= {name + suffix for suffix in OF_A_HISTOGRAM}
    return frozenset(found)


def ingress_metrics() -> set[str]:
    """What the ingress exports, as it exports it."""
    from prometheus_client.parser import text_string_to_metric_families

    from workers.http.metrics import IngressMetrics

    families = text_string_to_metric_families(IngressMetrics().text(0).decode())
    return {sample.name for family in families for sample in family.samples}


def recorded_metrics() -> set[str]:
    return {rule["record"] for rule in rules() if "record" in rule}


def rules() -> list[dict[str, Any]]:
    """All rules of rules.yml, whatever their group."""
    groups = deploy_files.load_yaml(deploy_files.MONITORING / "rules.yml")["groups"]
    return [rule for group in groups for rule in group["rules"]]


@functools.cache
def ray_renaming() -> Callable[[str], str]:
    """SGLang's own function that makes a metric's name fit for Ray, taken out of its module."""
    for node in ast.walk(ast.parse(_sglang_source("ray_wrappers.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef) and node.name == "_get_sanitized_opentelemetry_name":
            node.decorator_list = []
            namespace: dict[str, Any] = {"re": re}
            exec(compile(ast.Module([node], []), "ray_wrappers.py", "exec"), namespace)
            return namespace[node.name]
    raise AssertionError("SGLang renames its metrics for Ray in another place now")


def _sglang_source(name: str) -> Path:
    """Found without importing: SGLang's imports take longer than everything else in here."""
    package = importlib.util.find_spec("sglang")
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "srt/observability" / name


def _collectors_of(path: Path) -> Iterator[tuple[str, str]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in CONSTRUCTORS):
            continue
        for keyword in node.keywords:
            if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                yield node.func.id, str(keyword.value.value)
