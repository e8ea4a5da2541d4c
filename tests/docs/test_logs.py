"""docs/logs.md has a row for each log event of the service, and for nothing else."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "sidecar/nats_backpressure"
SERVICE = ("adapters", "app.py", "doctor", "wiring.py", "queries", "recording", "runtime")
REQUESTS = {"get.policy", "get.status", "validate.policy"}
"""Dotted names in the code that are subjects of requests."""


def test_every_log_event_is_explained() -> None:
    paths = [path for path in PACKAGE.rglob("*.py") if path.relative_to(PACKAGE).parts[0] in SERVICE]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    texts = {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    logged = {text for text in texts if re.fullmatch(r"[a-z_]+\.[a-z_]+", text)} - REQUESTS
    logged |= {node.args[0].value for node in nodes if _logs_a_constant(node)}
    explained = re.findall(r"^\| `(.+?)` \|", (ROOT / "docs/logs.md").read_text(), re.MULTILINE)
    assert explained == sorted(logged), "docs/logs.md has one row for each log event, in order"


def _logs_a_constant(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("debug", "info", "warning", "error", "exception")
        and isinstance(node.func.value, ast.Name)
        and node.func.value.id == "log"
        and isinstance(node.args[0], ast.Constant)
    )
