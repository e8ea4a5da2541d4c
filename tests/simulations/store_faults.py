"""What others do to the state bucket and the events stream of several replicas in a simulation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from nats_backpressure.runtime.ports import Unavailable
from tests.simulations.replicas import KEY, MARK, SUBJECT, Replica, Replicas
from tests.support.event_checks import last_status


def delete(replicas: Replicas) -> None:
    replicas.store.put(SUBJECT, b"")


def garbage(replicas: Replicas) -> None:
    replicas.store.put(SUBJECT, b"garbage")


def purge(replicas: Replicas) -> None:
    replicas.store.remove_unseen(SUBJECT)


def foreign(replicas: Replicas) -> None:
    """A record that could be ours says that all is well."""
    state = replicas.state()
    assert state is not None
    calm: dict[str, Any] = {"status": "inactive", "action": "continue", "incident": None, "reasons": []}
    record = {"status": 0, "announced": 0, "incident": None, "reasons": [], "latched": []}
    replicas.store.put(SUBJECT, json.dumps(state | calm | {"record": state["record"] | record}).encode())


def of_another_epoch(replicas: Replicas) -> None:
    state = replicas.state()
    assert state is not None
    other = {"epoch": "other", "seq": 40}
    record = state["record"] | other | {"unsent": []}
    replicas.store.put(SUBJECT, json.dumps(state | other | {"record": record | {"announced": 0}}).encode())


def older_value(replicas: Replicas, backup: dict[str, Any]) -> None:
    """What the key held before is stored there again."""
    if SUBJECT in (values := backup["store"]["values"]):
        replicas.store.put(SUBJECT, values[SUBJECT][0])


def older_bucket(replicas: Replicas, backup: dict[str, Any]) -> None:
    """The state bucket goes back, and the events stream does not."""
    replicas.store.values, replicas.store._revision = dict(backup["store"]["values"]), backup["store"]["_revision"]


def older_stores(replicas: Replicas, backup: dict[str, Any]) -> None:
    """Bucket and stream go back. From then on the truth is what the older stream says, and what holds now: that is
    published again, unless it has just ended."""
    before, status = replicas.events(), last_status(replicas.events())[0]
    replicas.restore(backup)
    events = replicas.events()
    replicas.forgotten |= {event["id"] for event in before[len(events) :]}
    replicas.overloads = sum(event["from"] == "inactive" for event in events if event["to"] != event["from"])
    if last_status(events)[0] != "inactive":
        return
    if len(replicas.js._pending(replicas.js.all[KEY.stream], replicas.js.of(KEY))) > MARK:
        replicas.overloads += 1
    elif status != "inactive":
        replicas.unsure += 1


@contextmanager
def muted(replica: Replica) -> Iterator[None]:
    """It may not publish events."""
    publisher: Any = replica.service._effects._attempt._publisher
    publish = publisher.publish

    async def refuse(event: Any) -> bytes:
        raise Unavailable("it may not publish")

    publisher.publish = refuse
    try:
        yield
    finally:
        publisher.publish = publish
