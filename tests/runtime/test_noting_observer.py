"""Which readings keep failing is noted; everything is passed on."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.runtime.failures import AFTER, Failures
from nats_backpressure.runtime.noting_observer import NotingObserver
from nats_backpressure.runtime.observations import StreamGone
from nats_backpressure.runtime.ports import Unavailable
from tests.fakes.clock import FakeClock


class Failing:
    """An Observer that raises."""

    def __init__(self) -> None:
        self.error: Exception = Unavailable("denied")

    async def streams(self) -> None:
        raise self.error

    async def stream(self, name: str) -> None:
        raise self.error

    async def consumers(self, stream: str, names: object = ()) -> None:
        raise self.error

    async def consumer(self, key: ConsumerKey) -> None:
        raise self.error


async def test_lists_that_fail_are_noted_and_single_readings_are_not() -> None:
    clock, failing = FakeClock(), Failing()
    failures = Failures(clock)
    observer = NotingObserver(failing, failures)  # type: ignore[arg-type]  # it returns nothing

    async def read_all() -> None:
        calls = (observer.streams, lambda: observer.stream("S"), lambda: observer.consumers("S"))
        more = (lambda: observer.consumers("T", ["c"]), lambda: observer.consumer(ConsumerKey("T", "c")))
        for call in (*calls, *more):
            with pytest.raises(type(failing.error)):
                await call()

    with capture_logs() as lines:
        await read_all()
        clock.advance(AFTER)
        failures.report()
        assert sorted((line["stage"], line.get("of")) for line in lines) == [
            ("list streams", None),
            ("read consumers", ["S"]),
        ]
        failing.error = StreamGone("S")
        with pytest.raises(StreamGone):
            await observer.consumers("S")
        failures.report()
    assert [line["stage"] for line in lines if line["event"] == "stage.works"] == ["read consumers"]
