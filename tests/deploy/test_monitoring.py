"""`deploy/monitoring`: PromQL that parses and names what exists, panels that do not overlap, alerts that fire."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.deploy import deploy_files, metric_names

MONITORING = deploy_files.MONITORING
DASHBOARD = MONITORING / "grafana/ddtree.json"
COLUMNS = 24  # of Grafana's grid


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text(encoding="utf-8")))


def dashboard_expressions(board: dict[str, Any]) -> list[str]:
    """PromQL of every panel, and the selectors that fill the variables."""
    panels = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    queries = [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    return panels + [re.sub(r"label_values\((.*), \w+\)", r"\1", query) for query in queries]


def selectors(expression: Any) -> Iterator[promql_parser.VectorSelector]:
    """Vector selectors of a parsed expression, wherever they stand."""
    if isinstance(expression, promql_parser.VectorSelector):
        yield expression
    for name in ("lhs", "rhs", "expr", "param", "vector_selector"):
        if getattr(expression, name, None) is not None:
            yield from selectors(getattr(expression, name))
    for argument in getattr(expression, "args", None) or []:
        yield from selectors(argument)


def promql_problems(expression: str) -> list[str]:
    """Syntax, metrics that no server exports, and quantiles of something that is no histogram."""
    try:
        parsed = promql_parser.parse(expression)
    except ValueError as error:
        return [f"{expression}: {error}"]
    names = [selector.name for selector in selectors(parsed)]
    problems = [f"{expression}: no metric {name}" for name in names if name not in metric_names.existing_metrics()]
    if not names:
        problems.append(f"{expression}: selects nothing")
    if "histogram_quantile" in expression and not all(name and name.endswith("_bucket") for name in names):
        problems.append(f"{expression}: quantiles are taken of buckets")
    if "histogram_quantile" in expression and not re.search(r"sum by \((.*, )?le\)", expression):
        problems.append(f"{expression}: buckets are summed by le")
    return problems


def layout_problems(panels: list[dict[str, Any]]) -> list[str]:
    """Panels that overlap, leave the grid, share a number, or ask no data source."""
    problems = [f"id {panel['id']} twice" for panel in panels if [p["id"] for p in panels].count(panel["id"]) > 1]
    for panel in panels:
        place = panel["gridPos"]
        if place["x"] < 0 or place["y"] < 0 or min(place["w"], place["h"]) < 1 or place["x"] + place["w"] > COLUMNS:
            problems.append(f"{panel['title']} leaves the grid")
        if panel["type"] not in {"row", "text"} and panel.get("datasource", {}).get("uid") != "${datasource}":
            problems.append(f"{panel['title']} has no data source")
    for one, other in itertools.combinations(panels, 2):
        if _overlap(one["gridPos"], other["gridPos"]):
            problems.append(f"{one['title']} lies over {other['title']}")
    return problems


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
    above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
    return not (beside or above)


def promtool(*arguments: str) -> tuple[int, str]:
    tool = shutil.which("promtool")
    if tool is None:
        pytest.skip("promtool is not installed (Debian's prometheus has it; no package does)")
    return deploy_files.run_tool([tool, *arguments])


@pytest.mark.parametrize("expression", sorted(set(dashboard_expressions(dashboard()))))
def test_dashboard_asks_for_metrics_that_exist(expression: str) -> None:
    assert promql_problems(expression) == []


@pytest.mark.parametrize("rule", metric_names.rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rule_asks_for_metrics_that_exist(rule: dict[str, Any]) -> None:
    assert promql_problems(rule["expr"]) == []
    if "alert" in rule:
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert rule["annotations"]["summary"]


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("sum(rate(sglang:spec_verify_calls_total[5m])", "parenthes|expected|unexpected|unclosed"),
        ("sglang:spec_accept_lenght", "no metric sglang:spec_accept_lenght"),
        ("rate(sglang:spec_verify_calls[5m])", "no metric sglang:spec_verify_calls"),
        ("ray_sglang_spec_accept_length", "no metric ray_sglang"),
        (
            "sum(sglang:spec_accept_length) / sum(ddtree_ingress_request_total)",
            "no metric ddtree_ingress_request_total",
        ),
        ("histogram_quantile(0.5, sum by (le) (rate(sglang:time_to_first_token_seconds[5m])))", "no metric"),
        ("histogram_quantile(0.5, sum(rate(sglang:time_to_first_token_seconds_bucket[5m])))", "summed by le"),
        ("histogram_quantile(0.5, sum by (le) (rate(sglang:prompt_tokens_total[5m])))", "quantiles"),
        ("rate(sglang:spec_accept_length)", "expected|vector|matrix"),
        ("1 + 1", "selects nothing"),
    ],
)
def test_broken_or_unknown_expression_is_found(expression: str, reason: str) -> None:
    assert re.search(reason, " ".join(promql_problems(expression)))


def test_names_are_really_read_from_sglang() -> None:
    found = metric_names.sglang_metrics()
    assert len(found) > 100
    assert {
        "sglang:spec_accept_length",
        "sglang:spec_verify_calls_total",
        "sglang:inter_token_latency_seconds_bucket",
    } <= found
    assert "sglang:inter_token_latency_seconds" not in found


def test_every_speculative_metric_is_shown() -> None:
    shown = " ".join(dashboard_expressions(dashboard()))
    for name in ("accept_length", "accept_rate", "num_steps", "num_draft_tokens", "verify_calls_total"):
        assert f"sglang:spec_{name}" in shown
    kept_by_histograms = ("_bucket", "_sum", "_count", "_created")
    ingress = {name for name in metric_names.ingress_metrics() if not name.endswith(kept_by_histograms)}
    assert sorted(name for name in ingress if name not in shown) == []
    assert "ddtree_ingress_resume_seconds_bucket" in shown


def test_dashboard_leads_with_accept_length_and_explains_the_rate() -> None:
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    assert panels[0]["title"] == "Accept length"
    (rate,) = (panel for panel in panels if "spec_accept_rate" in str(panel.get("targets")))
    assert "small by construction" in rate["description"]


def test_panels_lie_beside_each_other() -> None:
    assert layout_problems(dashboard()["panels"]) == []


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [("x", 20, "leaves the grid"), ("y", 0, "lies over"), ("h", 30, "lies over"), ("w", 0, "leaves the grid")],
)
def test_misplaced_panel_is_found(key: str, value: int, reason: str) -> None:
    panels = dashboard()["panels"]
    panels[6]["gridPos"][key] = value
    assert reason in " ".join(layout_problems(panels))


def test_panel_numbers_and_data_sources_are_checked() -> None:
    panels = dashboard()["panels"]
    panels[1]["id"] = panels[2]["id"]
    del panels[3]["datasource"]
    problems = " ".join(layout_problems(panels))
    assert "twice" in problems
    assert "no data source" in problems


def relabelled(name: str, relabelings: list[dict[str, Any]]) -> str:
    """What Prometheus makes of a metric's name; its regexes match the whole name."""
    for rule in relabelings:
        match = re.fullmatch(rule["regex"], name)
        if match:
            name = match.expand(rule["replacement"].replace("$1", r"\1"))
    return name


