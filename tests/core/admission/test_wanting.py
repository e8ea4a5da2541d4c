"""Who wants messages: also while it works on those it has."""

from __future__ import annotations

import pytest

from nats_backpressure.core.admission.wanting import KNOWN_FOR, SLOWER, WANTS_FOR, Wanting

WORK = 5.0


def worked(wanting: Wanting, now: float, early: float | None) -> float:
    """A message is handled, and another one granted; `early`: so many seconds before, it asks and is granted none."""
    if early is not None:
        wanting.ask("a", 0, 1, 0, now + WORK - early, ahead=True)
    wanting.ask("a", 1, 0, 0, now + WORK)
    wanting.grant("a", 1)
    return now + WORK


@pytest.mark.parametrize("early", [None, 0.03, 1.0, WORK])
def test_a_worker_has_its_part_until_it_should_be_done_also_where_it_asked_early_and_was_refused(
    early: float | None,
) -> None:
    """It took each such question for the end of a message that took only as long as until the next one."""
    wanting, now = Wanting(), 0.0
    wanting.ask("a", 1, 0, 0, now)
    wanting.grant("a", 1)
    for _ in range(3):
        now = worked(wanting, now, early)
        assert wanting.wants(now + 0.9 * WORK * SLOWER) == {"a": 1}


def test_a_worker_that_becomes_faster_has_its_part_for_no_longer_than_that_takes() -> None:
    wanting, now = Wanting(), 0.0
    for pause in (0.0, WORK, WORK, 0.1, 0.1):
        now += pause
        wanting.ask("a", 1, 0, 0, now)
        wanting.grant("a", 1)
    assert wanting.wants(now + WANTS_FOR - 0.1) == {"a": 1} and not wanting.wants(now + WANTS_FOR + 0.1)
    assert not wanting.any(now + KNOWN_FOR)


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("held", [1, 3])
def test_a_worker_that_is_refused_while_it_holds_some_has_its_part_for_no_longer_than_that_takes(
    held: int, ahead: bool
) -> None:
    """It once took long: that counted as long as nothing was granted, and when it died its part stayed empty for a
    minute."""
    wanting, now = Wanting(), 0.0
    wanting.ask("a", 1, 0, 0, now)
    wanting.grant("a", held)
    now += 50.0
    if ahead:
        wanting.ask("a", 1, held, 0, now - 0.03, ahead=True)
    for n in range(20):
        wanting.ask("a", 1, held, 0, now + n)
    now += 19.0
    assert wanting.wants(now + WANTS_FOR - 0.1) and not wanting.wants(now + SLOWER + 0.1)
