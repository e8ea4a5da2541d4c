"""Consumers that a list shows as the one before did are not decoded, and give the same samples all the same."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.adapters.nats import repeated_consumers
from nats_backpressure.core.model.samples import Sample
from tests.fakes.clock import FakeClock
from tests.simulations.scripted_server import Reader, Scripted, consumer, page

START = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
FIELDS: dict[str, list[Any]] = {
    "num_pending": [0, 7],
    "num_ack_pending": [0, 2],
    "num_waiting": [0, 1],
    "created": ["then", "later"],
    "paused": [True, False],
    "config__filter_subject": ["s.a", "s.b", '"ts":"x"'],
    "config__metadata": [{"backpressure.mode": "observe"}, {"ts": "y"}, {}],
    "delivered__stream_seq": [3, 4],
}
ONE = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in FIELDS.items()})


def listed(consumers: list[dict[str, Any]], at: float, *, cluster: bool, times: bool) -> dict[str, Any]:
    """A list as a server sends it `at` so many seconds after START."""
    ts = (START + timedelta(seconds=at)).isoformat().replace("+00:00", "Z") if times else None
    items = []
    for n, fields in enumerate(consumers):
        one = consumer(f"c{n}", ts=ts, **fields)
        if cluster:
            one["cluster"] = {"leader": "n1", "replicas": [{"name": "n2", "active": int(1e9 * at) + n}]}
        items.append(one)
    return page(*items)


def without_times(sample: Sample) -> Sample:
    return replace(sample, at=(0, 0), since_delivery=None, since_ack=None)


CHANGES = st.lists(st.tuples(st.integers(0, 2), ONE, st.floats(0, 100)), max_size=5)


@given(st.lists(ONE, min_size=1, max_size=3), CHANGES, st.booleans(), st.booleans())
async def test_a_reader_that_reads_on_returns_what_a_new_one_returns(
    consumers: list[dict[str, Any]], changes: list[tuple[int, dict[str, Any], float]], cluster: bool, times: bool
) -> None:
    script, at = Scripted(CONSUMER_LIST=listed(consumers, 0.0, cluster=cluster, times=times)), 0.0
    reader = Reader(script)
    clock = reader._clock
    assert isinstance(clock, FakeClock)
    await reader.consumers("S")
    for which, change, later in changes:
        consumers[which % len(consumers)] |= change
        at += later
        clock.advance(later)
        script._answers["CONSUMER_LIST"] = listed(consumers, at, cluster=cluster, times=times)
        reading, new = await reader.consumers("S"), await Reader(script).consumers("S")
        ours, theirs = (sorted(one.samples, key=lambda sample: sample.key) for one in (reading, new))
        assert list(map(without_times, ours)) == list(map(without_times, theirs))
        assert [each.since_delivery for each in ours] == pytest.approx(
            [each.since_delivery for each in theirs], abs=1e-3
        )
        assert {each.at for each in reading.samples} == {clock.now()}


async def test_those_at_rest_are_decoded_once() -> None:
    script = Scripted(CONSUMER_LIST=listed([{}, {}], 0.0, cluster=False, times=True))
    reader = Reader(script)
    first = await reader.consumers("S")
    script._answers["CONSUMER_LIST"] = listed([{}, {"num_pending": 1}], 5.0, cluster=False, times=True)
    with patch.object(repeated_consumers, "_CONSUMER", wraps=repeated_consumers._CONSUMER) as decoder:
        second = await reader.consumers("S")
    assert decoder.decode.call_count == 1
    assert second.samples[1].config is first.samples[0].config and second.samples[0].pending == 1


async def test_those_that_moved_come_first() -> None:
    script = Scripted(CONSUMER_LIST=listed([{}] * 9, 0.0, cluster=False, times=True))
    reader = Reader(script)
    await reader.consumers("S")
    moved: list[dict[str, Any]] = [{"num_pending": 77} if n in (4, 7) else {} for n in range(9)]
    script._answers["CONSUMER_LIST"] = listed(moved, 5.0, cluster=False, times=True)
    names = [sample.key.consumer for sample in (await reader.consumers("S")).samples]
    assert names == ["c4", "c7", "c0", "c1", "c2", "c3", "c5", "c6", "c8"]
