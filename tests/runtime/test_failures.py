"""What keeps failing is logged after a while, when the reason changes, and again; and that it is over."""

from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from nats_backpressure.runtime.failures import AFTER, AGAIN, COSTS, FORGOTTEN_AFTER, NOT_CONNECTED, SHOWN, Failures
from nats_backpressure.runtime.ports import Unavailable
from tests.fakes.clock import FakeClock


class World:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.failures = Failures(self.clock, lambda error: f"mend {error}")

    def lines(self, seconds: float, **failing: str) -> list[dict[str, Any]]:
        """What is logged in some seconds in which these stages fail each second."""
        with capture_logs() as lines:
            for _ in range(round(seconds)):
                for stage, error in failing.items():
                    self.failures.failed(stage, error)
                self.failures.report()
                self.clock.advance(1)
        return list(lines)


def test_after_five_seconds_there_is_one_line_with_its_cost_and_what_to_do() -> None:
    world = World()
    assert world.lines(AFTER, resources="no responders") == []
    (line,) = world.lines(60, resources="no responders")
    assert line == {
        "event": "stage.failing",
        "log_level": "warning",
        "stage": "resources",
        "error": "no responders",
        "seconds": AFTER,
        "cost": COSTS["resources"],
        "hint": "mend no responders",
    }


def test_what_ends_in_time_is_not_logged() -> None:
    world = World()
    world.lines(AFTER - 1, resources="slow")
    world.failures.works("resources")
    assert world.lines(60) == []


def test_another_reason_is_logged_and_the_same_one_every_few_minutes() -> None:
    world = World()
    world.lines(10, heartbeat="a")
    assert [line["error"] for line in world.lines(10, heartbeat="b")] == ["b"]
    assert world.lines(AGAIN - 30, heartbeat="a") == []
    assert [line["error"] for line in world.lines(60, heartbeat="a")] == ["a"]


def test_that_it_is_over_is_logged_once_and_the_next_time_is_new() -> None:
    world = World()
    world.lines(10, policies="a")
    world.failures.works("policies")
    assert [line["event"] for line in world.lines(10)] == ["stage.works"]
    assert [line["event"] for line in world.lines(10, policies="a")] == ["stage.failing"]


def test_many_subjects_are_one_line() -> None:
    world = World()
    subjects = [f"s{n}" for n in range(2 * SHOWN)]
    with capture_logs() as lines:
        for _ in range(10):
            for subject in subjects:
                world.failures.failed("write", "denied", subject)
            world.failures.report()
            world.clock.advance(1)
        world.failures.works("write", subjects[0])
        world.failures.report()
    (line,) = lines
    assert (line["of"], line["count"]) == (subjects[:SHOWN], len(subjects))


def test_what_is_not_tried_any_more_is_forgotten() -> None:
    world = World()
    world.lines(10, heartbeat="a")
    assert [line["event"] for line in world.lines(FORGOTTEN_AFTER + AGAIN)] == ["stage.works"]


def test_without_a_connection_only_the_connection_logs() -> None:
    assert World().lines(60, write=NOT_CONNECTED) == []


def hang(world: World) -> None:
    with world.failures.stage("load states"):
        world.clock.advance(AFTER)
        raise Unavailable("no reply in time")


def test_a_try_that_hung_counts_from_its_beginning() -> None:
    world = World()
    with capture_logs() as lines:
        with pytest.raises(Unavailable):
            hang(world)
        world.failures.report()
        with world.failures.stage("load states"):
            pass
        world.failures.report()
    assert [line["event"] for line in lines] == ["stage.failing", "stage.works"]


def test_what_cannot_work_before_the_first_stages_do_is_not_logged() -> None:
    world = World()
    lines = world.lines(30, events="off", resources="off", policies="off")
    assert [line["stage"] for line in lines] == ["resources"]
    world.failures.works("resources")
    assert {line["stage"] for line in world.lines(30, events="denied", policies="denied")} == {
        "resources",
        "events",
        "policies",
    }
