"""Checks of streams: ours are as the settings say and take writes; others store no request of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from nats_backpressure.doctor.account_checks import FULL, NO_CONSUMER
from nats_backpressure.doctor.facts import Facts, OwnStream
from nats_backpressure.doctor.findings import Finding, error, warning
from nats_backpressure.doctor.missing_streams import missing
from nats_backpressure.doctor.own_stream_costs import ON_DOWN_SERVERS, cost_without, is_down
from nats_backpressure.doctor.right_costs import NOT_STORED
from nats_backpressure.doctor.text import count, names
from nats_backpressure.protocol.patterns import covers
from nats_backpressure.protocol.subjects import Names
from nats_backpressure.runtime.captured_subjects import request_subjects

LOSING: Final = frozenset({"subjects", "retention", "mirror", "sealed", "no_ack", "max_msgs"})
"""Settings with which a stream of ours does not take or keep what is stored in it."""


def resources(facts: Facts) -> Iterator[Finding]:
    """Whether the stream and the buckets exist, with the settings that they should have."""
    for stream in facts.own:
        if stream.failure is not None:
            remedy = ON_DOWN_SERVERS if is_down(facts, stream) else stream.failure.remedy
            problem = f"{stream.name} cannot be read: {stream.failure.error}"
            yield error(problem, cost_without(facts, stream), remedy)
        elif not stream.exists:
            yield missing(facts, stream)
        else:
            yield from _differing(stream)
            if 0 <= stream.max_consumers <= stream.consumers:
                yield warning(
                    f"{stream.name} has {stream.consumers:,} of {count(stream.max_consumers, 'consumer')}",
                    NO_CONSUMER,
                    f"remove one that nobody needs (`nats consumer ls {stream.name}`), or make the stream again "
                    "without max_consumers",
                )


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


def state(facts: Facts) -> Iterator[Finding]:
    """Whether the state bucket takes writes."""
    if facts.state_write is not None and any(each.exists and not each.optional for each in facts.own):
        failure = facts.state_write
        yield error(f"the state bucket takes no writes: {failure.error}", NOT_STORED, failure.remedy)
    bucket = f"KV_{Names(facts.settings.name).state_bucket}"
    for stream in facts.own:
        if stream.name == bucket and stream.full:
            yield error(f"the state bucket takes no larger or further state: {stream.full}", FULL, _unlimited(stream))


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
