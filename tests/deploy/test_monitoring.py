"""Alerts and the Grafana dashboard: promtool accepts them, and they ask for what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import grafana_dashboard, reference

DEPLOY = Path(grafana_dashboard.__file__).parent
RULES = DEPLOY / "prometheus" / "rules.yaml"
TESTS = Path(__file__).with_name("alerts.yaml")


def promtool(*arguments: str, folder: Path) -> str:
    if shutil.which("promtool") is None:
        pytest.skip("promtool is not installed")
    command = ["promtool", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def rules() -> list[dict[str, Any]]:
    return [
        rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
    ]


def dashboard_expressions() -> list[str]:
    panels = json.loads(grafana_dashboard.FILE.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel.get("targets", [])]


def test_promtool_accepts_the_configuration() -> None:
    assert "SUCCESS" in promtool("check", "config", "prometheus.yaml", folder=RULES.parent)


def test_every_alert_fires_when_it_should(tmp_path: Path) -> None:
    for file in (RULES, TESTS):
        shutil.copy(file, tmp_path)
    promtool("test", "rules", TESTS.name, folder=tmp_path)
    fired = {
        test["alertname"]
        for group in yaml.safe_load(TESTS.read_text())["tests"]
        for test in group["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in rules() if "alert" in rule}


def test_the_dashboard_is_what_its_code_makes() -> None:
    written = json.loads(grafana_dashboard.FILE.read_text())
    assert written == grafana_dashboard.dashboard(), "run `python -m deploy.grafana_dashboard`"


def test_prometheus_understands_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    asked = [ask.replace("$__rate_interval", "1m") for ask in dashboard_expressions()]
    recorded = [{"record": f"panel:{at}", "expr": ask} for at, ask in enumerate(asked)]
    file = {"groups": [{"name": "dashboard", "rules": recorded}]}
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(file))
    promtool("check", "rules", "rules.yaml", folder=tmp_path)


def test_they_ask_only_for_what_the_service_exports() -> None:
    """Every metric and every label is one that docs/operations.md lists, from the code."""
    labels: dict[str, set[str]] = {}
    for metric in reference.all_metrics():
        names = [metric.name]
        if metric.kind == "histogram":
            names += [f"{metric.name}{end}" for end in ("_bucket", "_sum", "_count")]
        for name in names:
            labels[name] = {*metric.labels, "le", "ingress", "replica"}
    for ask in [*dashboard_expressions(), *(rule["expr"] for rule in rules())]:
        asked = re.findall(r"\b(m3_\w+)(?:\{([^}]*)\})?", ask)
        assert asked or "m3:" in ask
        for name, selected in asked:
            assert name in labels, ask
            assert set(re.findall(r"(\w+)(?==|!=|=~|!~)", selected)) <= labels[name], ask
    recorded = {rule["record"] for rule in rules() if "record" in rule}
    for rule in rules():
        assert set(re.findall(r"\bm3:[\w:]+", rule["expr"])) <= recorded


def test_panels_do_not_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in grafana_dashboard.dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= grafana_dashboard.WIDE
        assert not taken & cells
        taken |= cells
