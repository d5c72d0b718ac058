"""The documentation has every metric and every alert, with the meaning that the code gives it."""

import re
from pathlib import Path

import yaml

from sps2.common.config import Bus
from sps2.services.gateway.monitoring.federation import Federation
from sps2.services.gateway.monitoring.request_metrics import Metrics

ROOT = Path(__file__).parents[4]
OPERATING = (ROOT / "docs/operating.md").read_text()


def rows(kinds: str) -> list[str]:
    """Rows of metrics in the documentation: `name`, kind, meaning."""
    return re.findall(rf"^\| `sps2_\w+` \| (?:{kinds}) \| .* \|$", OPERATING, re.MULTILINE)


def test_every_metric_is_documented() -> None:
    metrics = Metrics()
    metrics.registry.register(Federation(Bus()))
    told = [
        f"| `{family.name}{'_total' * (family.type == 'counter')}` | {family.type} "
        f"| {family.documentation} |"
        for family in metrics.registry.collect()
        if family.name.startswith("sps2_")
    ]
    assert sorted(rows("counter|gauge|histogram")) == sorted(told)


def test_every_alert_is_documented() -> None:
    rules = yaml.safe_load((ROOT / "compose/prometheus/alerts.yml").read_text())
    alerts = [rule["alert"] for group in rules["groups"] for rule in group["rules"]]
    assert re.findall(r"^\| `(Sps2\w+)` \|", OPERATING, re.MULTILINE) == alerts
