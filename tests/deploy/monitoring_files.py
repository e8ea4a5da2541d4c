"""What the files under deploy/ ask Prometheus: rules, panels of the dashboard, triggers of KEDA."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yaml"
CASES = DEPLOY / "prometheus" / "rules_test.yaml"
DASHBOARD: dict[str, Any] = json.loads((DEPLOY / "grafana" / "dashboard.json").read_text())
ALL_RULES: list[dict[str, Any]] = [
    rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in ALL_RULES if "alert" in rule]
VARIABLES = {"$subject": ".*", "$__rate_interval": "10s", "$__interval": "10s", "$__range": "1m"}
"""What Grafana puts in for a variable, for a Prometheus that has run for seconds."""


def panel_queries() -> dict[str, str]:
    """Every query of the dashboard, by the title of its panel and its letter."""
    return {
        f"{panel['title']} {target['refId']}": filled(target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def keda_queries() -> dict[str, str]:
    """Every query of the ScaledObject, by its number."""
    scaled = yaml.safe_load((DEPLOY / "keda" / "scaledobject.yaml").read_text())
    return {f"keda {n}": trigger["metadata"]["query"] for n, trigger in enumerate(scaled["spec"]["triggers"], start=1)}


def filled(expression: str) -> str:
    """An expression of the dashboard as Grafana sends it."""
    for name, value in sorted(VARIABLES.items(), key=lambda pair: -len(pair[0])):
        expression = expression.replace(name, value)
    return expression


def metrics_in(expression: str) -> set[str]:
    """The names of our metrics, without those of recording rules."""
    unquoted = re.sub(r'"[^"]*"', "", expression)
    return set(re.findall(r"(?<![\w:])(?:router|process|python)_\w+(?![\w:])", unquoted))
