"""`--context`: a context of the `nats` command replaces the environment, and flags replace the context."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from nats_backpressure.cli.contexts import load_context
from nats_backpressure.cli.options import Target, connection_flags

FULL = {
    "description": "production", "url": "nats://prod:4222", "user": "bob", "password": "hidden", "color": "red",
    "jetstream_domain": "hub", "inbox_prefix": "_INBOX_bob", "ca": "~/ca.pem",
}  # fmt: skip


def target(home: Path, *arguments: str, **env: str) -> Target:
    """Where a command with these arguments connects."""
    found: list[Target] = []

    @click.command()
    @connection_flags
    def command(target: Target) -> None:
        found.append(target)

    with pytest.MonkeyPatch.context() as patch:
        for name in ("NATS_URL", "NATS_TOKEN", "NATS_PASSWORD", "NATS_USER", "NATS_CONTEXT", "NATS_CREDS"):
            patch.delenv(name, raising=False)
        patch.setenv("XDG_CONFIG_HOME", str(home))
        for name, value in env.items():
            patch.setenv(name, value)
        command.main(arguments, standalone_mode=False)
    return found[0]


def write(home: Path, name: str, context: Any) -> None:
    folder = home / "nats/context"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(context if isinstance(context, str) else json.dumps(context))


def test_a_context_replaces_the_environment_and_flags_replace_a_context(tmp_path: Path) -> None:
    write(tmp_path, "prod", FULL)
    nats = target(tmp_path, "--context", "prod", NATS_URL="nats://else:4222", NATS_TOKEN="t").nats
    assert (nats.servers, nats.user, nats.token) == (("nats://prod:4222",), "bob", None)
    assert nats.password is not None and nats.password.reveal() == "hidden"
    assert (nats.js_domain, nats.inbox_prefix) == ("hub", "_INBOX_bob")
    assert nats.tls.ca_file == str(Path("~/ca.pem").expanduser())
    password = tmp_path / "password"
    password.write_text("other")
    nats = target(
        tmp_path, "-s", "nats://near:4222", "--user", "eve", "--password-file", str(password), NATS_CONTEXT="prod"
    ).nats
    assert (nats.servers, nats.user, nats.password, nats.password_file) == (
        ("nats://near:4222",), "eve", None, str(password),
    )  # fmt: skip
    write(tmp_path, "token", {"url": "nats://t:4222", "user": "secret"})
    nats = target(tmp_path, "--context", "token").nats
    assert nats.user is None and nats.token is not None and nats.token.reveal() == "secret"
    nats = target(tmp_path, "--token-file", str(password), NATS_USER="u", NATS_PASSWORD="p").nats
    assert (nats.user, nats.password, nats.token_file) == (None, None, str(password))


@pytest.mark.parametrize(
    ("name", "context", "problem"),
    [
        ("other", FULL, "no such file or directory; `nats context ls`"),
        ("prod", '{"url": 1, "password": "hidden"}', "is no context of the `nats` command"),
        ("prod", {"nsc": "nsc://O/A/U"}, "has `nsc`, which is not supported here"),
        ("../prod", FULL, "is no name of a context"),
    ],
    ids=["none", "not readable", "not supported", "a path"],
)
def test_a_context_that_cannot_be_used_is_a_usage_error(tmp_path: Path, name: str, context: Any, problem: str) -> None:
    write(tmp_path, "prod", context)
    with pytest.raises(click.UsageError, match=problem) as raised:
        load_context(name, {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)})
    assert "hidden" not in str(raised.value)
