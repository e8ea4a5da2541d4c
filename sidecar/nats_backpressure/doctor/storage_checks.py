"""Checks of streams: ours are as the settings say, fit the cluster and take writes; others store no request of ours."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from nats_backpressure.doctor.account_checks import FULL, NO_CONSUMER
from nats_backpressure.doctor.facts import Facts, OwnStream
from nats_backpressure.doctor.findings import Finding, error, note, unknown, warning
from nats_backpressure.doctor.own_stream_costs import ON_DOWN_SERVERS, cost_without, is_down
from nats_backpressure.doctor.right_costs import FILE_ALONE, NOT_STORED
from nats_backpressure.doctor.text import count, names
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.captured_subjects import request_subjects

LOSING: Final = frozenset({"subjects", "retention", "mirror", "sealed", "no_ack", "max_msgs"})
"""Settings with which a stream of ours does not take or keep what is stored in it."""
FEW_COPIES: Final = "while a server that has them is down, no change is stored or published"
LATE: Final = 14.0
"""Seconds without a heartbeat after which clients have opened; with a longer interval, this many of them."""
HEARTBEATS: Final = 5
SAFE_FROM: Final = 3
"""Servers of a cluster from which on copies survive the loss of one."""
WITH_SERVERS: Final = f"if the cluster has {SAFE_FROM} servers or more (`nats server report jetstream` shows them)"
"""A client cannot count them."""


def resources(facts: Facts) -> Iterator[Finding]:
    """Whether the stream and the buckets exist, with the settings that they should have."""
    for stream in facts.own:
        if stream.failure is not None:
            remedy = ON_DOWN_SERVERS if is_down(facts, stream) else stream.failure.remedy
            problem = f"{stream.name} cannot be read: {stream.failure.error}"
            yield error(problem, cost_without(facts, stream), remedy)
        elif not stream.exists:
            yield _missing(facts, stream)
        else:
            yield from _differing(stream)
            if 0 <= stream.max_consumers <= stream.consumers:
                yield warning(
                    f"{stream.name} has {stream.consumers:,} of {count(stream.max_consumers, 'consumer')}",
                    NO_CONSUMER,
                    f"remove one that nobody needs (`nats consumer ls {stream.name}`), or make the stream again "
                    "without max_consumers",
                )


def _missing(facts: Facts, stream: OwnStream) -> Finding:
    """A sidecar that may create it and can creates it: then nothing is wrong yet."""
    publish, problem = facts.settings.publish, f"{stream.name} does not exist"
    make = warning if stream.optional else error
    cost = FILE_ALONE if stream.optional else NOT_STORED
    make_it = f"run: {stream.make_it}"
    if _cluster(facts) and publish.replicas < SAFE_FROM:
        make_it = f"{WITH_SERVERS}, set publish.replicas to {SAFE_FROM} first, here too: {make_it}"
    if not publish.manage_resources:
        return make(problem, cost, make_it)
    if _denied(facts, stream):
        return make(f"{problem}, and this login may not create it", cost, f"see `rights`; or {make_it}")
    if _runs_alone(facts) and publish.replicas > 1:
        return make(problem, cost, "set publish.replicas to 1 (see `copies`): the sidecar then creates it")
    return note(problem, "none: the sidecar creates it when it starts", f"start the sidecar; or {make_it}")


def _denied(facts: Facts, stream: OwnStream) -> bool:
    end = f".STREAM.CREATE.{stream.name}"
    return any(not right.allowed and right.subject.endswith(end) for right in facts.rights)


def _differing(stream: OwnStream) -> Iterator[Finding]:
    """Of everything but the number of copies, of which `copies` says what is to be said."""
    differs = {key: each for key, each in stream.differs.items() if key != "num_replicas"}
    if stream.full:
        cost = "what does not fit is not stored there"
        yield error(f"{stream.name} has no room: {stream.full}; {_shown(differs)}", cost, _unlimited(stream))
        return
    cost = "it is used as it is; where it drops or refuses what is stored there, states or events are lost"
    new = {key: each for key, each in differs.items() if key in stream.fixed}
    for some, remedy in (
        ({key: each for key, each in differs.items() if key not in new}, stream.edit),
        (new, f"only a new stream can have these: `nats stream rm {stream.name}`, then `{stream.make_it}`"),
    ):
        if some:
            make = error if LOSING & some.keys() else warning
            yield make(f"{stream.name} has other settings: {_shown(some)}", cost, remedy)


def _shown(differs: Mapping[str, tuple[object, object]]) -> str:
    return "; ".join(f"{key} is {has}, and should be {wanted}" for key, (wanted, has) in differs.items())


def _unlimited(stream: OwnStream) -> str:
    return f"nats stream edit {stream.name} --max-bytes=-1 --max-msgs=-1 --max-msg-size=-1"


def copies(facts: Facts) -> Iterator[Finding]:
    """Whether the number of copies fits the cluster, and all copies follow."""
    yield from _copies_to_make(facts)
    existing = [stream for stream in facts.own if stream.exists]
    yield from _number_of_copies(facts, existing)
    for stream in existing:
        if not stream.leader:
            remedy = f"start the servers that have its copies: `nats stream info {stream.name}` shows which are away"
            yield error(f"{stream.name} has no leader", cost_without(facts, stream), remedy)
        elif stream.absent:
            yield warning(
                f"{stream.name}: the copies at {names(stream.absent)} do not follow",
                "if one more server is lost, nothing can be stored there",
                "start these servers; or, where the cluster has another server for the copy: "
                f"nats stream cluster peer-remove {stream.name} {stream.absent[0]}",
            )
    if unread := [stream.name for stream in facts.own if stream.failure is not None]:
        yield unknown(f"{names(unread)} cannot be read")


def _number_of_copies(facts: Facts, existing: Iterable[OwnStream]) -> Iterator[Finding]:
    """Of existing ones: what a cluster needs, or else what the settings say."""
    wanted, unlike = facts.settings.publish.replicas, dict[int, list[str]]()
    few = [stream.name for stream in existing if stream.cluster and stream.replicas < SAFE_FROM]
    if few:
        setting = f"set publish.replicas to {SAFE_FROM}; " if wanted < SAFE_FROM else ""
        problem = f"{names(few)}: fewer than {SAFE_FROM} copies, in a cluster"
        yield _few(facts)(problem, FEW_COPIES, f"{WITH_SERVERS}: {setting}{_edits(few, max(wanted, SAFE_FROM))}")
    for stream in existing:
        if stream.replicas != wanted and stream.name not in few:
            unlike.setdefault(stream.replicas, []).append(stream.name)
    alone = not any(stream.cluster for stream in existing)
    if alone and any(not stream.exists for stream in facts.own):
        return  # it is said of those that are missing
    for has, of in unlike.items():
        yield (warning if has < wanted else note)(
            f"{names(of)}: publish.replicas is {wanted}, and num_replicas is {has}",
            f"they are used as they are; one that must be created again would get {wanted}",
            f"set publish.replicas to {has}; or "
            + ("make the server one of a cluster" if alone else f"change theirs: {_edits(of, wanted)}"),
        )


def _edits(streams: Iterable[str], replicas: int) -> str:
    return "; ".join(f"nats stream edit {name} --replicas {replicas}" for name in streams)


def _copies_to_make(facts: Facts) -> Iterator[Finding]:
    """Whether the copies of what is created next fit the cluster."""
    wanted, known = facts.settings.publish.replicas, facts.server.addresses
    missing = [stream.name for stream in facts.own if not stream.exists and stream.failure is None]
    if not missing:
        return
    if _runs_alone(facts) and wanted > 1:
        yield error(
            f"publish.replicas is {wanted}, and there is 1 server",
            NOT_STORED,
            "set publish.replicas to 1, or make the server one of a cluster",
        )
    elif _cluster(facts) and 0 < known < wanted:
        yield note(
            f"publish.replicas is {wanted}, and the server tells clients {known} of the addresses of its cluster",
            f"none where the cluster has {wanted} servers; with fewer, {NOT_STORED}",
            "count them: `nats server report jetstream`",
        )
    if _cluster(facts) and wanted < SAFE_FROM:
        yield _few(facts)(
            f"publish.replicas is {wanted}, in a cluster: {names(missing)} would have fewer than {SAFE_FROM} copies",
            FEW_COPIES,
            f"{WITH_SERVERS}: set publish.replicas to {SAFE_FROM} before the sidecar creates them",
        )


def _runs_alone(facts: Facts) -> bool:
    """Whether there is surely one server that can have copies."""
    return facts.server.has_jetstream and not facts.server.cluster


def _cluster(facts: Facts) -> str:
    """The cluster that has what is created next; empty where there is none, or it is not known."""
    return facts.server.cluster if facts.server.has_jetstream else ""


def _few(facts: Facts) -> Callable[[str, str, str], Finding]:
    """The level of few copies in a cluster: with few addresses it may well be too small for more, but the addresses of
    servers that are down are not told."""
    known = facts.server.addresses if facts.server.has_jetstream else 0
    some_down = bool(facts.missing) or any(stream.absent for stream in facts.own)
    return note if 0 < known < SAFE_FROM and not some_down else warning


def state(facts: Facts) -> Iterator[Finding]:
    """Whether the state bucket takes writes."""
    if facts.state_write is not None and any(each.exists and not each.optional for each in facts.own):
        failure = facts.state_write
        yield error(f"the state bucket takes no writes: {failure.error}", NOT_STORED, failure.remedy)
    bucket = f"KV_{Names(facts.settings.name).state_bucket}"
    for stream in facts.own:
        if stream.name == bucket and stream.full:
            yield error(f"the state bucket takes no larger or further state: {stream.full}", FULL, _unlimited(stream))


def heartbeat(facts: Facts) -> Iterator[Finding]:
    """Whether a sidecar of this name runs: it writes heartbeats to the state bucket."""
    bucket = f"KV_{Names(facts.settings.name).state_bucket}"
    late = max(LATE, HEARTBEATS * facts.settings.publish.heartbeat_seconds)
    for stream in facts.own:
        if stream.name != bucket or not stream.exists:
            continue
        if stream.quiet is not None and stream.quiet < late:
            yield Finding("ok", f"a sidecar has written {bucket} within {late:g} s")
            continue
        ever = "has ever written" if stream.quiet is None else f"has written for {stream.quiet:,.0f} s to"
        yield note(
            f"no sidecar of the name {facts.settings.name} {ever} {bucket}",
            "if none runs, no status is known and nothing is held back",
            "start it; if it runs, see `state` above, and the end of its log",
        )


def requests(facts: Facts) -> Iterator[Finding]:
    """Whether a stream stores our request subjects: its own reply reaches the caller before ours."""
    subjects = request_subjects(Names(facts.settings.name).prefix, facts.settings.service.status_alias)
    for stream, patterns in facts.stored.items():
        captured = [subject for subject in subjects if any(covers(pattern, subject) for pattern in patterns)]
        if captured:
            yield error(
                f"the stream {stream} stores requests of ours, as {names(captured)}",
                "JetStream answers them first, and gateways and commands cannot read its reply",
                f"take the subject out of the stream: nats stream edit {stream} --subjects ...",
            )
