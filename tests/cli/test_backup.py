"""Backup and restore of policies by the very commands that docs/operations.md prints."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from nats.aio.client import Client

from nats_backpressure.protocol.subjects import encode
from tests.support.command import Command
from tests.support.servers import NatsServer
from tests.support.sidecar import SUBJECT, Sidecar, eventually

SECTION = (Path(__file__).parents[2] / "docs/operations.md").read_text().partition("\n## Backup and restore\n")[2]
BACKUP, RESTORE = re.findall(r"^```\n(.+?)^```$", SECTION.partition("\n## ")[0], re.MULTILINE | re.DOTALL)
POLICIES: dict[str, dict[str, Any]] = {
    SUBJECT: {"retry_after_seconds": 7, "pending": {"warn": 5, "critical": 50, "overload": 500}},
    "beamline.*.>": {"consumers": ["router-*"], "alerts": [{"name": "long", "when": {"pending_above": 5000}}]},
    "nobody.watches.this": {"mode": "observe"},
    "stored.by.a.newer.version": {"mode": "observe", "not_known_here": 1},
    "with.a.word.that.is.not.known": {"mode": "not_known_here", "retry_after_seconds": 7},
}


async def run(script: str, directory: Path, server: NatsServer) -> list[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    plain = {name: value for name, value in os.environ.items() if not name.startswith("NATS_")}
    ran = await asyncio.to_thread(
        subprocess.run,
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        env=plain | {"NATS_URL": server.url, "PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


async def stored(command: Command) -> dict[str, Any]:
    ran = await command("policy", "ls", "-o", "json")
    if ran.exit_code:  # the bucket is being made again
        return {}
    return {each["pattern"]: each["value"] for each in json.loads(ran.stdout)["policies"]}


async def test_policies_come_back_into_a_new_bucket_but_for_one_that_the_guard_refuses(
    command: Command, nc: Client, server: NatsServer, guarded: Sidecar, tmp_path: Path
) -> None:
    js = nc.jetstream()
    bucket = await js.key_value("backpressure_policy")
    for pattern, policy in {**POLICIES, "a.refused.one": {"pending": {"overload": 9000}}}.items():
        await bucket.put(encode(pattern), json.dumps(policy).encode())
    await bucket.put("junk", b"no JSON")
    await bucket.put("unknown.alone", b'{"pendnig": 1}')
    await run(BACKUP, tmp_path, server)

    await js.delete_stream("KV_backpressure_policy")

    async def is_made_again() -> bool:
        return "KV_backpressure_policy" in [info.config.name for info in await js.streams_info()]

    await eventually(is_made_again, "the bucket to be created again", 30)
    assert await stored(command) == {}
    printed = await run(RESTORE, tmp_path, server)
    left_out = {line for line in printed if line.startswith("left out: ")}
    assert left_out == {f"left out: {pattern}" for pattern in ("a.refused.one", "junk", "unknown.alone")}
    assert await stored(command) == POLICIES
    sources = (await command.json("policy", "get", SUBJECT))["sources"]
    assert sources["retry_after_seconds"] == "bucket"
