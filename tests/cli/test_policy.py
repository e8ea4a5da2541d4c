"""`policy`: a policy is validated, written to the bucket, shown with its source and removed."""

from __future__ import annotations

from pathlib import Path

from nats.aio.client import Client

from tests.cli.policy_commands import ALL, bucket, source
from tests.support.command import Command
from tests.support.sidecar import SUBJECT, Sidecar, Wire


async def test_a_policy_is_set_shown_with_its_source_and_removed(
    command: Command, no_rejections: None, nc: Client, guarded: Sidecar, wire: Wire, tmp_path: Path
) -> None:
    await wire.status(status="inactive")
    file = tmp_path / "policy.yaml"
    file.write_text("retry_after_seconds: 7\n")
    assert await command.good("policy", "set", SUBJECT, file) == f"{SUBJECT}: stored as revision 1; {ALL}\n"
    assert "7" in (await source(command, "retry_after_seconds", "bucket")).split()
    ran = await command("policy", "set", SUBJECT, "-", "--dry-run", data="{retry_after_seconds: 9}")
    assert ran.stderr == "retry_after_seconds: 7 -> 9\n" and ran.stdout.startswith(f"{SUBJECT}: nothing was changed")
    (entry,) = (await command.json("policy", "ls"))["policies"]
    assert (entry["pattern"], entry["value"], entry["governs"]) == (SUBJECT, {"retry_after_seconds": 7}, [SUBJECT])
    assert (await command.json("policy", "get", SUBJECT))["sources"]["max_retry_attempts"] == "default"
    output = await command.failed("policy", "set", "beamline.*.>", "-", data="{mode: observe}")
    assert f"it governs none of the watched subjects that it covers: {SUBJECT} (it has its own). Use --force" in output
    assert await command.good("policy", "set", "beamline.*.>", "-", "--force", data="{mode: observe}")
    assert await bucket(nc, "beamline.=2A.=3E") == {"mode": "observe"}
    assert await command.good("policy", "rm", SUBJECT) == f"{SUBJECT}: removed; governed 1 of 1 watched subject\n"
    await source(command, "retry_after_seconds", "default")
    assert await command.failed("policy", "rm", SUBJECT) == f"Error: the bucket has no policy for {SUBJECT}\n"


BAD = "retry_after_seconds: 5\npending:\n  warn: 50\n  critical: 5\nretry_after: 5\n"


async def test_mistakes_in_a_file_are_reported_by_line_before_any_request(tmp_path: Path) -> None:
    command, file = Command("nats://127.0.0.1:1"), tmp_path / "policy.yaml"
    file.write_text(BAD)
    output = await command.failed("policy", "set", "a", file)
    assert sorted(output.splitlines()) == [
        f"{file}:3: pending.warn: must not be above critical, 50 is above 5",
        f"{file}:5: retry_after: unknown key",
    ]
    assert "pattern is given on the command line" in await command.failed(
        "policy", "set", "a", "-", data="subjects: [a]"
    )
    assert await command.failed("policy", "set", "a", "-", data="{}") == (
        "Error: -: is empty: to remove a policy use `policy rm PATTERN`\n"
    )
    assert "must be a mapping" in await command.failed("policy", "set", "a", "-", data="[]")
    assert "is not YAML" in await command.failed("policy", "set", "a", "-", data="a: b: c")
    missing = await command.failed("policy", "set", "a", tmp_path / "none")
    assert missing == f"Error: {tmp_path}/none: cannot be read: no such file or directory\n"
