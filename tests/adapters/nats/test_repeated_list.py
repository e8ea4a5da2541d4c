"""A list of streams that shows the same as the one before is not decoded, and gives the same looks all the same."""

from __future__ import annotations

from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.adapters.nats import repeated_list
from tests.simulations.scripted_server import Reader, Scripted, stream

START = datetime(2026, 1, 1, tzinfo=UTC)
FIELDS = {
    "created": ["then", "later"],
    "messages": [0, 10, 9],
    "first_seq": [1, 2],
    "last_seq": [10, 11],
    "consumer_count": [0, 1],
    "subjects": [["s.>"], ["t.>"], ['"ts":"x"']],
    "max_msgs": [0, 10],
    "active": [1, 123456789],
}


def reply(streams: list[dict[str, Any]], at: float) -> dict[str, Any]:
    """A list as a server sends it `at` so many seconds."""
    listed = []
    for n, fields in enumerate(streams):
        one = stream(f"S{n}", {key: fields[key] for key in ("subjects", "max_msgs") if key in fields})
        one["created"] = fields.get("created", "then")
        one["state"] |= {k: v for k, v in fields.items() if k in ("messages", "first_seq", "last_seq")}
        one["state"] |= {"first_ts": START.isoformat(), "consumer_count": fields.get("consumer_count", 1)}
        one["cluster"] = {"leader": "n1", "replicas": [{"name": "n2", "active": fields.get("active", 1)}]}
        listed.append(one | {"ts": (START + timedelta(seconds=at)).isoformat().replace("+00:00", "Z")})
    return {"total": len(listed), "offset": 0, "limit": 256, "streams": listed}


ONE = st.fixed_dictionaries({}, optional={key: st.sampled_from(values) for key, values in FIELDS.items()})
STREAMS = st.lists(ONE, min_size=1, max_size=3)


@given(STREAMS, st.lists(st.tuples(st.integers(0, 2), ONE, st.floats(0, 100))), st.floats(0, 100))
async def test_a_reader_that_reads_on_returns_what_a_new_one_returns(
    streams: list[dict[str, Any]], changes: list[tuple[int, dict[str, Any], float]], at: float
) -> None:
    script = Scripted(STREAM_LIST=reply(streams, at))
    reader = Reader(script)
    await reader.streams()
    for which, change, later in changes:
        streams[which % len(streams)] |= change
        at += later
        script._answers["STREAM_LIST"] = reply(streams, at)
        reading, new = await reader.streams(), await Reader(script).streams()
        assert (reading.complete, reading.server_time) == (new.complete, new.server_time)
        assert reading.server_time == pytest.approx(START.timestamp() + at, abs=1e-5)
        for look, fresh in zip(reading.looks, new.looks, strict=True):
            assert look.oldest_age == pytest.approx(fresh.oldest_age, abs=1e-5)
            assert replace(look, oldest_age=fresh.oldest_age) == fresh


async def test_nothing_is_decoded_where_only_times_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    streams: list[dict[str, Any]] = [{}, {"messages": 0}]
    script = Scripted(STREAM_LIST=reply(streams, 5))
    reader = Reader(script)
    first = (await reader.streams()).looks
    monkeypatch.setattr(reader._lists, "_page", lambda *args: pytest.fail("decoded"))
    script._answers["STREAM_LIST"] = reply([one | {"active": 7} for one in deepcopy(streams)], 7.5)
    looks = (await reader.streams()).looks
    assert [look.oldest_age for look in looks] == [7.5, None]
    assert looks[1] is first[1]


@pytest.mark.parametrize("why", ["missing", "two pages", "long"])
async def test_what_a_reply_alone_does_not_show_is_decoded_each_time(why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, decoded = reply([{}, {}], 5), 0
    if why == "missing":
        whole |= {"total": 3, "missing": ["S9"]}
    elif why == "two pages":
        whole |= {"limit": 1}
        pages = [{**whole, "streams": [one], "offset": n} for n, one in enumerate(whole["streams"])]
        whole = lambda offset: pages[offset]  # type: ignore[assignment]  # noqa: E731
    else:
        monkeypatch.setattr(repeated_list, "LONGEST", 100)
    reader = Reader(Scripted(STREAM_LIST=whole))
    page = reader._lists._page

    def counting(*args: Any) -> Any:
        nonlocal decoded
        decoded += 1
        return page(*args)

    monkeypatch.setattr(reader._lists, "_page", counting)
    first, second = await reader.streams(), await reader.streams()
    assert (first.looks, first.complete) == (second.looks, second.complete)
    assert decoded == (4 if why == "two pages" else 2)
