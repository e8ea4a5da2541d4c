"""This build and an earlier one on one bucket: an upgrade and a rollback, each in the middle of an incident, and both
side by side. What the earlier one does not know of a policy leaves the rest of it in force."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from nats_backpressure.protocol.subjects import encode
from tests.chaos.conftest import Install
from tests.chaos.installation import FAST, MARK, Installation, Replica
from tests.support.earlier_build import earlier_build
from tests.support.event_checks import STATUS_EVENTS
from tests.support.sidecar import SUBJECT, eventually

STORED: dict[str, Any] = {"pending": FAST["pending"], "of_a_later_build": {"anything": [1]}}
"""Without its known part nothing here is an overload: the file's marks are far away."""
FAR: dict[str, Any] = {**FAST, "pending": {"overload": 1_000_000}}


def location(environment: dict[str, str]) -> Path:
    command = [sys.executable, "-c", "import nats_backpressure; print(nats_backpressure.__file__)"]
    ran = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return Path(ran.stdout.strip())


async def serving(installation: Installation, name: str, environment: dict[str, str]) -> Replica:
    replica = await installation.add(name, environment)
    await replica.sidecar.observing()
    return replica


async def known_part_is_in_force(installation: Installation) -> None:
    async def marks() -> bool:
        reply = await installation.nc.request(f"backpressure.v1.get.policy.{SUBJECT}", timeout=2)
        effective = json.loads(reply.data)
        return bool(effective["policy"]["pending"]["overload"] == MARK and "bucket" in str(effective["sources"]))

    await eventually(marks, "the known part of the policy to be in force")


async def test_an_upgrade_and_a_rollback_in_incidents(install: Install, tmp_path: Path) -> None:
    earlier = earlier_build(tmp_path / "earlier")
    assert location(earlier).is_relative_to(tmp_path) and not location({}).is_relative_to(tmp_path)
    installation = await install(0, settings={"policies": [FAR]})

    old = await serving(installation, "old", earlier)
    bucket = await installation.nc.jetstream().key_value("backpressure_policy")
    await bucket.put(encode(SUBJECT), json.dumps(STORED).encode())
    await known_part_is_in_force(installation)
    await installation.overload()

    new = await serving(installation, "new", {})
    await old.terminate()  # the upgrade
    await known_part_is_in_force(installation)
    await installation.calm()
    await installation.overload()

    back = await serving(installation, "back", earlier)
    await new.terminate()  # the rollback
    await installation.calm()
    await known_part_is_in_force(installation)

    forth = await serving(installation, "forth", {})
    await installation.overload()
    await back.kill()
    await installation.calm()
    await forth.kill()
    await serving(installation, "last", earlier)
    await installation.check()

    told = [each["instance"] for each in await installation.events() if each["type"] in STATUS_EVENTS]
    assert told[0] == "old" and set(told) >= {"old", "new", "back", "forth"}, "each build has written"
