"""What the events stream holds, and what it means for an event: one row, one reason."""

from __future__ import annotations

import pytest

from nats_backpressure.core.subject.outbox import Mine, Next, Placed, acknowledged, base, before, disputed, searched

MINE = Mine("s:e:5", 5, "t5")
OURS = Placed(9, "s:e:5", 5, "t5")

BEFORE = {
    "nothing was ever told": (Placed(), 0, Next.PUBLISH),
    "an older one of the same type": (Placed(7, "s:e:3", 3, "t3"), 4, Next.PUBLISH),
    "an older one of another epoch": (Placed(7, "s:d:4", 4, "t4"), 4, Next.PUBLISH),
    "ours is the newest": (OURS, 5, Next.TOLD),
    "ours is there, and later ones of other types": (OURS, 8, Next.TOLD),
    "our id, but another change": (Placed(9, "s:e:5", 5, "t4"), 5, Next.CONFLICT),
    "a later one of the same type may have ours behind it": (Placed(12, "s:e:7", 7, "t7"), 7, Next.SEARCH),
    "a foreign message may have ours behind it": (Placed(12), 5, Next.SEARCH),
    "our seq was told as another type": (Placed(7, "s:e:3", 3, "t3"), 5, Next.CONFLICT),
    "our seq was told as another type, ours never": (Placed(), 5, Next.CONFLICT),
}


@pytest.mark.parametrize(("newest", "top", "then"), BEFORE.values(), ids=BEFORE.keys())
def test_what_the_newest_message_means(newest: Placed, top: int, then: Next) -> None:
    assert before(MINE, newest, top) is then


SEARCHED = {
    "ours": (OURS, 7, Next.TOLD),
    "our id, but another change": (Placed(9, "s:e:5", 5, "t4"), 7, Next.CONFLICT),
    "somebody else's of our seq": (Placed(9, "s:d:5", 5, "t5"), 7, Next.CONFLICT),
    "a later one, and ours was never told": (Placed(9, "s:e:7", 7, "t7"), 7, Next.CONFLICT),
    "only foreign messages": (None, 4, Next.PUBLISH),
    "only foreign messages, and our seq is taken": (None, 5, Next.CONFLICT),
}


@pytest.mark.parametrize(("found", "top", "then"), SEARCHED.values(), ids=SEARCHED.keys())
def test_what_a_search_means(found: Placed | None, top: int, then: Next) -> None:
    assert searched(MINE, found, top) is then


ACKNOWLEDGED = {
    "stored": (False, False, Next.TOLD),
    "stored on a retry": (False, True, Next.TOLD),
    "our own copy came through": (True, True, Next.TOLD),
    "known to the server before we ever tried: the stream has to say whose": (True, False, Next.SEARCH),
}


@pytest.mark.parametrize(("duplicate", "attempted", "then"), ACKNOWLEDGED.values(), ids=ACKNOWLEDGED.keys())
def test_what_an_acknowledgement_means(duplicate: bool, attempted: bool, then: Next) -> None:
    assert acknowledged(duplicate, attempted) is then


@pytest.mark.parametrize("verdict", Next)
def test_a_disputed_event_is_told_only_if_the_stream_shows_it(verdict: Next) -> None:
    assert disputed(verdict) is (Next.TOLD if verdict is Next.TOLD else Next.CONFLICT)


@pytest.mark.parametrize(("top", "seq"), [(9, 9), (5, 5), (4, 4), (0, 4)])
def test_a_new_epoch_never_goes_back(top: int, seq: int) -> None:
    assert base(MINE, top) == seq
