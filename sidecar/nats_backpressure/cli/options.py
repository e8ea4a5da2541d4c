"""What the commands that ask have in common on the command line: how to reach NATS, whom to ask, and for how long."""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeVar, cast

import click
from msgspec import Struct
from msgspec.structs import replace

from nats_backpressure.config.nats import Nats, check_nats, with_environment
from nats_backpressure.policy.validation import Problems
from nats_backpressure.protocol.patterns import pattern_problem
from nats_backpressure.protocol.subjects import Names

SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 0.1, 60.0
"""Seconds for connecting, and for each answer."""
_LOGIN: Final = ("NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN")
_FLAGS: Final = {
    "NATS_URL": "--server",
    "NATS_CREDS": "--creds",
    "NATS_USER": "--user",
    "NATS_PASSWORD": "--password",
    "NATS_NKEY": "--nkey",
    "NATS_CA": "--tlsca",
    "NATS_CERT": "--tlscert",
    "NATS_KEY": "--tlskey",
}
"""The flag that goes over each of the usual variables."""
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

F = TypeVar("F", bound=Callable[..., Any])


class Target(Struct, frozen=True):
    """Where to ask, as whom, and how long to wait."""

    nats: Nats
    names: Names
    timeout: float


def between(least: float, most: float) -> Callable[[str], float]:
    """Reads `30s`, `10m`, `1h30m` or `7d`: seconds, within bounds."""

    def seconds(said: str) -> float:
        found = duration(said)
        if found is None:
            raise click.BadParameter(f"{said!r} is no duration; it looks like 30s, 10m or 1h30m")
        if not least <= found <= most:
            raise click.BadParameter(f"must be from {_written(least)} to {_written(most)}")
        return found

    return seconds


def past(said: str) -> float:
    """A moment that was, in Unix seconds: RFC 3339, or so long ago."""
    if (ago := duration(said)) is not None:
        return max(0.0, time.time() - ago)
    try:
        moment = datetime.fromisoformat(said)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or moment.year < 1970:
        raise click.BadParameter(f"{said!r} is neither RFC 3339 with its zone, nor how long ago (1h)")
    return max(0.0, moment.timestamp())


def subject(said: str) -> str:
    """A subject, or a pattern of them."""
    if problem := pattern_problem(said):
        raise click.BadParameter(problem)
    return said


def duration(said: str) -> float | None:
    """Seconds, or None for what is no duration."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", said)
    if not parts or "".join(number + unit for number, unit in parts) != said or len(said) > 32:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _written(seconds: float) -> str:
    unit = next(unit for unit in reversed(_UNITS) if seconds >= _UNITS[unit])
    return f"{seconds / _UNITS[unit]:g}{unit}"


def asks(command: F) -> F:
    """The options of every command that asks, as the `nats` command has them; they arrive as one `target`."""

    @functools.wraps(command)
    def with_target(**given: Any) -> Any:
        connection = {name: given.pop(name) for name in _NAMES}
        return command(target=_target(connection), **given)

    for option in reversed(_OPTIONS):
        with_target = option(with_target)
    return cast(F, with_target)


_OPTIONS: Final = (
    click.option("--server", "-s", metavar="URL", help="NATS servers, with commas between them. [NATS_URL]"),
    click.option("--creds", metavar="FILE", help="Credentials file. [NATS_CREDS]"),
    click.option("--user", metavar="NAME", help="User, or a token where there is no password. [NATS_USER]"),
    click.option("--password", metavar="TEXT", help="Password. [NATS_PASSWORD]"),
    click.option("--nkey", metavar="FILE", help="File with an nkey seed. [NATS_NKEY]"),
    click.option("--tlsca", metavar="FILE", help="CA certificates. [NATS_CA]"),
    click.option("--tlscert", metavar="FILE", help="TLS certificate. [NATS_CERT]"),
    click.option("--tlskey", metavar="FILE", help="TLS key. [NATS_KEY]"),
    click.option("--js-domain", metavar="NAME", help="JetStream domain."),
    click.option("--inbox-prefix", metavar="PREFIX", help="Where answers come to.  [default: _INBOX]"),
    click.option("--name", default="backpressure", show_default=True, help="Name of the installation."),
    click.option(
        "--timeout",
        type=between(SHORTEST_TIMEOUT, LONGEST_TIMEOUT),
        metavar="DURATION",
        default="5s",
        show_default=True,
        help="For connecting, and for each answer.",
    ),
)
_NAMES: Final = (
    "server", "creds", "user", "password", "nkey", "tlsca", "tlscert", "tlskey",
    "js_domain", "inbox_prefix", "name", "timeout",
)  # fmt: skip


def _target(given: Mapping[str, Any]) -> Target:
    found = Problems()
    nats = with_environment(Nats(), _environment(given, os.environ), found)
    own = {name: given[name] for name in ("js_domain", "inbox_prefix") if given[name] is not None}
    nats = replace(nats, **own)
    check_nats(nats, found)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", given["name"]):
        found.add("--name", "must match [A-Za-z0-9_-]{1,64}")
    if found:
        raise click.UsageError("; ".join(_flagged(problem.path, problem.message) for problem in found.listed()))
    return Target(nats, Names(given["name"]), given["timeout"])


def _environment(given: Mapping[str, Any], env: Mapping[str, str]) -> dict[str, str]:
    """The usual variables, under what was given; a way to log in that was given replaces those of the environment."""
    over = {variable: given[flag.removeprefix("--")] for variable, flag in _FLAGS.items()}
    over = {variable: value for variable, value in over.items() if value is not None}
    if (user := over.get("NATS_USER")) is not None:
        if password := over.get("NATS_PASSWORD") or env.get("NATS_PASSWORD"):
            over["NATS_PASSWORD"] = password
        else:
            over = {**over, "NATS_TOKEN": user}
            del over["NATS_USER"]
    elif "NATS_PASSWORD" in over and env.get("NATS_USER"):
        over["NATS_USER"] = env["NATS_USER"]
    kept = {name: value for name, value in env.items() if name not in _LOGIN or not any(n in over for n in _LOGIN)}
    return kept | over


def _flagged(path: str, message: str) -> str:
    """A problem under the flag (or variable) it came by."""
    where = {"nats.user": "--user", "nats.password_file": "--password", "nats.tls": "--tlscert"}.get(path, path)
    return f"{_FLAGS.get(where, where.replace('nats.', '--').replace('_', '-'))}: {message}"
