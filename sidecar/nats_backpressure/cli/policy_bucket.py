"""A change to the policy bucket: checked by the sidecar's own rules, written only over what was read, and taken back
where the sidecar refuses it for what only it knows (its file's marks, its guard)."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.command import jetstream, read
from nats_backpressure.cli.options import Target
from nats_backpressure.cli.output import note
from nats_backpressure.policy.active import PolicyValue
from nats_backpressure.policy.external import LARGEST_VALUE, OVERRIDES
from nats_backpressure.policy.parse import parse_entry
from nats_backpressure.policy.validation import Problem
from nats_backpressure.protocol.messages import Event
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.runtime.ports import Conflict

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient
    from nats_backpressure.adapters.nats.kv import PolicyBucket

Document = dict[str, Any]

ATTEMPTS = 5
"""Times a change is tried where others write the same key."""
REFUSED_WITHIN = 1.0
"""Seconds in which a sidecar says that it refuses a policy: by the contract, as fast as one is in force."""


class PolicyKey(Struct, frozen=True):
    """A key of the bucket: a pattern's policy, or its override."""

    pattern: str
    overrides: bool = False

    @property
    def key(self) -> str:
        return (OVERRIDES if self.overrides else "") + encode(self.pattern)

    @property
    def refused_under(self) -> str:
        """The tail of the event that says that what it holds was refused."""
        return encode((OVERRIDES if self.overrides else "") + self.pattern)


async def change(target: Target, line: ServiceClient, place: PolicyKey, value: bytes) -> int:
    """Put a value under a key, or nothing, which takes the key out. The revision that was written, or taken out; 0
    where there was nothing to take out."""
    from nats_backpressure.adapters.nats.kv import PolicyBucket

    desk = PolicyBucket(jetstream(target, line), line.names)
    for _ in range(ATTEMPTS):
        was = await desk.read(place.key)
        try:
            if value:
                return await _put(line, desk, place, was, value)
            if was.value:
                await desk.remove(place.key, was.revision)
            return was.revision if was.value else 0
        except Conflict:
            continue
    raise click.ClickException(f"others keep changing what stands for {place.pattern}: try again")


def checked(policy: Document, where: Callable[[Problem], str] = lambda problem: problem.line) -> bytes:
    """The policy as it is stored. Exits with 1 and one line for each mistake, told by `where`."""
    problems = parse_entry(policy, need_subjects=False)[1]
    if "subjects" in policy:
        problems += (Problem("subjects", "has no place here: the pattern is given on the command line"),)
    value = b"" if problems else msgspec.json.encode(policy)
    if len(value) > LARGEST_VALUE:
        problems = (Problem("", f"is larger than {LARGEST_VALUE:,} bytes"),)
    refuse(map(where, problems))
    return value


def refuse(lines: Iterable[str]) -> None:
    """Exits with 1 and a line for each mistake, if there is one."""
    told = list(lines)
    for line in told:
        note(line)
    if told:
        sys.exit(1)


async def _put(line: ServiceClient, desk: PolicyBucket, place: PolicyKey, was: PolicyValue, value: bytes) -> int:
    key = place.key
    async with line.hear([f"{line.names.prefix}.event.policy_rejected.{place.refused_under}"]) as heard:
        revision = await desk.write(key, value, was.revision)
        try:
            async with asyncio.timeout(REFUSED_WITHIN):
                message = await heard.get()
        except TimeoutError:
            return revision
        if message is None:
            note("stored, but the connection was lost before a sidecar could refuse it: see `policy get`")
            return revision
        with suppress(Conflict):  # somebody else mended it meanwhile
            if was.value:
                await desk.write(key, was.value, revision)
            else:
                await desk.remove(key, revision)
    problems = read(message.data, Event).errors or ()
    refuse(f"the sidecar refuses it: {Problem(p.path, p.message).line}" for p in problems)
    raise click.ClickException("the sidecar refuses it; the bucket is as it was")
