"""Gaps in a recording are evaluated as if every tick was computed, in a few steps."""

from __future__ import annotations

import pytest

from nats_backpressure.config.settings import Observe, Settings
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey, EventType
from nats_backpressure.recording.decoder import HintsDecoded
from nats_backpressure.recording.replay import Replay
from nats_backpressure.recording.tick_search import TICK
from tests.recording.replays import evaluated, steps
from tests.support.policies import entry
from tests.support.recordings import MONO, SUBJECT, WALL, beginning, observed, reading


class TestTimeGaps:
    """A gap makes a subject stale, then unknown, when it would have; and it is searched, not walked."""

    GAP = (*beginning(), *reading(0.0), *reading(1.0), *reading(3600.0))

    def test_a_gap_is_evaluated_as_the_service_would_have_evaluated_it(self) -> None:
        lost, restored = steps(evaluated(self.GAP))
        assert lost == (31.0, "monitoring_lost", "inactive")
        assert restored == (3600.0, "monitoring_restored", "inactive")

    def test_a_gap_of_the_planned_interval_is_not_a_gap(self) -> None:
        hourly = (*beginning(), *reading(0.0), *reading(3600.0), *reading(7200.0))
        assert [event.type for event in evaluated(hourly)] == [
            EventType.MONITORING_LOST,
            EventType.MONITORING_RESTORED,
        ] * 2
        assert evaluated(hourly, observe=Observe(max_interval_ms=3_600_000)) == []

    def test_a_gap_of_years_needs_as_few_steps_as_one_of_a_minute(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def steps_taken(gap: float) -> int:
            count = 0
            replay = Replay(Settings(), lambda event: None)
            stays = replay._registry.is_unchanged_by_time

            def counted(subject: str, at: Now) -> bool:
                nonlocal count
                count += 1
                return stays(subject, at)

            monkeypatch.setattr(replay._registry, "is_unchanged_by_time", counted)
            for thing in observed((*beginning(), *reading(0.0), *reading(gap))):
                replay.process(thing)
            return count

        assert steps_taken(3 * 365 * 86_400.0) < 4 * steps_taken(60.0)

    @pytest.mark.parametrize("gap", [7.3, 31.0, 33.3, 100.0, 3700.0], ids=lambda gap: f"{gap:.0f} s")
    def test_searching_a_gap_gives_the_same_events_as_walking_it(self, gap: float) -> None:
        fields = {"alerts": [{"name": "long", "when": {"pending_above": 10}, "for_seconds": 5, "severity": "warning"}]}
        ends = (*beginning(), *reading(0.0), *reading(1.0, 2000, 600), *reading(1.0 + gap))
        searched = evaluated(ends, entry(SUBJECT, **fields))
        walked: list[SubjectEvent] = []
        replay = Replay(Settings(policies=(entry(SUBJECT, **fields),)), walked.append)
        *before, last = observed(ends)
        for thing in before:
            replay.process(thing)
        for n in range(1, int(gap / TICK) + 1):
            # A hint of a consumer that is not there makes time pass and does nothing else.
            at = 1.0 + n * TICK
            replay.process(HintsDecoded(Now(MONO + at, WALL + at), ConsumerKey("NO", "body"), (), 0, 0))
        replay.process(last)
        assert steps(searched) == steps(walked)
