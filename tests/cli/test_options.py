"""Invalid options and arguments are usage errors; durations and times are parsed as people write them."""

from __future__ import annotations

import pytest

from nats_backpressure.cli.options import duration_between, parse_since, parse_timeout
from tests.support.command import Command

NOWHERE = Command("nats://127.0.0.1:1")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "a..b"], "[SUBJECT]"),
        (["status", "-s", "http://x"], "--server: must be nats://HOST:PORT or tls://HOST:PORT"),
        (["status", "--creds", "a", "--nkey", "./b"], "several logins"),
        (["status", "--tlscert", "a"], "--tlscert: cert_file and key_file must be set together"),
        (["status", "--timeout", "2h"], "must be from 100ms to 1m"),
        (["status", "--timeout", "61"], "must be from 100ms to 1m"),
        (["status", "--timeout", "soon"], "is not a duration; write it like 30s"),
        (["status", "--name", "a.b"], "--name: must match"),
        (["status", "--password", "s3cret"], "--password: a secret in an argument can be seen by everybody"),
        (["status", "-s", "nats://u:s3cret@host"], "--server: a secret in an argument can be seen by everybody"),
        (["status", "--user", "u"], "--user: needs a password: --password-file or NATS_PASSWORD"),
        (["status", "a.b", "--limit", "3"], "--status and --limit are for a list"),
        (["status", "--sort", "age"], "'age' is not one of"),
        (["override"], "Usage: main override"),
        (["completion", "tcsh"], "'tcsh' is not one of"),
        (["decide", "router", "a"], "No such command 'router'"),
        (["decide", "gateway", "a", "--attempt", "0"], "--attempt"),
        (["decide", "consumer", "a", "--max-messages", "0"], "--max-messages"),
        (["events", "--since", "yesterday"], "is neither an RFC 3339 time"),
        (["events", "--type", "panic"], "--type"),
        (["events", "--limit", "0"], "--limit"),
        (["override", "a", "shut", "--for", "1m"], "'shut' is not one of"),
        (["override", "a", "open"], "open and reject need --for"),
        (["override", "a", "auto", "--for", "1m"], "auto does not take it"),
        (["override", "a", "open", "--for", "30d"], "must be from 1s to 7d"),
        (["schema", "Nonsense"], "no message has this name"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
async def test_usage_errors_exit_with_2_before_any_request(arguments: list[str], message: str) -> None:
    output = await NOWHERE.failed(*arguments, code=2)
    assert message in output and "s3cret" not in output


def test_durations_and_times_are_parsed_as_people_write_them() -> None:
    assert [parse_timeout(text) for text in ("3", "0.5", "3s", "1m")] == [3, 0.5, 3, 60]
    assert duration_between(0, 1e6)("1h30m") == 5400 and duration_between(0, 1e6)("250ms") == 0.25
    assert parse_since("1970-01-01T01:00:10+01:00") == 10
