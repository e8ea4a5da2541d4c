"""Reads the contexts of the `nats` command: JSON files with servers, a login and TLS under a name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import click
import msgspec
from msgspec import Struct

from nats_backpressure.config.nats import Nats
from nats_backpressure.protocol.inboxes import SHARED

LARGEST: Final = 64 * 1024
"""Bytes of a context."""
NOT_SUPPORTED: Final = ("nsc", "user_jwt", "user_seed", "socks_proxy")
"""Fields that cannot be used here; a context that sets one is refused, since it would log in otherwise."""


class _Context(Struct, frozen=True, rename={"js_domain": "jetstream_domain", "js_api_prefix": "jetstream_api_prefix"}):
    """The fields that are used; others, such as colours, are ignored."""

    url: str = ""
    token: str = ""
    user: str = ""
    password: str = ""
    creds: str = ""
    nkey: str = ""
    cert: str = ""
    key: str = ""
    ca: str = ""
    js_domain: str = ""
    js_api_prefix: str = ""
    inbox_prefix: str = ""
    nsc: str = ""
    user_jwt: str = ""
    user_seed: str = ""
    socks_proxy: str = ""


class Context(Struct, frozen=True):
    """A context, as the environment variables that say the same, and settings that have none."""

    variables: dict[str, str]
    base: Nats


def load_context(name: str, env: Mapping[str, str]) -> Context:
    """Raises UsageError where there is none of this name, or it cannot be used."""
    path = _folder(env) / f"{name}.json"
    if not re.fullmatch(r"[^/\\\0]{1,200}", name) or name.startswith("."):
        raise click.UsageError("--context: is no name of a context")
    try:
        with path.open("rb") as file:
            context = msgspec.json.decode(file.read(LARGEST), type=_Context)
    except OSError as error:
        text = (error.strerror or str(error)).lower()
        raise click.UsageError(f"--context: {path}: {text}; `nats context ls` prints the names") from None
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):  # its text may be a secret
        raise click.UsageError(f"--context: {path}: is no context of the `nats` command") from None
    for field in NOT_SUPPORTED:
        if getattr(context, field):
            raise click.UsageError(f"--context: {path}: has `{field}`, which is not supported here; use `creds`")
    return _used(context)


def _folder(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(env.get("HOME", "~")).expanduser() / ".config") / "nats" / "context"


def _used(context: _Context) -> Context:
    files = {"NATS_CREDS": "creds", "NATS_NKEY": "nkey", "NATS_CERT": "cert", "NATS_KEY": "key", "NATS_CA": "ca"}
    variables = {variable: _expanded(getattr(context, field)) for variable, field in files.items()}
    variables |= {"NATS_URL": context.url, "NATS_USER": context.user, "NATS_PASSWORD": context.password}
    variables["NATS_TOKEN"] = context.token
    if context.user and not context.password:  # as the `nats` command does
        variables |= {"NATS_USER": "", "NATS_TOKEN": context.user}
    base = Nats(
        js_domain=context.js_domain or None,
        js_api_prefix=context.js_api_prefix or None,
        inbox_prefix=context.inbox_prefix or SHARED,
    )
    return Context({name: value for name, value in variables.items() if value}, base)


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path else ""
