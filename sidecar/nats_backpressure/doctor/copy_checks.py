"""Checks of copies: their number fits the cluster, and all of them follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from nats_backpressure.doctor.facts import Facts, OwnStream
from nats_backpressure.doctor.findings import Finding, error, note, unknown, warning
from nats_backpressure.doctor.own_stream_costs import cost_of_missing, cost_without, missing_of
from nats_backpressure.doctor.text import names

FEW_COPIES: Final = "while a server that has them is down, no change is stored or published"
SAFE_FROM: Final = 3
"""Servers of a cluster from which on copies survive the loss of one."""
WITH_SERVERS: Final = f"if the cluster has {SAFE_FROM} servers or more (`nats server report jetstream` shows them)"
"""A client cannot count them."""


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
    missing = missing_of(facts)
    if not missing:
        return
    cost = cost_of_missing(facts, missing)
    if runs_alone(facts) and wanted > 1:
        yield (warning if all(stream.optional for stream in missing) else error)(
            f"publish.replicas is {wanted}, and there is 1 server",
            cost,
            "set publish.replicas to 1, or make the server one of a cluster",
        )
    elif cluster_of(facts) and 0 < known < wanted:
        yield note(
            f"publish.replicas is {wanted}, and the server tells clients {known} of the addresses of its cluster",
            f"none where the cluster has {wanted} servers; with fewer, {cost}",
            "count them: `nats server report jetstream`",
        )
    if cluster_of(facts) and wanted < SAFE_FROM:
        yield _few(facts)(
            f"publish.replicas is {wanted}, in a cluster: {names(stream.name for stream in missing)} would have "
            f"fewer than {SAFE_FROM} copies",
            FEW_COPIES,
            f"{WITH_SERVERS}: set publish.replicas to {SAFE_FROM} before the sidecar creates them",
        )


def runs_alone(facts: Facts) -> bool:
    """Whether there is surely one server that can have copies."""
    return facts.server.has_jetstream and not facts.server.cluster


def cluster_of(facts: Facts) -> str:
    """The cluster that has what is created next; empty where there is none, or it is not known."""
    return facts.server.cluster if facts.server.has_jetstream else ""


def _few(facts: Facts) -> Callable[[str, str, str], Finding]:
    """The level of few copies in a cluster: with few addresses it may well be too small for more, but the addresses of
    servers that are down are not told."""
    known = facts.server.addresses if facts.server.has_jetstream else 0
    some_down = bool(facts.missing) or any(stream.absent for stream in facts.own)
    return note if 0 < known < SAFE_FROM and not some_down else warning
