"""Command-line options that commands share: how to reach NATS, which installation, which timeout, which output.

Also the parsers of durations, times and subjects that arguments use.
"""

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

from nats_backpressure.cli.contexts import load_context
from nats_backpressure.config.nats import VARIABLES, Nats, check_nats, with_environment
from nats_backpressure.policy.validation import Problems
from nats_backpressure.protocol.inboxes import inbox_of
from nats_backpressure.protocol.patterns import pattern_problem
from nats_backpressure.protocol.subjects import Names

VISIBLE: Final = "a secret in an argument can be seen by everybody on this machine"
SHORTEST_TIMEOUT, LONGEST_TIMEOUT = 0.1, 60.0
"""Seconds to connect, and seconds to wait for each reply."""
INBOX: Final = inbox_of("operator")
"""Of those who may use what `permissions --role operator` prints. A context has what the `nats` command uses."""
_LOGIN_VARIABLES: Final = ("NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN")
_FLAG_OF: Final = {
    "NATS_URL": "--server",
    "NATS_CREDS": "--creds",
    "NATS_USER": "--user",
    "NATS_NKEY": "--nkey",
    "NATS_CA": "--tlsca",
    "NATS_CERT": "--tlscert",
    "NATS_KEY": "--tlskey",
}
"""The flag that takes precedence over each environment variable."""
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}

F = TypeVar("F", bound=Callable[..., Any])
SETTING = re.compile(r"\bnats\.([a-z_]+)")
"""A setting that a message names; a command has a flag of its name."""


class Target(Struct, frozen=True):
    """Where a command connects, which installation it asks, and how long it waits."""

    nats: Nats
    names: Names
    timeout: float
    """Seconds to connect, and for each reply."""


def duration_between(shortest: float, longest: float) -> Callable[[str], float]:
    """A parser of `30s`, `10m`, `1h30m` or `7d` into seconds within these bounds."""

    def parse(text: str) -> float:
        seconds = parse_duration(text)
        if seconds is None:
            raise click.BadParameter(f"{text!r} is not a duration; write it like 30s, 10m or 1h30m")
        if not shortest <= seconds <= longest:
            raise click.BadParameter(f"must be from {_format_duration(shortest)} to {_format_duration(longest)}")
        return seconds

    return parse


def parse_timeout(text: str) -> float:
    """Seconds of a timeout; a bare number counts as seconds, as most tools take it."""
    seconds = f"{text}s" if re.fullmatch(r"\d+(\.\d+)?", text) else text
    return duration_between(SHORTEST_TIMEOUT, LONGEST_TIMEOUT)(seconds)


def parse_since(text: str) -> float:
    """A time in the past, in Unix seconds: from RFC 3339, or from a duration before now."""
    if (ago := parse_duration(text)) is not None:
        return max(0.0, time.time() - ago)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        moment = None
    if moment is None or moment.tzinfo is None or moment.year < 1970:
        raise click.BadParameter(f"{text!r} is neither an RFC 3339 time with a time zone nor a duration such as 1h")
    return max(0.0, moment.timestamp())


def parse_subject(text: str) -> str:
    """A subject, or a pattern of subjects."""
    if problem := pattern_problem(text):
        raise click.BadParameter(problem)
    return text


def parse_duration(text: str) -> float | None:
    """Seconds; None if the text is not a duration."""
    parts = re.findall(r"(\d+(?:\.\d+)?)(ms|[smhd])", text)
    if not parts or "".join(number + unit for number, unit in parts) != text or len(text) > 32:
        return None
    return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _format_duration(seconds: float) -> str:
    unit = next(unit for unit in reversed(_UNITS) if seconds >= _UNITS[unit])
    return f"{seconds / _UNITS[unit]:g}{unit}"


def json_option(text: str) -> Callable[[F], F]:
    """Adds `-o json` and `--json`; the command gets `as_json`."""

    def add(command: F) -> F:
        @functools.wraps(command)
        def with_output(output: str, as_json: bool, **arguments: Any) -> Any:
            return command(as_json=as_json or output == "json", **arguments)

        with_output = click.option("--json", "as_json", is_flag=True, help="The same as `-o json`.")(with_output)
        kinds = click.Choice(("text", "json"))
        return cast(F, click.option("--output", "-o", type=kinds, default="text", help=f"json: {text}")(with_output))

    return add


def connection_flags(command: F) -> F:
    """Adds the options of every querying command, named as in the `nats` command; the command gets them as `target`."""

    @functools.wraps(command)
    def with_target(**arguments: Any) -> Any:
        flags = {name: arguments.pop(name) for name in CONNECTION_OPTIONS}
        return command(target=_read_target(flags), **arguments)

    for option in reversed(_OPTIONS):
        with_target = option(with_target)
    return cast(F, with_target)


