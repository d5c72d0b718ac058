"""The dashboard and the alerts keep clusters apart, of which each gateway is one instance."""

import json
from pathlib import Path

import promql_parser
import yaml

FOLDER = Path(__file__).parents[2] / "compose"


def test_the_dashboard_shows_one_cluster() -> None:
    dashboard = json.loads((FOLDER / "grafana/dashboards/sps2.json").read_text())
    names = [variable["name"] for variable in dashboard["templating"]["list"]]
    assert names == ["datasource", "instance"]
    for panel in dashboard["panels"]:
        for target in panel.get("targets", ()):
            query = target["expr"]
            assert query.count("sps2_") == query.count('{instance=~"$instance"'), query


def test_no_alert_adds_clusters_up() -> None:
    rules = yaml.safe_load((FOLDER / "prometheus/alerts.yml").read_text())
    aggregates = 0

    def visit(part: promql_parser.Expr) -> None:
        nonlocal aggregates
        if isinstance(part, promql_parser.AggregateExpr):
            aggregates += 1
            assert "instance" in part.modifier.labels, part.prettify()

    for group in rules["groups"]:
        for rule in group["rules"]:
            promql_parser.walk(promql_parser.parse(rule["expr"]), visit)
    assert aggregates > 5


def test_one_failed_request_at_night_wakes_nobody() -> None:
    rules = yaml.safe_load((FOLDER / "prometheus/alerts.yml").read_text())
    (rule,) = [rule for rule in rules["groups"][0]["rules"] if rule["alert"] == "Sps2RequestsFail"]
    most = 'increase(sps2_requests_total{status=~"error|lost"}[5m])) > 3'
    assert most in " ".join(rule["expr"].split())