def relabelings() -> list[dict[str, Any]]:
    config = deploy_files.load_yaml(MONITORING / "prometheus.yml")
    return next(list(job["metric_relabel_configs"]) for job in config["scrape_configs"] if job["job_name"] == "ray")


def test_metric_has_one_name_whether_or_not_ray_exports_it() -> None:
    shown = {
        selector.name
        for text in dashboard_expressions(dashboard())
        for selector in selectors(promql_parser.parse(text))
    }
    from_sglang = shown & metric_names.sglang_metrics()
    assert len(from_sglang) > 15
    assert {
        relabelled(f"ray_{metric_names.ray_renaming()(name)}", relabelings()) for name in from_sglang
    } == from_sglang


def test_ingress_and_foreign_metrics_are_relabelled_right() -> None:
    assert relabelled("ray_ddtree_ingress_tokens_total", relabelings()) == "ddtree_ingress_tokens_total"
    assert relabelled("ray_node_cpu_utilization", relabelings()) == "ray_node_cpu_utilization"


def test_podmonitor_relabels_as_prometheus_does() -> None:
    monitor = deploy_files.load_yaml(deploy_files.K8S / "components/podmonitor/podmonitor.yaml")
    in_snake_case = [
        {re.sub(r"([A-Z])", lambda match: f"_{match[1].lower()}", key): value for key, value in rule.items()}
        for rule in monitor["spec"]["podMetricsEndpoints"][0]["metricRelabelings"]
    ]
    assert in_snake_case == relabelings()


