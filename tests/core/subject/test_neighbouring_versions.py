"""A state that another build of schema 1 stored: what it adds, and words that this build does not know, cost nothing
else. The words that would are named here: a build that adds one of them must raise the schema.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from msgspec import inspect
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectAlert
from nats_backpressure.core.model.marks import Marks, MarkSet
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.core.subject.record import Record
from nats_backpressure.core.subject.stored_state import record_of
from nats_backpressure.policy.schema import Override
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, Diagnosis, EventType
from tests.core.subject.test_stored_state import WHOLE
from tests.simulations.stored_samples import event, value

KEY = ConsumerKey("ORDERS", "c")
READING = Reading(
    KEY,
    Now(1.0, 1_800_000_000.0),
    1500,
    20,
    900.0,
    3.0,
    "sampled",
    diagnosis=Diagnosis.POISON,
    lasting_diagnosis=Diagnosis.POISON,
)
EVENT = replace(
    event(1, EventType.ALERT_FIRING),
    reading=READING,
    marks=Marks(*(MarkSet(10, 100, 1000) for _ in range(4))),
    diagnosis=Diagnosis.POISON,
    override=Override("open", 1_800_003_600.0),
    alert=SubjectAlert("deep", "critical", "pending_above: 5000", "firing", 1_800_000_000.0, 6000),
    errors=(("pending", "is wrong"),),
)
FULL = replace(WHOLE, unsent=(EVENT,))
RAISE_THE_SCHEMA = {
    *("status", "announced", "admission.action", "admission.would", "alerts.state"),
    *("unsent.type", "unsent.was", "unsent.now", "unsent.alert.state"),
}
"""Without these a record says nothing."""
DONE_WITHOUT = {
    *("diagnosis", "override.action", "carried.diagnosis", "carried.counted"),
    *("unsent.diagnosis", "unsent.override.action"),
    *("unsent.reading.latency_source", "unsent.reading.diagnosis", "unsent.reading.lasting_diagnosis"),
}


def closed_lists(kind: inspect.Type, path: str = "") -> Iterator[str]:
    """The paths of all fields of a record that have a word of a closed list."""
    match kind:
        case inspect.StructType(fields=fields):
            for field in fields:
                yield from closed_lists(field.type, f"{path}.{field.encode_name}".lstrip("."))
        case inspect.VarTupleType(item_type=item) | inspect.Metadata(type=item):
            yield from closed_lists(item, path)
        case inspect.TupleType(item_types=items) | inspect.UnionType(types=items):
            for each in items:
                yield from closed_lists(each, path)
        case inspect.LiteralType() | inspect.EnumType():
            yield path


def changed(document: Any, path: list[str], change: dict[str, Any]) -> Any:
    """The document with other fields in each mapping at this path; `[key, mapping]` stands for its mapping."""
    if isinstance(document, list):
        return [changed(item, path, change) if isinstance(item, dict | list) else item for item in document]
    if not path:
        return document | change
    return {name: changed(item, path[1:], change) if name == path[0] else item for name, item in document.items()}


def stored(path: str, change: dict[str, Any]) -> bytes:
    state = msgspec.json.decode(value(FULL, "n1"))
    state["record"] = changed(state["record"], path.split(".") if path else [], change)
    return msgspec.json.encode(state)


def mappings(document: Any, path: str = "") -> Iterator[str]:
    """The paths of all mappings in a document."""
    if isinstance(document, dict):
        yield path
        for name, item in document.items():
            yield from mappings(item, f"{path}.{name}".lstrip("."))
    elif isinstance(document, list):
        for item in document:
            yield from mappings(item, path)


PLACES = sorted(set(mappings(msgspec.json.decode(value(FULL, "n1"))["record"])))


@pytest.mark.parametrize("place", PLACES)
def test_a_field_that_another_build_added_costs_nothing(place: str) -> None:
    assert record_of(stored(place, {"added": {"later": [1]}})) == (FULL, "n1")


def test_every_closed_list_is_one_that_a_build_can_do_without_or_raises_the_schema() -> None:
    assert set(closed_lists(inspect.type_info(Record))) == RAISE_THE_SCHEMA | DONE_WITHOUT
    assert {"", "admission", "carried", "unsent", "unsent.reading", "unsent.alert", "unsent.marks.drain"} <= set(PLACES)


@pytest.mark.parametrize("path", sorted(DONE_WITHOUT))
def test_a_word_that_this_build_does_not_know_is_left_out_and_all_else_is_read(path: str) -> None:
    place, _, name = path.rpartition(".")
    found = record_of(stored(place, {name: "of_tomorrow"}))
    assert found is not None
    record = found[0]
    without = {"carried": (), "unsent": ()}
    assert (record.seq, record.latched, len(record.unsent)) == (FULL.seq, FULL.latched, 1)
    kept = {"diagnosis": FULL.diagnosis, "override": FULL.override} | without
    assert replace(record, **kept) == replace(FULL, **kept)
    (one,) = record.unsent
    assert (one.id, one.type, one.alert, one.errors) == (EVENT.id, EVENT.type, EVENT.alert, EVENT.errors)
    assert one.reading is not None and one.reading.pending == READING.pending
    assert record.carried[0][1].capacity == 80.0


def test_reasons_and_latches_have_any_words() -> None:
    found = record_of(stored("", {"reasons": ["age", "haunted"], "latched": [[["ORDERS", "c"], ["age", "pending"]]]}))
    assert found is not None
    assert found[0].reasons == ("age", "haunted") and found[0].latched == ((KEY, ("age", "pending")),)
