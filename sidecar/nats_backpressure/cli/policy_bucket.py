"""Reads and changes the policy bucket: a change is validated first, and undone if the sidecar rejects it.

A sidecar can reject what is valid here: only it knows its file's marks and its guard.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.command import decode_reply, jetstream_api
from nats_backpressure.cli.options import Target
from nats_backpressure.cli.output import print_note
from nats_backpressure.policy.external import LARGEST_VALUE, OVERRIDES
from nats_backpressure.policy.parse import parse_entry, validate_document
from nats_backpressure.policy.refusals import IGNORED
from nats_backpressure.policy.rejection_marks import is_of_revision
from nats_backpressure.policy.snapshot import PolicyValue
from nats_backpressure.policy.validation import FieldProblem, Problems
from nats_backpressure.protocol.messages import Event
from nats_backpressure.protocol.policies import PolicyValidation
from nats_backpressure.protocol.subjects import encode
from nats_backpressure.runtime.ports import Conflict, Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient
    from nats_backpressure.adapters.nats.policy_store import PolicyBucket

ATTEMPTS = 5
"""Times a change is tried while others write the same key."""
REJECTION_WITHIN = 1.0
"""Seconds within which a sidecar publishes that it rejects a policy: the contract's limit for putting one in force."""


class PolicyKey(Struct, frozen=True):
    """A key of the bucket: the policy for a pattern, or the override for it."""

    pattern: str
    is_override: bool = False

    @property
    def name(self) -> str:
        return (OVERRIDES if self.is_override else "") + encode(self.pattern)

    @property
    def rejection_tail(self) -> str:
        """The last part of the subject of the event that reports a rejected value."""
        return encode((OVERRIDES if self.is_override else "") + self.pattern)


def _policy_bucket(target: Target, service: ServiceClient) -> PolicyBucket:
    from nats_backpressure.adapters.nats.policy_store import PolicyBucket

    return PolicyBucket(jetstream_api(target, service), service.names, service.client)


async def read_bucket(target: Target, service: ServiceClient) -> dict[str, PolicyValue]:
    """All values of the bucket, by key. Raises Unavailable; if there is no bucket, its text says who creates it."""
    return await _policy_bucket(target, service).all()


async def server_time(target: Target, service: ServiceClient) -> float:
    """The time of day at the server that has the bucket, in Unix seconds: the sidecars end overrides by that clock.
    This machine's where the server shows none (before 2.10)."""
    return await _policy_bucket(target, service).server_time()


async def write_change(target: Target, service: ServiceClient, key: PolicyKey, value: bytes) -> int:
    """Write a value, or remove the key if it is empty. Returns the revision that was written or removed; 0 if there
    was nothing to remove."""
    bucket = _policy_bucket(target, service)
    for _ in range(ATTEMPTS):
        before = await bucket.read(key.name)
        try:
            if value:
                return await _write_unless_rejected(service, bucket, key, before, value)
            if before.value:
                await bucket.remove(key.name, before.revision)
            return before.revision if before.value else 0
        except Conflict:
            continue
    raise click.ClickException(f"others keep changing the entry for {key.pattern}: try again")


def encode_policy(policy: dict[str, Any], where: Callable[[FieldProblem], str], *, allow_unknown: bool) -> bytes:
    """The policy as it is stored. Exits with 1 and one line for each mistake, formatted by `where`. `allow_unknown`:
    what this version does not know is none, beside something that it knows: sidecars take it so."""
    checked = Problems(newer_allowed=allow_unknown)
    entry, problems = parse_entry(policy, need_subjects=False, problems=checked)
    if entry is not None and not entry.fields:
        problems += tuple(checked.ignored)
    if "subjects" in policy:
        problems += (FieldProblem("subjects", "is not allowed here: the pattern is given on the command line"),)
    value = b"" if problems else msgspec.json.encode(policy)
    if len(value) > LARGEST_VALUE:
        problems = (FieldProblem("", f"is larger than {LARGEST_VALUE:,} bytes"),)
    exit_with_problems(map(where, problems))
    return value


async def require_allowed(service: ServiceClient, value: bytes, *, note: bool) -> None:
    """Exits with 1 if the guard of the sidecar would reject this policy: only it knows that. `note`: say so if none
    answers. What the policy would inherit is known once it is stored: a mark that fits the default policy may not fit
    that of the file, and the other way round."""
    try:
        problems = await refusal(service, msgspec.json.decode(value))
    except Unavailable as error:
        if note:
            print_note(f"it is not known whether the sidecar would reject it: {error}")
        return
    exit_with_problems(f"the sidecar would reject it: {problem}" for problem in problems)


async def refusal(service: ServiceClient, document: Any) -> tuple[str, ...]:
    """Why the guard of the sidecar refuses a policy; empty if it does not. Raises Unavailable."""
    reply = decode_reply(await service.query("validate.policy", document), PolicyValidation)
    above_default = set(validate_document(document)[0])
    problems = (FieldProblem(each.path, each.message) for each in reply.errors)
    return tuple(problem.line for problem in problems if problem not in above_default)


def exit_with_problems(lines: Iterable[str]) -> None:
    """Exits with 1 and these lines; returns if there are none."""
    problems = list(lines)
    for line in problems:
        print_note(line)
    if problems:
        sys.exit(1)


async def _write_unless_rejected(
    service: ServiceClient, bucket: PolicyBucket, key: PolicyKey, before: PolicyValue, value: bytes
) -> int:
    async with service.subscribe([f"{service.names.prefix}.event.policy_rejected.{key.rejection_tail}"]) as rejections:
        revision = await bucket.write(key.name, value, before.revision)
        errors = await _errors_of(revision, rejections)
        if ignored := [each.line for each in errors if each.message.endswith(IGNORED)]:
            print_note(f"stored, but a sidecar of an older version knows only a part of it: {'; '.join(ignored)}")
        if ignored or not errors:
            return revision
        with suppress(Conflict):  # somebody else wrote another value since
            if before.value:
                await bucket.write(key.name, before.value, revision)
            else:
                await bucket.remove(key.name, revision)
    exit_with_problems(f"the sidecar rejects it: {problem.line}" for problem in errors)
    raise SystemExit(1)


async def _errors_of(revision: int, rejections: asyncio.Queue[Any]) -> list[FieldProblem]:
    """Why a sidecar rejects this revision; empty if none does in time. Events about the metadata of a consumer, or
    about an earlier value, have the same subject."""
    with suppress(TimeoutError):
        async with asyncio.timeout(REJECTION_WITHIN):
            while (message := await rejections.get()) is not None:
                with suppress(Unavailable):
                    event = decode_reply(message.data, Event)
                    if event.errors and is_of_revision(event.policy_revision or "", revision):
                        return [FieldProblem(each.path, each.message) for each in event.errors]
            print_note("stored, but the connection was lost before a sidecar could reject it: check with `policy get`")
    return []
