"""Checks the events of a subject against each other, against what the load did, and against what is stored."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

STATUS_EVENTS = ("backpressure_active", "backpressure_warning", "recovery")
TOTALS = ("active", "warning", "recovery")
"""The names of their totals in `get.metrics`."""
MONITORING_EVENTS = ("monitoring_lost", "monitoring_restored")

Event = Mapping[str, Any]
"""An event as it is on the wire, decoded."""


def event_problems(events: Sequence[Event], incidents: int | None = None) -> list[str]:
    """What is wrong in the events of one subject, in the order of the stream; each problem in words.

    `incidents`: how many overloads there were, all of them over.
    """
    problems = [*_numbering(events), *_moves(events), *_incidents(events), *_monitoring(events)]
    rises = [event for event in events if event["type"] in STATUS_EVENTS and event["from"] == "inactive"]
    if incidents is not None and len(rises) != incidents:
        problems.append(f"{len(rises)} incidents were published, there were {incidents} overloads")
    if incidents is not None and last_status(events)[0] != "inactive":
        problems.append(f"incident {last_status(events)[1]} is not closed")
    return problems


def counted(events: Iterable[Event]) -> dict[str, int]:
    """The status events by type, as `get.metrics` counts them."""
    kinds = [event["type"] for event in events]
    return {kind: kinds.count(kind) for kind in STATUS_EVENTS}


def count_problems(
    events: Sequence[Event], state: Mapping[str, Any], answers: Iterable[Mapping[str, Any]]
) -> list[str]:
    """Where an answer to `get.metrics` about the last day counts other events than the stream has. Totals begin anew
    with an epoch."""
    expected, problems = counted(events), set()
    for answer in answers:
        if (windowed := answer["windows"]["24h"]["events"]) != expected:
            problems.add(f"a window counts {windowed}, published are {expected}")
        totals = {kind: answer[f"{name}_events"] for kind, name in zip(STATUS_EVENTS, TOTALS, strict=True)}
        if {event["epoch"] for event in events} == {state["epoch"]} and totals != expected:
            problems.add(f"the totals are {totals}, published are {expected}")
    return sorted(problems)


def state_problems(events: Sequence[Event], state: Mapping[str, Any] | None) -> list[str]:
    """Where the stored state is not what the events lead to; None is one that cannot be read."""
    if state is None:
        return ["nothing is stored that can be read"]
    problems = []
    status, incident = last_status(events)
    expected = {"seq": events[-1]["seq"] if events else 0, "incident": incident}
    problems += [
        f"stored {name} is {state[name]!r}, the events lead to {value!r}"
        for name, value in expected.items()
        if state[name] != value
    ]
    monitoring = [event["type"] for event in events if event["type"] in MONITORING_EVENTS]
    unknown = monitoring[-1:] == ["monitoring_lost"]
    if state["status"] != ("unknown" if unknown else status):
        problems.append(f"stored status is {state['status']}, the events lead to {'unknown' if unknown else status}")
    if unsent := state["record"].get("unsent"):
        problems.append(f"{len(unsent)} stored events are not published: {[event['id'] for event in unsent]}")
    return problems


def answer_problems(state: Mapping[str, Any], answers: Mapping[str, Mapping[str, Any] | None]) -> list[str]:
    """Where a replica answers something else than what is stored; None is a replica that does not answer."""
    problems = []
    for name, answer in answers.items():
        if answer is None:
            problems.append(f"{name} does not answer")
            continue
        problems += [
            f"{name} answers {field} {answer[field]!r}, stored is {state[field]!r}"
            for field in ("status", "action", "incident")
            if answer[field] != state[field]
        ]
    return problems


def last_status(events: Iterable[Event]) -> tuple[str, str | None]:
    """The status that the events lead to, and its incident."""
    status, incident = "inactive", None
    for event in events:
        if event["type"] in STATUS_EVENTS:
            status, incident = event["to"], event["incident"]
    return status, None if status == "inactive" else incident


def shown(events: Iterable[Event]) -> str:
    """The events, one in a line."""
    return "\n".join(
        f"  {event['seq']:>4} {event['epoch']} {event['type']:<21} {event['from']:>8} -> {event['to']:<8} "
        f"{event['incident']} {list(event['reasons'])} {event['timestamp']} {event['instance']}"
        for event in events
    )


def _numbering(events: Sequence[Event]) -> list[str]:
    problems = []
    ids = [event["id"] for event in events]
    if len(set(ids)) < len(ids):
        problems.append(f"the same id twice: {sorted({one for one in ids if ids.count(one) > 1})}")
    numbers = [event["seq"] for event in events]
    if numbers != list(range(1, 1 + len(numbers))):
        problems.append(f"seq is not 1 and up by one: {numbers}")
    return problems


def _moves(events: Sequence[Event]) -> list[str]:
    """Each status event leads on from the last one; the others stand at the last known status."""
    problems, status = [], "inactive"
    for event in events:
        if event["from"] != status:
            problems.append(f"seq {event['seq']} leads from {event['from']}, the status was {status}")
        if event["type"] in STATUS_EVENTS:
            status = event["to"]
            if event["from"] == event["to"]:
                problems.append(f"seq {event['seq']} leads from {status} to itself")
        elif event["to"] != event["from"]:
            problems.append(f"seq {event['seq']} ({event['type']}) changes the status")
    return problems


def _incidents(events: Sequence[Event]) -> list[str]:
    """One id from the rise to the return, and never again after it."""
    problems: list[str] = []
    known: set[str | None] = {None}
    current: str | None = None
    for event in events:
        if event["type"] not in STATUS_EVENTS:
            continue
        if event["from"] == "inactive":
            if event["incident"] in known:
                problems.append(
                    f"seq {event['seq']} begins an incident that has the id of another: {event['incident']}"
                )
            current = event["incident"]
            known.add(current)
        elif event["incident"] != current:
            problems.append(f"seq {event['seq']} is of incident {event['incident']}, which began as {current}")
    return problems


def _monitoring(events: Sequence[Event]) -> list[str]:
    """Lost and restored take turns."""
    kinds = [event["type"] for event in events if event["type"] in MONITORING_EVENTS]
    expected = [MONITORING_EVENTS[n % 2] for n in range(len(kinds))]
    return [f"monitoring events do not take turns: {kinds}"] if kinds != expected else []
