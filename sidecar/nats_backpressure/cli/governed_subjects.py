"""Finds which watched subjects a policy or an override governs, and why it does not govern others it covers."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import click
import msgspec
from msgspec import Struct

from nats_backpressure.cli.command import all_statuses
from nats_backpressure.cli.output import print_note
from nats_backpressure.cli.policy_bucket import PolicyKey
from nats_backpressure.policy.external import OVERRIDES, read_bucket_value
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry, parse_entry
from nats_backpressure.policy.precedence import index_entries, most_specific
from nats_backpressure.policy.snapshot import PolicyValue
from nats_backpressure.policy.validation import Problems
from nats_backpressure.protocol.messages import Status
from nats_backpressure.protocol.patterns import BadTail, PatternIndex, covers, decode
from nats_backpressure.runtime.ports import Unavailable

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient

NAMES_SHOWN = 5
"""Subjects named in a message; further ones are counted."""


class GovernedSubjects(Struct, frozen=True):
    """Watched subjects, those of them that the entry governs, and why it does not govern others it covers."""

    watched: tuple[str, ...]
    governed: tuple[str, ...]
    not_governed: dict[str, str]

    def sentence(self, verb: str = "governs") -> str:
        subjects = "1 watched subject" if len(self.watched) == 1 else f"{len(self.watched):,} watched subjects"
        others = f"; not {_format_names(list(self.not_governed), self.not_governed)}" if self.not_governed else ""
        return f"{verb} {len(self.governed):,} of {subjects}{others}"


async def find_governed(
    service: ServiceClient, key: PolicyKey, bucket: Mapping[str, PolicyValue], value: bytes, now: float = 0.0
) -> GovernedSubjects | None:
    """What `value` would govern under this key of the bucket. `now`: for an override, the server's time. None, and a
    note, if no sidecar answers which subjects are watched."""
    try:
        statuses = await all_statuses(service)
    except Unavailable as error:
        print_note(f"it is not known which subjects this governs: {error}")
        return None
    return governed_by(statuses, key, {**bucket, key.name: PolicyValue(value, 0)}, now)


def governed_by(
    statuses: Iterable[Status], key: PolicyKey, bucket: Mapping[str, PolicyValue], now: float = 0.0
) -> GovernedSubjects:
    """What the entry under this key of the bucket governs. `now`: for an override, the server's time."""
    index = _layer_index(bucket, key.is_override, key.name, now)
    statuses = tuple(statuses)
    governed: list[str] = []
    not_governed: dict[str, str] = {}
    for status in statuses:
        if covers(key.pattern, status.subject):
            reasons = [
                _why_not_governed(index, status.subject, consumer, key.pattern) for consumer in _consumer_names(status)
            ]
            if None in reasons:
                governed.append(status.subject)
            else:
                not_governed[status.subject] = str(reasons[0])
    return GovernedSubjects(tuple(status.subject for status in statuses), tuple(governed), not_governed)


def require_governed(key: PolicyKey, subjects: GovernedSubjects | None, force: bool) -> None:
    """Exits with 1 if nothing would be governed, unless forced."""
    if subjects is None or subjects.governed or force:
        return
    if subjects.not_governed:
        names = _format_names(list(subjects.not_governed), subjects.not_governed)
        why = f"it governs none of the watched subjects that it covers: {names}"
    elif not subjects.watched:
        why = "the sidecar watches no subject yet"
    else:
        close = difflib.get_close_matches(key.pattern, subjects.watched, 1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        names = _format_names(subjects.watched)
        why = f"it covers none of the {len(subjects.watched):,} watched subjects: {names}{hint}"
    raise click.ClickException(f"{key.pattern}: nothing was changed, because {why}. Use --force to change it anyway")


def stricter_pattern(subjects: GovernedSubjects) -> str | None:
    """A note about a watched pattern that covers a governed subject and is not governed: the stricter of two
    decides."""
    for pattern in subjects.watched:
        covered = next((name for name in subjects.governed if covers(pattern, name) and name != pattern), None)
        if covered is not None and pattern not in subjects.governed:
            return (
                f"{pattern} is watched too, covers {covered} and is not overridden:"
                f" when it rejects, {covered} is rejected too"
            )
    return None


def overrides_covering(bucket: Mapping[str, PolicyValue], pattern: str, now: float) -> list[OverrideEntry]:
    """The overrides in force that cover a pattern, the most specific first. `now`: the server's time."""
    entries = [parse_stored_override(key, value, now) for key, value in bucket.items() if key.startswith(OVERRIDES)]
    in_force = [entry for entry in entries if entry is not None and entry.override.until > now]
    return list(PatternIndex((entry.pattern, entry) for entry in in_force).covering(pattern))


def _layer_index(bucket: Mapping[str, PolicyValue], overrides: bool, own: str, now: float) -> PatternIndex[PolicyEntry]:
    """The overrides that have not ended, or else the policies. A value that cannot be read governs nothing."""
    entries: list[PolicyEntry] = []
    for key, value in bucket.items():
        if key.startswith(OVERRIDES) is not overrides:
            continue
        if overrides:
            override = parse_stored_override(key, value, now)
            if override is not None and (key == own or override.override.until > now):
                entries.append(PolicyEntry((override.pattern,)))
        else:
            with suppress(BadTail):
                entry = parse_stored_policy(key, value)
                if entry is None and key == own:  # the sidecar keeps the last good one in force
                    entry = PolicyEntry()
                if entry is not None:
                    entries.append(PolicyEntry((decode(key),), entry.consumers))
    return index_entries(entries)


def parse_policy(value: bytes) -> PolicyEntry | None:
    try:
        problems = Problems(newer_allowed=True)
        return parse_entry(msgspec.json.decode(value), need_subjects=False, problems=problems)[0]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def parse_stored_policy(key: str, value: PolicyValue) -> PolicyEntry | None:
    """None where a sidecar refuses it: nothing of it is known, or it is wrong."""
    entry = read_bucket_value(key, value.value, value.at, Problems(newer_allowed=True))
    return entry if isinstance(entry, PolicyEntry) else None


def parse_stored_override(key: str, value: PolicyValue, now: float) -> OverrideEntry | None:
    """None where it is not valid. One that is not stored yet counts as stored `now`."""
    entry = read_bucket_value(key, value.value, value.at or now, Problems())
    return entry if isinstance(entry, OverrideEntry) else None


def _why_not_governed(index: PatternIndex[PolicyEntry], subject: str, consumer: str | None, pattern: str) -> str | None:
    """Why a consumer follows another entry than the one for this pattern; None if it follows that one."""
    entry = most_specific(index, subject, consumer)
    if entry is None:
        return "the policy names none of its consumers"
    if entry.subjects != (pattern,):
        return "it has its own" if entry.subjects == (subject,) else f"{entry.subjects[0]} is more specific"
    return None


def _consumer_names(status: Status) -> list[str | None]:
    """The consumers that a status lists, and None if it has more."""
    names: list[str | None] = [each.consumer for each in status.consumers]
    return names if status.consumers_total == len(names) > 0 else [*names, None]


def _format_names(names: Sequence[str], why: Mapping[str, str] | None = None) -> str:
    shown = [f"{name} ({why[name]})" if why else name for name in names[:NAMES_SHOWN]]
    more = len(names) - len(shown)
    return ", ".join(shown) + (f" and {more:,} more" if more else "")
