"""Querying commands start without the server's libraries."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

SERVER = (
    "nats_backpressure.app",
    "nats_backpressure.adapters.http_probes",
)
NOBODY = ["--server", "nats://127.0.0.1:1", "--timeout", "0.1s"]
SHOW = f"""
import json, sys
from nats_backpressure.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print(json.dumps([name for name in {SERVER!r} if name in sys.modules]))
"""


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(["status", *NOBODY], id="status"),
        pytest.param(["decide", "gateway", "orders", *NOBODY], id="decide"),
        pytest.param(["events", *NOBODY], id="events"),
        pytest.param(["events", "--since", "1h", *NOBODY], id="events --since"),
        pytest.param(["events", "--follow", *NOBODY], id="events --follow"),
        pytest.param(["policy", "get", "orders", *NOBODY], id="policy get"),
        pytest.param(["override", "orders", "open", "--for", "1m", *NOBODY], id="override"),
        pytest.param(["schema", "Decision"], id="schema"),
        pytest.param(["doctor", "--timeout", "0.1s"], id="doctor"),
        pytest.param(["check", "sidecar.yaml"], id="check"),
    ],
)
def test_a_querying_command_does_not_load_the_server(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "sidecar.yaml").write_text("watch: [{stream: ORDERS}]\n")
    run = subprocess.run([sys.executable, "-c", SHOW, *arguments], cwd=tmp_path, capture_output=True, text=True)
    assert "Usage" not in run.stderr, "the command line is one that the command accepts"
    assert json.loads(run.stdout.splitlines()[-1]) == []


def test_the_sidecar_runs_without_what_only_other_commands_need() -> None:
    """Each is some MiB in every pod. structlog would import rich by itself, and nats-py aiohttp."""
    script = (
        "import sys\n"
        "from nats_backpressure.cli import main, run\n"
        "with run._without_unused():\n"
        "    from nats_backpressure import app\n"
        "app.start = lambda *arguments: print(*(name for name, module in sys.modules.items() if module)) or 0\n"
        "main(['run'])\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={})
    loaded = set(ran.stdout.split())
    assert "nats_backpressure.app" in loaded
    assert not loaded & {
        "rich",
        "pygments",
        "aiohttp",
        "uvicorn",
        "starlette",
        "nkeys",
        "nacl",
        "importlib.metadata",
        "zipfile",
        "nats_backpressure.adapters.embedded_server",
        "nats_backpressure.demo.run",
        "nats_backpressure.cli.status",
    }


def test_the_sidecar_tells_the_server_the_version_of_its_client() -> None:
    script = (
        "from nats_backpressure.cli import run\n"
        "with run._without_unused():\n"
        "    import nats.aio.client\n"
        "print(nats.aio.client.__version__)\n"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={})
    assert ran.stdout.strip() == version("nats-py")
