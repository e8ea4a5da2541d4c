"""Which folder may import which. The rules name folders, so a new file needs no entry here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sidecar" / "nats_backpressure"
OURS = "nats_backpressure"

LAYERS = [
    {"cli"},
    {"app"},
    {"wiring"},
    {"adapters", "queries", "recording"},
    {"doctor"},
    {"runtime"},
    {"core"},
    {"config"},
    {"policy"},
]
"""From the top down. A folder imports itself and what is below it; folders side by side do not import each other.
`wiring` gives the adapters the queries that they need.
Settings carry policies, so `config` is above `policy`. `protocol` is below all; `client` knows it only, and
`demo` only these two."""
RANK = {folder: rank for rank, folders in enumerate(LAYERS) for folder in folders}
PURE = {
    *(
        "__future__",
        "collections",
        "dataclasses",
        "datetime",
        "difflib",
        "enum",
        "functools",
        "hashlib",
        "itertools",
        "math",
        "re",
    ),
    *("array", "bisect", "copy", "string", "struct", "typing", "zlib", "msgspec"),
}
"""What the pure folders may import."""
NATS_BOTTOM = {
    *("patched_client", "direct_replies", "direct_requests", "reply_guard", "credentials", "bounded_client"),
    *("api", "api_types", "kv", "concurrency_limit", "repeated_consumers", "repeated_list"),
    *("samples", "observer_requests", "list_reader"),
    *("stream_follower", "stream_position", "stream_pulls", "pull", "policy_limits"),
    *("hint_subscriptions", "denied_rights", "denial_log", "login", "own_streams", "permissions", "remedies"),
    "other_installations",
}
"""What the NATS adapters have in common."""
KEPT_TO = {
    "nats": ("adapters.nats", "adapters.embedded_server", "client", "demo"),
}

INTEGRATIONS = "client.integrations"

FILES = sorted(PACKAGE.rglob("*.py"))
BENCHMARKS = sorted((PACKAGE.parent.parent / "benchmarks").glob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    """Every module that a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {
                f"{node.module}.{alias.name}" if _is_module(node.module, alias.name) else node.module
                for alias in node.names
            }
    return names


def _is_module(package: str, name: str) -> bool:
    folder = PACKAGE.parent.joinpath(*package.split("."))
    return (folder / f"{name}.py").exists() or (folder / name / "__init__.py").exists()


def ours(path: Path) -> set[str]:
    return {name.removeprefix(f"{OURS}.") for name in imported(path) if name.startswith(f"{OURS}.")}


def outside(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)} - {OURS}


def under(*folders: str) -> list[Path]:
    return [path for path in FILES if name_of(path).startswith(folders)]


def folder(name: str) -> str:
    return name.split(".")[0]


CHECKS = [path for path in under("doctor") if name_of(path) != "doctor.at_start"]
"""From facts to findings, as pure as the core; `at_start` reads the facts of a sidecar that starts, and logs."""


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_run_downwards(path: Path) -> None:
    me = folder(name_of(path))
    if me in RANK:
        wrong = {m for m in ours(path) if folder(m) != me and folder(m) in RANK and RANK[folder(m)] <= RANK[me]}
        wrong |= {m for m in ours(path) if folder(m) in ("client", "demo") and me != "cli"}
    else:
        allowed = {"protocol": (), "client": ("protocol",), "demo": ("client", "protocol")}.get(me, ("cli",))
        wrong = {m for m in ours(path) if folder(m) != me and folder(m) not in allowed}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}, which is above it or beside it"


@pytest.mark.parametrize("path", under("core.signals", "core.status", "core.admission"), ids=name_of)
def test_signals_status_and_admission_know_each_other_by_the_model_only(path: Path) -> None:
    me = ".".join(name_of(path).split(".")[:2])
    wrong = {m for m in ours(path) if m.startswith("core.") and not m.startswith((me, "core.model"))}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}"


@pytest.mark.parametrize("path", [*under("protocol", "policy", "core"), *CHECKS], ids=name_of)
def test_what_decides_knows_no_world(path: Path) -> None:
    assert outside(path) <= PURE, f"{name_of(path)} imports {sorted(outside(path) - PURE)}"
    calls = {
        n.func.attr
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute)
    }
    assert not calls & {"now", "utcnow", "today"}, f"{name_of(path)} reads the time: it must be an argument"


@pytest.mark.parametrize("path", under("runtime", "queries", "recording", "doctor", "wiring", "app"), ids=name_of)
def test_what_runs_below_the_adapters_asks_the_clock_port_for_the_time(path: Path) -> None:
    if name_of(path) == "runtime.clock":
        return
    read = {
        node.func.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not read & {"monotonic", "time", "time_ns", "monotonic_ns", "utcnow", "today"}, name_of(path)


@pytest.mark.parametrize("path", under("adapters"), ids=name_of)
def test_an_adapter_knows_no_other(path: Path) -> None:
    me = name_of(path).removeprefix("adapters.")
    home = me.split(".")[0]
    others = {m.removeprefix("adapters.") for m in ours(path) if m.startswith("adapters.")} - {me}
    shared = {f"nats.{name}" for name in NATS_BOTTOM} if home == "nats" else set()
    wrong = {m for m in others if m not in shared and not (home == "prometheus" and m.startswith("prometheus"))}
    assert not wrong, f"{name_of(path)} imports {sorted(wrong)}"
    if me in shared:
        assert not others - shared, f"{name_of(path)} is shared, and may import no adapter that is not"


@pytest.mark.parametrize("path", under("client"), ids=name_of)
def test_the_client_needs_nats_and_msgspec_only(path: Path) -> None:
    """Except what fits it into one framework: nothing else imports that."""
    if name_of(path).startswith(INTEGRATIONS):
        return
    assert not [module for module in ours(path) if module.startswith(INTEGRATIONS)], name_of(path)
    brought = outside(path) - set(sys.stdlib_module_names) - {"nats", "msgspec"}
    assert not brought, f"{name_of(path)} needs {sorted(brought)}, which every importer must then install"


@pytest.mark.parametrize("library", KEPT_TO)
def test_a_library_of_the_world_stays_in_its_adapter(library: str) -> None:
    users = {name_of(path) for path in FILES if library in outside(path)}
    wrong = {name for name in users if not name.startswith(KEPT_TO[library])}
    assert not wrong, f"{library} is imported by {sorted(wrong)}"


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.name)
def test_benchmarks_import_no_tests(path: Path) -> None:
    assert "tests" not in outside(path), f"{path.name} imports tests: move what both need to benchmarks/"


def test_there_are_four_loose_files() -> None:
    assert {path.name for path in PACKAGE.glob("*.py")} == {"__init__.py", "__main__.py", "app.py", "wiring.py"}