def test_podmonitor_calls_its_job_as_prometheus_does() -> None:
    """The operator's own name for it, NAMESPACE/NAME, would keep `up{job="ray"}` from ever matching."""
    jobs = {job["job_name"] for job in deploy_files.load_yaml(MONITORING / "prometheus.yml")["scrape_configs"]}
    asked = {
        name
        for rule in metric_names.rules()
        for names in re.findall(r'job=~?"([^"]+)"', rule["expr"])
        for name in names.split("|")
    }
    monitor = deploy_files.load_yaml(deploy_files.K8S / "components/podmonitor/podmonitor.yaml")
    (end,) = monitor["spec"]["podMetricsEndpoints"]
    assert end["relabelings"] == [{"targetLabel": "job", "replacement": "ray"}]
    assert "ray" in asked
    assert asked <= jobs


def test_compose_service_is_what_prometheus_and_grafana_ask() -> None:
    services = deploy_files.load_yaml(deploy_files.DOCKER / "compose.yaml")["services"]
    jobs = deploy_files.load_yaml(MONITORING / "prometheus.yml")["scrape_configs"]
    (target,) = next(job["static_configs"][0]["targets"] for job in jobs if job["job_name"] == "sglang")
    host, port = target.split(":")
    assert f"--port={port}" in services[host]["command"]
    (source,) = deploy_files.load_yaml(MONITORING / "grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    assert re.fullmatch(r"http://(\w+):9090", source["url"])[1] in services
    (provider,) = deploy_files.load_yaml(MONITORING / "grafana/provisioning/dashboards/ddtree.yaml")["providers"]
    assert any(f":{provider['options']['path']}/ddtree.json:ro" in volume for volume in services["grafana"]["volumes"])


def test_promtool_accepts_the_configuration_and_the_rules() -> None:
    for kind, name in (("config", "prometheus.yml"), ("rules", "rules.yml")):
        status, output = promtool("check", kind, str(MONITORING / name))
        assert status == 0, output


def test_alerts_fire_when_they_should() -> None:
    status, output = promtool("test", "rules", str(Path(__file__).parent / "rules_test.yml"))
    assert status == 0, output


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("prometheus.yml", "scrape_interval", "scrap_interval"),
        ("prometheus.yml", "regex: ray_(ddtree_.+)", "regex: ray_(ddtree_.+"),
        ("prometheus.yml", "scrape_interval: 15s", "scrape_interval: soon"),
        ("rules.yml", "max(ddtree_ingress_ready", "max((ddtree_ingress_ready"),
        ("rules.yml", "    for: 10m", "    four: 10m"),
        ("rules.yml", "$labels.instance }}", "$labels.instance }"),
    ],
)
def test_promtool_refuses_a_mistake(tmp_path: Path, name: str, old: str, new: str) -> None:
    shutil.copytree(MONITORING, tmp_path, dirs_exist_ok=True)
    (tmp_path / name).write_text(deploy_files.changed(MONITORING / name, old, new), encoding="utf-8")
    status, _ = promtool("check", "config", str(tmp_path / "prometheus.yml"))
    assert status != 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("spec_accept_length < 1.2", "spec_accept_length < 1.0"),
        ("> 0.98 *", "> 1.98 *"),
        (" and sglang:gen_throughput > 0", ""),
        ("ready_replicas) < 1", "ready_replicas) < 0"),
        (") * 60 > 1", ") > 1"),
        ("(sglang:spec_num_steps > 1) + 1", "(sglang:spec_num_steps > 1)"),
        ("gave_up_total[10m]", "gave_up_total[1m]"),
    ],
)
def test_a_changed_alert_fails_its_test(tmp_path: Path, old: str, new: str) -> None:
    (tmp_path / "rules.yml").write_text(deploy_files.changed(MONITORING / "rules.yml", old, new), encoding="utf-8")
    tests = deploy_files.changed(
        Path(__file__).parent / "rules_test.yml", "../../deploy/monitoring/rules.yml", "rules.yml"
    )
    (tmp_path / "rules_test.yml").write_text(tests, encoding="utf-8")
    status, _ = promtool("test", "rules", str(tmp_path / "rules_test.yml"))
    assert status != 0


def test_every_alert_has_a_test() -> None:
    tests = yaml.safe_load((Path(__file__).parent / "rules_test.yml").read_text(encoding="utf-8"))["tests"]
    tested = {case["alertname"] for group in tests for case in group["alert_rule_test"] if "exp_alerts" in case}
    assert tested == {rule["alert"] for rule in metric_names.rules() if "alert" in rule}
