"""The checks of events see each mistake that they are about."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.event_checks import Event, count_problems, counted, event_problems, state_problems


def event(seq: int, kind: str, to: str, *, was: str = "inactive", incident: int = 1, **other: Any) -> dict[str, Any]:
    fields = {"seq": seq, "type": kind, "from": was, "to": to, "incident": f"e-{incident}"}
    return {"id": f"s:e:{seq}", "epoch": "e", **fields, **other}


def rise(seq: int, incident: int | None = None, **other: Any) -> dict[str, Any]:
    return event(seq, "backpressure_warning", "warning", incident=incident or seq, **other)


def fall(seq: int, incident: int | None = None, **other: Any) -> dict[str, Any]:
    return event(seq, "recovery", "inactive", was="warning", incident=incident or seq - 1, **other)


LOST, RESTORED = (event(seq, f"monitoring_{kind}", "inactive") for seq, kind in ((5, "lost"), (6, "restored")))
GOOD = (rise(1), fall(2), rise(3), fall(4), LOST, RESTORED)
CALM: dict[str, Any] = {"seq": 6, "incident": None, "status": "inactive", "epoch": "e", "record": {}}


def test_right_events_have_no_problem() -> None:
    assert event_problems(GOOD, 2) == [] == state_problems(GOOD, CALM)


@pytest.mark.parametrize(
    "events",
    [
        pytest.param(GOOD[:2], id="an overload is missing"),
        pytest.param((*GOOD, rise(7), fall(8)), id="one is invented"),
        pytest.param((*GOOD[:2], rise(3)), id="an incident is not closed"),
        pytest.param((*GOOD[:2], GOOD[2], *GOOD[2:]), id="an event is there twice"),
        pytest.param((rise(1), fall(2), rise(4), fall(5)), id="seq has a gap"),
        pytest.param((rise(2), fall(3), rise(4), fall(5)), id="the first event is missing"),
        pytest.param((rise(1), fall(2), rise(2), fall(3, 2)), id="seq is given twice"),
        pytest.param((rise(1), rise(2), fall(3, 2)), id="a recovery is missing"),
        pytest.param((rise(1), fall(2, 9), rise(3), fall(4)), id="an incident has two ids"),
        pytest.param((rise(1), fall(2), rise(3, 1), fall(4, 1)), id="two incidents have one id"),
        pytest.param((*GOOD[:4], RESTORED | {"seq": 5}), id="restored without lost"),
        pytest.param((*GOOD[:4], LOST, LOST | {"seq": 6, "id": "s:e:6"}), id="lost twice"),
        pytest.param((*GOOD[:4], LOST | {"to": "warning"}), id="another event changes the status"),
    ],
)
def test_each_mistake_in_events_is_seen(events: tuple[Event, ...]) -> None:
    assert event_problems(events, 2)


@pytest.mark.parametrize(
    "state",
    [
        None,
        CALM | {"seq": 4},
        CALM | {"status": "warning"},
        CALM | {"status": "unknown"},
        CALM | {"incident": "e-3"},
        CALM | {"record": {"unsent": [{"id": "s:e:7"}]}},
    ],
)
def test_a_state_that_is_not_that_of_the_last_event_is_seen(state: Any) -> None:
    assert state_problems(GOOD, state)


def summary(windowed: dict[str, int], totals: dict[str, int]) -> dict[str, Any]:
    named = {f"{kind.removeprefix('backpressure_')}_events": n for kind, n in totals.items()}
    return {"windows": {"24h": {"events": windowed}}, **named}


def test_counts_that_are_not_those_of_the_stream_are_seen() -> None:
    right = counted(GOOD)
    assert right == {"backpressure_active": 0, "backpressure_warning": 2, "recovery": 2}
    wrong = right | {"recovery": 3}
    assert count_problems(GOOD, CALM, [summary(right, right)]) == []
    assert count_problems(GOOD, CALM, [summary(right, right), summary(wrong, right)])
    assert count_problems(GOOD, CALM, [summary(right, wrong)])
    assert count_problems(GOOD, CALM | {"epoch": "other"}, [summary(right, wrong)]) == [], "totals begin anew"
