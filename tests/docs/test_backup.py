"""The commands of "Backup and restore", as operations.md has them, bring back the policies of a bucket."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import msgspec
from nats.aio.client import Client

from tests.support.servers import NatsServer

PAGE = Path(__file__).parents[2] / "docs/operations.md"
VALUES = {
    "orders.=2A": b'{"mode":"observe","pending":{"overload":500}}',
    "orders.paid": b'{"retry_after_seconds":5}',
    "refused": b'{"pending":{"warn":-1}}',
    "unreadable": b"[",
}


async def shell(script: str, directory: Path, url: str) -> str:
    """What it printed on standard error."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    process = await asyncio.create_subprocess_exec(
        *("bash", "-e", "-c", script),
        cwd=directory,
        env={"PATH": path, "NATS_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return errors.decode()


async def test_policies_are_stored_again_whether_or_not_anything_is_governed_now(
    server: NatsServer, nc: Client, tmp_path: Path
) -> None:
    section = PAGE.read_text().split("## Backup and restore")[1].split("\n## ")[0]
    back_up, restore = re.findall(r"```\n(.*?)```", section, re.DOTALL)
    js = nc.jetstream()
    kv = await js.create_key_value(bucket="backpressure_policy")
    for key, value in VALUES.items():
        await kv.put(key, value)
    await shell(back_up, tmp_path, server.url)
    await js.delete_key_value("backpressure_policy")
    kv = await js.create_key_value(bucket="backpressure_policy")
    errors = await shell(restore, tmp_path, server.url)
    assert "pending.warn: must be" in errors and "must be a mapping" in errors, errors
    stored = {key: (await kv.get(key)).value or b"" for key in await kv.keys()}
    wanted = {key: VALUES[key] for key in ("orders.=2A", "orders.paid")}
    assert {k: msgspec.json.decode(v) for k, v in stored.items()} == {
        k: msgspec.json.decode(v) for k, v in wanted.items()
    }
