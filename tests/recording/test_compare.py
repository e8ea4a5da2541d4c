"""Two replays of one recording are compared: each difference is reported, and its time added up."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from msgspec.structs import replace

from nats_backpressure.config.settings import Settings
from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.policy.parse import PolicyEntry
from nats_backpressure.protocol.values import Status
from nats_backpressure.recording.compare import Difference, StatusComparison
from nats_backpressure.recording.format import Line, ReadLine
from nats_backpressure.recording.replay import Replay
from tests.recording.replays import burst
from tests.support.policies import entry
from tests.support.recordings import MONO, SUBJECT, WALL, beginning, observed, reading, still


class TestStatusComparison:
    """Two policies over one recording: where they come to different statuses, and for how long."""

    def compared(self, lines: Iterable[Line], *policies: PolicyEntry) -> tuple[list[Difference], dict[str, float]]:
        differences: list[Difference] = []
        comparison = StatusComparison(differences.append)
        both: list[Replay] = []
        for which, policy in enumerate(policies):

            def on_event(event: SubjectEvent, which: int = which) -> None:
                comparison.add_event(which, event, both[which].now.mono)

            both.append(Replay(Settings(policies=(policy,)), on_event))
        last = None
        for last in observed(lines):
            for each in both:
                each.process(last)
            comparison.compare()
        assert last is not None
        comparison.finish(last.at.mono)
        return differences, dict(comparison.seconds)

    def test_the_same_policy_twice_has_no_difference(self) -> None:
        assert self.compared(burst(), entry(">"), entry(">")) == ([], {})

    def test_each_difference_is_reported_until_the_statuses_are_equal(self) -> None:
        differences, seconds = self.compared(burst(), entry(">"), entry(">", pending={"overload": 5000}))
        apart, together = differences
        assert (apart.at - WALL, apart.statuses) == (1.0, (Status.ACTIVE, Status.WARNING))
        assert apart.reasons == (("pending", "inflight"), ("inflight",)) and apart.lasted is None
        assert (together.at - WALL, together.statuses) == (4.0, (Status.INACTIVE, Status.INACTIVE))
        assert together.lasted == pytest.approx(3.0)
        assert seconds == pytest.approx({SUBJECT: 3.0})

    @pytest.mark.parametrize("back", [0.0, 60.0, 3600.0, -3600.0])
    def test_a_clock_that_was_set_meanwhile_changes_no_seconds(self, back: float) -> None:
        lines = [
            replace(line, at=(line.at[0], line.at[1] - back))
            if isinstance(line, ReadLine) and line.at[0] >= MONO + 2
            else line
            for line in burst()
        ]
        differences, seconds = self.compared(lines, entry(">"), entry(">", pending={"overload": 5000}))
        assert [result.lasted for result in differences] == [None, pytest.approx(3.0)]
        assert seconds == pytest.approx({SUBJECT: 3.0})

    def test_what_differs_at_the_end_is_counted_to_the_end(self) -> None:
        differences, seconds = self.compared(burst(), entry(">"), entry(">", recovery_hold_seconds=60))
        assert [result.statuses for result in differences] == [(Status.INACTIVE, Status.ACTIVE)]
        assert seconds == pytest.approx({SUBJECT: 1.9})

    def test_the_same_change_inside_a_gap_is_not_a_difference(self) -> None:
        lines = [*beginning(), *reading(0.0), *reading(3600.0), still(3600.1)]
        assert self.compared(lines, entry(">"), entry(">")) == ([], {})
