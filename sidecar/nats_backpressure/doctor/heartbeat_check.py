"""Check of the heartbeat: whether a sidecar of this name runs, by what it writes to the state bucket."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Final

from nats_backpressure.doctor.facts import Facts, OwnStream, Right
from nats_backpressure.doctor.findings import Finding, note
from nats_backpressure.doctor.text import names
from nats_backpressure.protocol.subjects import Names

LATE: Final = 14.0
"""Seconds without a heartbeat after which clients have opened; with a longer interval, this many of them."""
HEARTBEATS: Final = 5


def heartbeat(facts: Facts) -> Iterator[Finding]:
    """Whether a sidecar of this name runs (it writes heartbeats to the state bucket), and whether all judge alike."""
    late = late_after(facts)
    for stream in facts.own:
        if stream.name != state_bucket(facts) or not stream.exists:
            continue
        if is_running(facts):
            yield Finding("ok", f"a sidecar has written {stream.name} within {late:g} s")
            yield from _different(facts)
            continue
        if facts.replicas:
            yield _unwritten(facts, stream)
            yield from _different(facts)
            continue
        ever = "has ever written" if stream.quiet is None else f"has written for {stream.quiet:,.0f} s to"
        yield note(
            f"no sidecar of the name {facts.settings.name} {ever} {stream.name}",
            "if none runs, no status is known and nothing is held back",
            "start it; if it runs, see `state` above, and the end of its log",
        )


def _unwritten(facts: Facts, bucket: OwnStream) -> Finding:
    """Of a sidecar that was heard: the bucket may have been made while we looked."""
    heard = f"a sidecar runs: {names(sorted(itertools.chain.from_iterable(facts.replicas.values())))}"
    if bucket.quiet is None:
        return Finding("ok", f"{heard}; it has not written {bucket.name} yet")
    return note(
        f"{heard}; none has written {bucket.name} for {bucket.quiet:,.0f} s",
        "clients that follow it have opened, and hold nothing back",
        "nothing where it has just started; else see `state` above, and the end of its log",
    )


def _different(facts: Facts) -> Iterator[Finding]:
    if len(facts.replicas) > 1:
        groups = "; ".join(names(instances) for instances in facts.replicas.values())
        yield note(
            f"replicas of the name {facts.settings.name} judge by different policies: {groups}",
            "what is stored follows those that wrote it; of `get.status` and metrics the marks, the pressure and the "
            "levels follow the replica that answers",
            "nothing while a settings file is rolled out; else give all of them the same settings file and version; "
            "where they have, correct what `policies` below names and restart them",
        )


def is_running(facts: Facts) -> bool:
    """Whether a sidecar has written a heartbeat lately."""
    buckets = (stream for stream in facts.own if stream.name == state_bucket(facts) and stream.exists)
    return any(bucket.quiet is not None and bucket.quiet < late_after(facts) for bucket in buckets)


def runs_now(facts: Facts) -> bool:
    """Whether a sidecar runs: it was heard, or may not be heard by this login and has written lately. A heartbeat alone
    may be that of one that has just stopped."""
    heard = Right("subscribe", f"{Names(facts.settings.name).internal}.>", False) not in facts.rights
    return bool(facts.replicas) or (is_running(facts) and not heard)


def late_after(facts: Facts) -> float:
    """Seconds after the last heartbeat from which on none is said to run."""
    return max(LATE, HEARTBEATS * facts.settings.publish.heartbeat_seconds)


def state_bucket(facts: Facts) -> str:
    return f"KV_{Names(facts.settings.name).state_bucket}"