def _refuse_password(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        raise click.UsageError(f"--password: {VISIBLE}; set NATS_PASSWORD, or give --password-file FILE")


_OPTIONS: Final = (
    click.option("--server", "-s", metavar="URL", help="NATS servers, separated by commas. [NATS_URL]"),
    click.option(
        "--context",
        metavar="NAME",
        help="A context of the `nats` command, in place of the variables of the environment. [NATS_CONTEXT]",
    ),
    click.option("--creds", metavar="FILE", help="Credentials file. [NATS_CREDS]"),
    click.option("--user", metavar="NAME", help="User name; its password is in NATS_PASSWORD or a file. [NATS_USER]"),
    click.option("--password-file", metavar="FILE", help="File with the password of the user."),
    click.option("--token-file", metavar="FILE", help="File with a token; else it is in NATS_TOKEN."),
    click.option("--password", hidden=True, expose_value=False, callback=_refuse_password),
    click.option("--nkey", metavar="FILE", help="File with an nkey seed. [NATS_NKEY]"),
    click.option("--tlsca", metavar="FILE", help="CA certificates. [NATS_CA]"),
    click.option("--tlscert", metavar="FILE", help="TLS certificate. [NATS_CERT]"),
    click.option("--tlskey", metavar="FILE", help="TLS key. [NATS_KEY]"),
    click.option("--js-domain", metavar="NAME", help="JetStream domain."),
    click.option("--js-api-prefix", metavar="PREFIX", help="Prefix of a JetStream API that the account imports."),
    click.option(
        "--inbox-prefix",
        metavar="PREFIX",
        help=f"Subject prefix of replies, one that your user may subscribe to.  [default: {INBOX}]",
    ),
    click.option(
        "--name",
        default="backpressure",
        show_default=True,
        help="Name of the sidecar installation (`name` in its settings file).",
    ),
    click.option(
        "--timeout",
        type=parse_timeout,
        metavar="DURATION",
        default="5s",
        show_default=True,
        help="Time to connect, and to wait for each reply, from 0.1s to 60s.",
    ),
)
CONNECTION_OPTIONS: Final = (
    "server", "context", "creds", "user", "password_file", "token_file", "nkey", "tlsca", "tlscert", "tlskey",
    "js_domain", "js_api_prefix", "inbox_prefix", "name", "timeout",
)  # fmt: skip


def connection_given() -> bool:
    """Whether an option of the running command, or a context, says how to connect. Without one the variables of the
    environment and the defaults do."""
    context = click.get_current_context()
    where = {context.get_parameter_source(name) for name in CONNECTION_OPTIONS if name not in ("name", "timeout")}
    return click.core.ParameterSource.COMMANDLINE in where or bool(os.environ.get("NATS_CONTEXT"))


def _read_target(flags: Mapping[str, Any]) -> Target:
    problems = Problems()
    if "@" in (flags["server"] or ""):
        raise click.UsageError(f"--server: {VISIBLE}; put a URL with a login into NATS_URL")
    env, base = _environment(flags, os.environ)
    nats = with_environment(base, env, problems)
    check_nats(nats, problems)
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", flags["name"]):
        problems.add("--name", "must match [A-Za-z0-9_-]{1,64}")
    if problems:
        raise click.UsageError("; ".join(_under_flag(problem.path, problem.message) for problem in problems.listed()))
    return Target(nats, Names(flags["name"]), flags["timeout"])


def _environment(flags: Mapping[str, Any], env: Mapping[str, str]) -> tuple[dict[str, str], Nats]:
    """The environment variables, replaced by those of a context and then by the flags that were given; and what has no
    variable. A flag or context that logs in replaces every login of what it replaces."""
    variables, base = dict(env), Nats(inbox_prefix=INBOX)
    if name := flags["context"] or env.get("NATS_CONTEXT"):
        context = load_context(name, env)
        # All of it: what a context leaves out is not taken from somewhere else.
        variables = {key: value for key, value in variables.items() if key not in VARIABLES} | context.variables
        base = context.base
    given = {variable: flags[flag.removeprefix("--")] for variable, flag in _FLAG_OF.items()}
    given = {variable: value for variable, value in given.items() if value is not None}
    files = {field: flags[field] for field in ("password_file", "token_file") if flags[field] is not None}
    if "NATS_USER" in given or "password_file" in files:  # one of them completes the other
        given = {key: variables[key] for key in ("NATS_USER", "NATS_PASSWORD") if key in variables} | given
    if "password_file" in files:
        given.pop("NATS_PASSWORD", None)
    if files or any(name in given for name in _LOGIN_VARIABLES):
        variables = {key: value for key, value in variables.items() if key not in _LOGIN_VARIABLES}
    others = {
        field: flags[field] for field in ("js_domain", "js_api_prefix", "inbox_prefix") if flags[field] is not None
    }
    return variables | given, replace(base, **files, **others)


def _under_flag(path: str, message: str) -> str:
    """A problem, under the flag (or the variable) that caused it."""
    name = {"nats.user": "--user", "nats.password_file": "--password-file", "nats.tls": "--tlscert"}.get(path, path)
    return f"{_FLAG_OF.get(name, name.replace('nats.', '--').replace('_', '-'))}: {SETTING.sub(_as_flag, message)}"


def _as_flag(setting: re.Match[str]) -> str:
    return f"--{setting[1].replace('_', '-')}"
