"""Checks of what is watched and by which rules: globs, policies, overrides, ack metrics, a second installation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Final

from nats_backpressure.config.settings import WatchSetting
from nats_backpressure.core.watch_filter import WatchEntry, is_stream_watched
from nats_backpressure.doctor import unseen
from nats_backpressure.doctor.facts import Consumer, Facts
from nats_backpressure.doctor.findings import Finding, error, note, unknown, warning
from nats_backpressure.doctor.own_command import own_command
from nats_backpressure.doctor.text import SHOWN, closest, count, moment, names
from nats_backpressure.policy.external import OVERRIDES
from nats_backpressure.policy.parse import OverrideEntry, PolicyEntry
from nats_backpressure.protocol.patterns import PatternIndex, covers, glob
from nats_backpressure.protocol.subjects import Names

BY_NAME: Final = frozenset({"ephemeral", "without acks", "not in watch"})
"""Why consumers are left out that count once `watch` has their exact name."""
UNUSED: Final = "it changes nothing; what it was written for has other marks"

ANY: Final = (WatchEntry("*"),)
"""Matches every stream that is no bucket, no object store and not ours."""


def watch(facts: Facts) -> Iterator[Finding]:
    """Whether each glob of `watch` matches a consumer that counts."""
    ours, watches_any = Names(facts.settings.name).ours, False
    ordinary = [name for name in facts.streams if is_stream_watched(name, ANY, ours)]
    for i, entry in enumerate(facts.settings.watch):
        streams = {name for name in facts.streams if is_stream_watched(name, [WatchEntry(entry.stream)], ours)}
        consumers = [each for each in facts.consumers if each.key.stream in streams]
        if not streams and not facts.all_consumers and "*" not in entry.stream:
            continue  # at a start, it has a log line of its own
        if not streams and (why := unseen.streams(facts)):
            yield unknown(f"watch[{i}].stream: `{entry.stream}`, as {why}")
        elif not ordinary and not streams:
            yield note(
                f"watch[{i}].stream: there is no stream yet that `{entry.stream}` could match",
                "nothing is watched until there is one",
                "create the streams and consumers: the sidecar finds them within seconds",
            )
        elif not streams:
            hint = closest(entry.stream, ordinary)
            yield warning(
                f"watch[{i}].stream: `{entry.stream}` matches none of {count(len(ordinary), 'stream')}{hint}",
                "nothing is watched by it, until there is such a stream",
                "correct it in the settings file, or create the stream",
            )
        else:
            yield from _consumer_globs(facts, i, entry, consumers)
        watches_any = watches_any or any(each.subjects for each in consumers)
    if watches_any:
        counted = sum(bool(each.subjects) for each in facts.consumers)
        yield Finding("ok", f"watches {count(len(facts.watched), 'subject')} of {count(counted, 'consumer')}")
        if why := unseen.consumers(facts):
            yield unknown(why)


def _consumer_globs(facts: Facts, i: int, entry: WatchSetting, consumers: Sequence[Consumer]) -> Iterator[Finding]:
    for j, pattern in enumerate(entry.consumers):
        matching = [each for each in consumers if glob(pattern, each.key.consumer)]
        if any(each.subjects for each in matching):
            continue
        where = f"watch[{i}].consumers[{j}]: `{pattern}` of {entry.stream}"
        unlisted = unseen.streams(facts) if "*" in entry.stream else ""
        if unlisted or any(glob(entry.stream, name) for name in facts.unread):
            yield unknown(f"{where}, as {unseen.consumers(facts)}")
        elif matching:
            reasons = Counter(each.left_out or "not in watch" for each in matching)
            why = ", ".join(f"{n:,} {reason}" for reason, n in reasons.items())
            problem = f"{where} matches {count(len(matching), 'consumer')}, none of which counts ({why})"
            yield warning(problem, "nothing is watched by it", _making_count(matching))
        else:
            hint = closest(pattern, [each.key.consumer for each in consumers])
            existing = count(len(consumers), "consumer" if facts.all_consumers else "watched consumer")
            yield warning(
                f"{where} matches none of {existing}{hint}",
                "nothing is watched by it, until there is such a consumer",
                "correct it in the settings file, or create the consumer",
            )


def _making_count(matching: Sequence[Consumer]) -> str:
    """What makes one of these count: its exact name, but where its subjects are why it does not."""
    for each in matching:
        if each.left_out in BY_NAME:
            return f"name one exactly to watch it all the same: consumers: [{each.key.consumer}]"
    key = matching[0].key
    return f"change the subjects that it reads: nats consumer edit {key.stream} {key.consumer} --filter SUBJECT"


def policies(facts: Facts) -> Iterator[Finding]:
    """Whether each policy of the file and of the bucket is in force for a watched subject."""
    stored = [each for each in facts.entries.values() if isinstance(each, PolicyEntry)]
    if not (facts.settings.policies or stored or facts.refused or unseen.entries(facts)):
        yield Finding("ok", "no policies in the settings file or the bucket")
    yield from _unused(facts, facts.settings.policies, "file")
    yield from _unused(facts, stored, "bucket")
    for refusal in facts.refused:
        errors = "; ".join(f"{path}: {message}" if path else message for path, message in refusal.rejection.errors)
        if refusal.in_force:
            cost = "what is named has no effect; the rest of it is in force"
            remedy = "update the sidecar to a version that knows it, or store the policy without it"
            yield warning(f"the policy `{refusal.subject}` of the bucket: {errors}", cost, remedy)
            continue
        yield error(
            f"the policy bucket has a refused entry, {refusal.subject}: {errors}",
            "the last good one stays in force where one is known, and none after a restart",
            _removing(facts, refusal.subject),
        )


def _removing(facts: Facts, entry: str) -> str:
    """The command that ends a refused entry: of a policy, of an override, of a key that no command writes."""
    if entry.startswith(OVERRIDES):
        return own_command(facts.settings, f"override '{entry.removeprefix(OVERRIDES)}' auto")
    if "=" in entry:
        return f"nats kv del {Names(facts.settings.name).policy_bucket} '{entry}'"
    change = own_command(facts.settings, f"policy set '{entry}' FILE")
    return f"store a good one, `{change}`, or remove it: `" + own_command(facts.settings, f"policy rm '{entry}'") + "`"


def _unused(facts: Facts, entries: Sequence[PolicyEntry], layer: str) -> Iterator[Finding]:
    index = PatternIndex((pattern, (entry, pattern)) for entry in entries for pattern in entry.subjects)
    used: set[tuple[int, str]] = set()
    for consumer in facts.consumers:
        for subject in consumer.subjects:
            applying = ((id(e), pattern) for e, pattern in index.covering(subject) if e.applies(consumer.key.consumer))
            used.update(islice(applying, 1))  # the most specific one counts alone
    for i, entry in enumerate(entries):
        for pattern in entry.subjects:
            if (id(entry), pattern) not in used:
                where = f"policies[{i}] `{pattern}`" if layer == "file" else f"the policy `{pattern}` of the bucket"
                if why := unseen.consumers(facts):
                    yield unknown(f"{where}, as {why}")
                    continue
                in_file = "correct or remove it in the settings file"
                remedy = in_file if layer == "file" else own_command(facts.settings, f"policy rm '{pattern}'")
                yield warning(f"{where} {_why_unused(facts, pattern)}", UNUSED, remedy)


def _why_unused(facts: Facts, pattern: str) -> str:
    covered = [subject for subject in facts.watched if covers(pattern, subject)]
    if covered:
        return f"covers {names(covered)}, where others are more specific or its `consumers` match none"
    return f"covers none of {count(len(facts.watched), 'watched subject')}{closest(pattern, facts.watched)}"


def overrides(facts: Facts) -> Iterator[Finding]:
    """Which overrides are in force, and which of them reach nothing."""
    entries = [each for each in facts.entries.values() if isinstance(each, OverrideEntry)]
    in_force = [entry for entry in entries if entry.override.until > facts.wall]
    index = PatternIndex((entry.pattern, entry) for entry in in_force)
    for entry in in_force:
        covered = [subject for subject in facts.watched if covers(entry.pattern, subject)]
        hidden = [subject for subject in covered if next(iter(index.covering(subject))) is not entry]
        reached = [subject for subject in covered if subject not in hidden]
        what = f"the override `{entry.pattern}` ({entry.override.action} until {moment(entry.override.until)})"
        remedy = own_command(facts.settings, f"override '{entry.pattern}' auto")
        if reached:
            but = f"; not {names(hidden)}, where another is more specific" if hidden else ""
            cost = "what is measured decides nothing there" + (
                ": an overload is not held back"
                if entry.override.action == "open"
                else ": all requests but `critical` ones are refused"
            )
            yield warning(f"{what} governs {names(reached)}{but}", cost, remedy)
        elif hidden:
            cost = "it has no effect where it was meant to have one"
            yield warning(f"{what} is hidden by more specific ones at {names(hidden)}", cost, remedy)
        elif why := unseen.consumers(facts):
            yield unknown(f"{what}, as {why}")
        else:
            hint = closest(entry.pattern, facts.watched)
            yield warning(f"{what} covers no watched subject{hint}", "it has no effect", remedy)


def sampling(facts: Facts) -> Iterator[Finding]:
    """Which watched consumers publish no ack metrics."""
    silent = [each.key for each in facts.consumers if each.subjects and each.sampled is False]
    if silent:
        edits = "; ".join(f"nats consumer edit {each.stream} {each.consumer} --sample 100" for each in silent[:SHOWN])
        yield note(
            f"{count(len(silent), 'watched consumer')} without `sample_freq`: {names(f'{s} > {c}' for s, c in silent)}",
            "their latency is estimated from what is in flight and the rate of acks, and p50 and p99 are not known",
            f"where that matters: {edits} (each costs one small message per ack)",
        )


def installations(facts: Facts) -> Iterator[Finding]:
    """Which other installations watch the same subjects."""
    watched = set(facts.watched)
    for other in facts.others:
        if other.failure is not None:
            yield unknown(f"what the installation `{other.name}` watches cannot be read: {other.failure.error}")
        elif common := sorted(watched.intersection(other.subjects)):
            yield warning(
                f"the installation `{other.name}` has states of {count(len(common), 'subject')} that this one watches: "
                f"{names(common)}",
                "each publishes events and states of its own, reads all again, and gateways of one ignore the other's "
                "overrides",
                "narrow `watch` of one of them (states of what it leaves stay for an hour); or give both the name "
                f"{facts.settings.name}: then they share all",
            )
