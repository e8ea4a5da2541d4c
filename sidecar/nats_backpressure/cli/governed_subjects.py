"""What a policy or an override governs: which of the watched subjects follow it, and what stands in its way."""

from __future__ import annotations

import difflib
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.command import jetstream, statuses
from nats_backpressure.cli.options import Target
from nats_backpressure.cli.output import note
from nats_backpressure.cli.policy_bucket import PolicyKey
from nats_backpressure.policy.active import PolicyValue
from nats_backpressure.policy.external import OVERRIDES, parse_override
from nats_backpressure.policy.guard import NO_GUARD
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry, parse_entry
from nats_backpressure.policy.precedence import PatternIndex
from nats_backpressure.protocol.messages import Status
from nats_backpressure.protocol.patterns import BadTail, covers, decode
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient
    from nats_backpressure.adapters.nats.kv import PolicyBucket

NAMED = 5
"""Subjects that are named; further ones are counted."""


class Governed(Struct, frozen=True):
    """What is known of it; `hidden` are the watched subjects it covers and does not govern, and why not."""

    watched: tuple[str, ...]
    governed: tuple[str, ...]
    hidden: dict[str, str]

    def line(self, verb: str = "governs") -> str:
        subjects = "1 watched subject" if len(self.watched) == 1 else f"{len(self.watched):,} watched subjects"
        missed = f"; not {_few(list(self.hidden), self.hidden)}" if self.hidden else ""
        return f"{verb} {len(self.governed):,} of {subjects}{missed}"


async def bucket(target: Target, line: ServiceClient) -> dict[str, PolicyValue]:
    """All of the policy bucket, by key. Raises Unavailable, with who makes the bucket where there is none."""
    return await _desk(target, line).all(line.client)


async def governed(
    line: ServiceClient, place: PolicyKey, held: Mapping[str, PolicyValue], value: bytes
) -> Governed | None:
    """What `value` would govern under this key of a bucket that holds all this. None, and a note, where no sidecar
    tells what is watched."""
    try:
        watched = await statuses(line)
    except Unavailable as error:
        note(f"what it governs is not known: {error}")
        return None
    index = _index({**held, place.key: PolicyValue(value, 0)}, place.overrides, place.key)
    governed: list[str] = []
    hidden: dict[str, str] = {}
    for status in watched:
        if covers(place.pattern, status.subject):
            reasons = [_instead(index, status.subject, consumer, place.pattern) for consumer in _consumers(status)]
            if None in reasons:
                governed.append(status.subject)
            else:
                hidden[status.subject] = str(reasons[0])
    return Governed(tuple(status.subject for status in watched), tuple(governed), hidden)


def check(place: PolicyKey, found: Governed | None, force: bool) -> None:
    """Exits with 1 where nothing would be governed, unless that is meant."""
    if found is None or found.governed or force:
        return
    if found.hidden:
        why = f"it governs none of the watched subjects it covers: {_few(list(found.hidden), found.hidden)}"
    elif not found.watched:
        why = "the sidecar watches no subject yet"
    else:
        close = difflib.get_close_matches(place.pattern, found.watched, 1)
        meant = f" (did you mean {close[0]}?)" if close else ""
        why = f"it covers none of the {len(found.watched):,} watched subjects: {_few(found.watched)}{meant}"
    raise click.ClickException(f"{place.pattern}: nothing was changed, since {why}. --force does it all the same")


def stricter(found: Governed) -> str | None:
    """A watched pattern that covers what is governed and is not governed itself: of two the stricter one decides."""
    for other in found.watched:
        under = next((name for name in found.governed if covers(other, name) and name != other), None)
        if under is not None and other not in found.governed:
            return f"{other} is watched too, covers {under} and is not overridden: where it refuses, {under} is refused"
    return None


def over(held: Mapping[str, PolicyValue], pattern: str) -> list[OverrideEntry]:
    """The overrides in force that cover a pattern, the most specific first."""
    now = time.time()
    found = [_override(key, value) for key, value in held.items() if key.startswith(OVERRIDES)]
    standing = {one.pattern: one for one in found if one is not None and one.override.until > now}
    covering = PatternIndex(PolicyEntry((name,)) for name in standing).covering(pattern)
    return [standing[entry.subjects[0]] for entry in covering]


def _desk(target: Target, line: ServiceClient) -> PolicyBucket:
    from nats_backpressure.adapters.nats.kv import PolicyBucket

    return PolicyBucket(jetstream(target, line), line.names)


def _index(held: Mapping[str, PolicyValue], overrides: bool, own: str) -> PatternIndex:
    """The layer: overrides that are not over, or policies. What cannot be read governs nothing."""
    entries: list[PolicyEntry] = []
    for key, value in held.items():
        if key.startswith(OVERRIDES) is not overrides:
            continue
        if overrides:
            one = _override(key, value)
            if one is not None and (key == own or one.override.until > time.time()):
                entries.append(PolicyEntry((one.pattern,)))
        else:
            with suppress(BadTail):
                entry = _policy(value.value)
                if entry is None and key == own:  # the sidecar keeps the last good one there
                    entry = PolicyEntry()
                if entry is not None:
                    entries.append(PolicyEntry((decode(key),), entry.consumers))
    return PatternIndex(entries)


def _policy(value: bytes) -> PolicyEntry | None:
    try:
        return parse_entry(msgspec.json.decode(value), need_subjects=False)[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _override(key: str, value: PolicyValue) -> OverrideEntry | None:
    found = parse_override(key, value.value, value.at or time.time(), NO_GUARD)
    return found if isinstance(found, OverrideEntry) else None


def _instead(index: PatternIndex, subject: str, consumer: str | None, pattern: str) -> str | None:
    """Why a consumer follows another entry than the one for this pattern; None if it follows that one."""
    entry = index.most_specific(subject, consumer)
    if entry is None:
        return "no consumer of it is named"
    if entry.subjects != (pattern,):
        return "it has its own" if entry.subjects == (subject,) else f"{entry.subjects[0]} is closer"
    return None


def _consumers(status: Status) -> list[str | None]:
    """Those that a status shows, and None for others that it does not."""
    shown: list[str | None] = [each.consumer for each in status.consumers]
    return shown if status.consumers_total == len(shown) > 0 else [*shown, None]


def _few(names: Sequence[str], why: Mapping[str, str] | None = None) -> str:
    shown = [f"{name} ({why[name]})" if why else name for name in names[:NAMED]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
