"""What each right of the sidecar costs while the server denies it, and whether that is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from msgspec import Struct

from nats_backpressure.doctor.facts import Facts, Right
from nats_backpressure.doctor.findings import Level
from nats_backpressure.protocol.inboxes import SHARED, inbox_of
from nats_backpressure.protocol.subjects import Names

NOTHING: Final = "nothing is read, no status is known, and no request is answered"
FILE_ALONE: Final = "only the policies of the file are in force"
EVENTS_UNSENT: Final = "no event is published: who waits for events learns nothing; the stored states are right"
NOT_STORED: Final = "no state and no event can be stored: gateways that watch learn nothing"


class Cost(Struct, frozen=True):
    """Of the rights whose subject begins so, after the prefix of the API or of our subjects."""

    kind: str
    start: str
    level: Level
    cost: str


def cost_of(right: Right, facts: Facts) -> tuple[Level, str]:
    """The level and the cost of a right that is denied."""
    tail = right.subject.removeprefix(f"{facts.settings.nats.api_prefix}.")
    if right.kind == "publish" and tail.startswith("STREAM.CREATE."):
        return _creating(tail.removeprefix("STREAM.CREATE."), facts)
    costs = (each for each in _costs(facts) if each.kind == right.kind and tail.startswith(each.start))
    cost = max(costs, key=lambda each: len(each.start), default=None)
    return ("error", "what needs this does not work") if cost is None else (cost.level, cost.cost)


def _creating(stream: str, facts: Facts) -> tuple[Level, str]:
    own = next((each for each in facts.own if each.name == stream), None)
    if own is None or own.failure is not None:
        return "warning", f"{stream} cannot be created where it is missing"
    if own.exists:
        return "note", f"{stream} exists; if it is deleted it cannot be created again"
    if not facts.settings.publish.manage_resources:
        return "note", f"none: publish.manage_resources is false, so {stream} is created by others"
    if own.optional:
        return "warning", f"{stream} cannot be created: {FILE_ALONE}"
    cost = EVENTS_UNSENT if stream == Names(facts.settings.name).events_stream else NOTHING
    return "error", f"{stream} cannot be created: {cost}"


def _costs(facts: Facts) -> Iterator[Cost]:
    names, inbox = Names(facts.settings.name), facts.settings.nats.inbox_prefix
    yield from _reading(names)
    yield from _storing(names)
    yield from _answering(facts, names)
    yield Cost("subscribe", f"{inbox}.", "error", NOTHING)
    yield from _hints()


def _reading(names: Names) -> Iterator[Cost]:
    lists = "the subjects of these streams become unknown, and no gateway is held back for them"
    yield Cost("publish", "INFO", "note", "limits of the account are not seen before they are reached")
    yield Cost("publish", "STREAM.LIST", "error", NOTHING)
    yield Cost("publish", "STREAM.INFO.", "error", NOTHING)
    yield Cost("publish", "STREAM.NAMES", "note", "the log cannot name the stream that stores our subjects")
    yield Cost("publish", "CONSUMER.LIST.", "error", lists)
    alone = "consumers that are read alone (in large streams, or where a list leaves them out) become stale"
    yield Cost("publish", "CONSUMER.INFO.", "error", alone)
    state, policy = f"KV_{names.state_bucket}", f"KV_{names.policy_bucket}"
    for verb in ("CREATE", "MSG.NEXT"):
        of = f"CONSUMER.{verb}"
        singly = "a start reads each state by a request of its own, and states of other replicas come seconds late"
        yield Cost("publish", f"{of}.{state}", "warning", singly)
        slow = "policies and overrides are read by a request each, and are in force seconds late"
        yield Cost("publish", f"{of}.{policy}", "warning", slow)
        one = "after a start, events of time windows and questions about the past are read by a request for each event"
        yield Cost("publish", f"{of}.{names.events_stream}", "warning", one)
    yield Cost("publish", "CONSUMER.DELETE.", "note", "the server removes our consumers two minutes after their use")
    yield Cost(
        "publish", "DIRECT.GET.", "warning", "events are read by a request each, after a start and for questions"
    )


def _storing(names: Names) -> Iterator[Cost]:
    got = "STREAM.MSG.GET"
    new = "subjects without a stored state (new ones, or all after a lost bucket) get none: they stay unknown"
    yield Cost("publish", f"{got}.{names.events_stream}", "error", new)
    other = "subjects that have no state yet, or one that another replica wrote, stay unknown or stale"
    yield Cost("publish", f"{got}.KV_{names.state_bucket}", "error", other)
    policies = "where no consumer of the bucket works, its policies and overrides are not in force"
    yield Cost("publish", f"{got}.KV_{names.policy_bucket}", "warning", policies)
    yield Cost("publish", f"$KV.{names.state_bucket}.", "error", NOT_STORED)
    yield Cost("publish", f"{names.prefix}.event.", "error", EVENTS_UNSENT)
    apart = "replicas do not see each other: each reads everything itself, and grants of one do not count at the others"
    for kind in ("publish", "subscribe"):
        yield Cost(kind, f"{names.internal}.", "warning", apart)


def _answering(facts: Facts, names: Names) -> Iterator[Cost]:
    unanswered = (
        "who asks with such a reply subject gets no answer: requests time out, and gateways let everything pass"
    )
    for prefix in (SHARED, *facts.settings.service.reply_prefixes):
        yield Cost("publish", f"{prefix}.", "error", unanswered)
    for role in ("gateway", "consumer", "operator"):
        yield Cost("publish", f"{inbox_of(role)}.", "warning", f"whose rights are those of `{role}` gets no answer")
    yield Cost("publish", "_R_.", "warning", "requests from other accounts of the server get no answer")
    asked = f"{names.prefix}."
    yield Cost("subscribe", f"{asked}decide.gateway.", "error", "gateways that ask get no answer: they let all pass")
    yield Cost("subscribe", f"{asked}decide.consumer.", "error", "consumers that ask get no answer: no pull is limited")
    for tail, who in (("get.status", "`status`"), ("get.policy", "`policy get`"), ("validate.", "`policy set`")):
        yield Cost("subscribe", f"{asked}{tail}", "error", f"{who} and programs that ask the same get no answer")
    yield Cost("subscribe", f"{asked}get.", "warning", "such questions, as commands and dashboards ask, get no answer")
    yield Cost("subscribe", f"{asked}forget.", "warning", "`forget` gets no answer: what is gone stays for an hour")
    counts = "what gateways were offered is estimated from what arrives: adaptive admission is less exact"
    yield Cost("subscribe", f"{asked}report.", "warning", counts)
    if facts.settings.service.status_alias is not None:
        alias = "who asks for the status by this subject gets no answer"
        yield Cost("subscribe", facts.settings.service.status_alias, "error", alias)
    yield Cost("subscribe", "$SRV.", "warning", "tools that list services (`nats micro`) do not show this one")


def _hints() -> Iterator[Cost]:
    later = "streams and consumers that are new, changed or deleted are noticed seconds later"
    yield Cost("subscribe", "$JS.EVENT.ADVISORY.", "warning", later)
    for counted in ("MAX_DELIVERIES", "MSG_NAKED", "MSG_TERMINATED"):
        cost = "deliveries that fail, are returned or ended are seen later, from the counts of the consumer alone"
        yield Cost("subscribe", f"$JS.EVENT.ADVISORY.CONSUMER.{counted}.", "warning", cost)
    acks = "latencies are estimated from what is in flight and the rate of acks, and p50 and p99 are not known"
    yield Cost("subscribe", "$JS.EVENT.METRIC.", "warning", acks)
