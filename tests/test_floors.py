"""The drawing of the house: who may import whom. A file without a floor fails, and so does an import upwards."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sidecar"

FLOORS: list[tuple[str, set[str]]] = [
    ("the words", {"wire.opening", "core.model", "core.patterns", "core.document", "core.moments"}),
    ("the rules' words", {"core.rules", "core.claims"}),
    ("the loop's eyes", {"core.gauge", "core.offered"}),
    ("the loop's patience", {"core.patience"}),
    ("the loop", {"core.adaptive"}),
    ("the memory", {"core.state"}),
    ("the windows", {"core.window", "core.ages"}),
    ("the diary", {"core.aggregate"}),
    ("the facts", {"core.trust", "core.loss", "core.thresholds", "core.freshness", "core.pace", "core.outbox"}),
    ("what was put off", {"core.hand_backs"}),
    ("the bounds", {"core.guard"}),
    ("the warnings", {"core.forecast", "core.alerts", "core.diagnosis"}),
    ("the rules", {"core.signals", "core.status", "core.admission", "core.policy", "core.pull", "core.roster"}),
    ("the members", {"core.membership"}),
    ("the layers", {"core.layers"}),
    ("the guests", {"core.foreign"}),
    ("the stimuli", {"core.stimuli"}),
    ("the change", {"core.changes"}),
    ("the step", {"core.step"}),
    ("the paper", {"written", "nats_options", "tape.recording", "tape.differences"}),
    ("the papers", {"observations", "settings", "wire.subjects", "wire.messages", "wire.replies", "wire.requests"}),
    ("the reports", {"wire.reports", "tape.rules"}),
    ("the records", {"wire.stored", "wire.windows", "wire.past", "tape.hints", "tape.longhand", "history"}),
    ("the shorthand", {"tape.shorthand"}),
    ("the client's words", {"client.values", "client.stats", "client.interest"}),
    ("the client's rules", {"client.admission"}),
    ("the client's gates", {"client.gate"}),
    ("the client's picture", {"client.picture"}),
    ("the client's senses", {"client.watch", "client.asking", "client.events"}),
    ("the client", {"client.client"}),
    ("the client's users", {"client.pull_gate", "client.asgi"}),
    ("the ports", {"ports", "clock", "ending"}),
    ("the rules in force", {"rulebook", "tape.recorder"}),
    ("the book", {"book"}),
    ("the digest", {"digest"}),
    ("the voice", {"render", "finding"}),
    ("the answers", {"answers"}),
    ("the past", {"past"}),
    ("the shell", {"ledger", "perform"}),
    ("the eyes", {"sweep", "tape.ticks"}),
    ("the loops", {"service", "tape.replay"}),
    ("the line", {"edges.jetstream", "edges.catalogue", "edges.shapes"}),
    ("the pass", {"edges.lasts", "edges.batches", "edges.door"}),
    (
        "the edges",
        {
            "edges.connection",  "edges.embedded", "edges.consumer_info", "edges.advisories", "edges.reports",
            "edges.events", "edges.event_log", "edges.state_store", "edges.policy_store", "edges.resources",
            "edges.responder", "edges.metrics", "edges.gauges", "edges.probes", "edges.logs", "edges.policy_desk",
        },
    ),
    ("the hand", {"edges.asking"}),
    ("the roof", {"main"}),
    ("the stage", {"demo.scene"}),
    ("the programs", {"demo.load", "demo.worker", "demo.gateway", "demo.cast", "demo.summary"}),
    ("the play", {"demo.play"}),
    ("the story", {"demo.story", "demo.report"}),
    ("the print", {"cli.show", "cli.options"}),
    ("the talk", {"cli.talk"}),
    ("the pen", {"cli.bucket"}),
    ("the reach", {"cli.reach"}),
    (
        "the doors",
        {
            "cli.run", "cli.check", "cli.demo", "cli.replay", "cli.status", "cli.decide", "cli.events", "cli.policy",
            "cli.override", "cli.schema",
        },
    ),
    ("the door", {"cli"}),
    ("the bell", {"__main__"}),
]  # fmt: skip
HEIGHT = {module: height for height, (_, modules) in enumerate(FLOORS) for module in modules}

CORE_MAY_IMPORT = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "math",
    "typing",
    "zlib",
    "msgspec",
}
KEPT_TO = {"nats": ("edges", "client", "demo"), "prometheus_client": ("edges",)}

FILES = sorted(path for path in PACKAGE.rglob("*.py") if not (path.name == "__init__.py" and path.parent.name != "cli"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> set[str]:
    """Every module a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
    return found


def ours(path: Path) -> set[str]:
    return {m.removeprefix("sidecar.") for m in imports(path) if m.startswith("sidecar.")} & HEIGHT.keys()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_imports_only_from_the_floors_below_it(path: Path) -> None:
    me = name_of(path)
    assert me in HEIGHT, f"{me} has no floor: give it one in FLOORS"
    upwards = {m for m in ours(path) if HEIGHT[m] >= HEIGHT[me]}
    assert not upwards, f"{me} reaches up or sideways to {sorted(upwards)}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "core"], ids=name_of)
def test_the_core_knows_no_world(path: Path) -> None:
    outside = {m.split(".")[0] for m in imports(path)} - CORE_MAY_IMPORT - {"sidecar"}
    assert not outside, f"{name_of(path)} brings {sorted(outside)} into the core"
    assert all(m.startswith(("sidecar.core", "sidecar")) for m in imports(path) if m.startswith("sidecar"))


@pytest.mark.parametrize("library", KEPT_TO)
def test_a_library_of_the_world_stays_at_the_edges(library: str) -> None:
    users = {name_of(p).split(".")[0] for p in FILES if any(m.split(".")[0] == library for m in imports(p))}
    assert users <= set(KEPT_TO[library]), f"{library} is used in {sorted(users)}"


@pytest.mark.parametrize("path", [p for p in FILES if p.parent.name == "client"], ids=name_of)
def test_the_client_knows_the_sidecar_only_by_its_wire(path: Path) -> None:
    others = {
        m for m in imports(path) if m.startswith("sidecar.") and not m.startswith(("sidecar.client", "sidecar.wire"))
    }
    assert not others, f"{name_of(path)} reaches into {sorted(others)}"
    brought = {m.split(".")[0] for m in imports(path)} - set(sys.stdlib_module_names) - {"sidecar", "nats", "msgspec"}
    assert not brought, f"{name_of(path)} brings {sorted(brought)} to whoever imports it"


def test_every_floor_is_lived_on() -> None:
    assert HEIGHT.keys() <= {name_of(p) for p in FILES}
