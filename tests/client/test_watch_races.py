"""Whatever happens to the bucket between any two questions of the watch: it has every state in the end, or knows that
it has not, and reads them all again."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.msg import Msg

from nats_backpressure.client import state_mirror, state_watch
from nats_backpressure.client.bucket_reader import Write, Writes
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.state_watch import PAUSE, POLL, WatchLost, _Follower
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.client.wakeups import Wakeups, WatchRestart
from nats_backpressure.protocol.subjects import HEARTBEAT
from tests.support.exploring import examples

KEYS = "abc"
Step = tuple[str, ...]
"""Keys to write; `+` first: the bucket is deleted and created again before; `-a`: the key is deleted."""


class Bucket:
    """A bucket in memory. Before each answer the next steps happen."""

    prefix = "$KV.b."

    def __init__(self, steps: Iterable[Step] = (), most: int = 256) -> None:
        self._steps, self._most = iter(steps), most
        self._copies: list[tuple[dict[str, Write], int]] = [({}, 0)]
        """Of the bucket after each write since it was created."""
        self.keys: dict[str, Write] = {}
        self._revision = self.written = 0
        self.hidden = 0
        """The last writes that the server which answers does not have yet, and one less with each answer."""
        self.answers = 0

    def step(self) -> bool:
        """Whether anything happened."""
        self.answers += 1
        step = next(self._steps, ())
        for what in step:
            if what == "+":
                self.set_back(len(self._copies) - 1)
            else:
                self.put(what)
        return bool(step)

    def set_back(self, writes: int) -> None:
        """To a copy from before the last writes; before all of them it is a new bucket."""
        del self._copies[len(self._copies) - writes :]
        keys, self._revision = self._copies[-1]
        self.keys = dict(keys)

    def put(self, *names: str) -> None:
        for what in names:
            self._revision += 1
            self.written += 1
            key = what.removeprefix("-")
            value = {"subject": key, "status": "inactive", "action": "continue", "seq": self.written}
            data = b"{}" if key == HEARTBEAT else json.dumps(value).encode()
            self.keys.pop(key, None)
            self.keys[key] = Write(key, self._revision, float(self.written), data, what.startswith("-"))
            self._copies.append((dict(self.keys), self._revision))

    async def noticed(self, wakeups: Wakeups, *keys: str) -> None:
        """As the subscription notices their last writes."""
        for key in keys:
            await wakeups.receive(Msg(None, f"{self.prefix}{key}", data=self.keys[key].value))  # type: ignore[arg-type]

    async def after(self, revision: int, most: int = 256) -> Writes:
        self.step()
        keys, _ = self._copies[-1 - self.hidden]
        self.hidden = max(0, self.hidden - 1)
        later = [write for write in keys.values() if write.revision > revision]
        most = min(most, self._most)
        return Writes(later[:most], len(later) > most)

    async def first(self) -> Write | None:
        return next(iter((await self.after(0, 1)).writes), None)

    async def newest(self) -> Write | None:
        self.step()
        return next(reversed(self.keys.values()), None)


def follower_of(bucket: Bucket, mirror: StateMirror, wakeups: Wakeups) -> _Follower:
    watch: Any = SimpleNamespace(
        mirror=mirror, stats=Stats(), logger=OnceLogger(), nc=SimpleNamespace(stats={"reconnects": 0})
    )
    watch.snapshot_read = lambda: watch.stats.count("snapshots")
    return _Follower(watch, bucket, wakeups)  # type: ignore[arg-type]


async def follow(bucket: Bucket, mirror: StateMirror, rounds: int) -> None:
    """As a watch does, but without waiting."""
    follower: _Follower | None = None
    for _ in range(rounds):
        try:
            if follower is None:
                follower = follower_of(bucket, mirror, Wakeups(Bucket.prefix))
                await follower._read_all()
            await follower._read_changes()
        except WatchLost:
            follower = None
    assert follower is not None, "it comes to rest"


def known(mirror: StateMirror) -> dict[str, int]:
    """What it takes for the bucket's states, by subject: the number of the write."""
    return {subject: s.value.seq for subject, s in mirror.states.items() if subject not in mirror._vanished}


def stored(bucket: Bucket) -> dict[str, int]:
    written = {key: w for key, w in bucket.keys.items() if not w.deleted and key != HEARTBEAT}
    return {key: json.loads(write.value)["seq"] for key, write in written.items()}


@pytest.fixture
def mirror() -> StateMirror:
    mirror = StateMirror()
    mirror.filter.add([">"])
    return mirror


@settings(max_examples=examples(100))
@given(
    steps=st.lists(st.lists(st.sampled_from([*KEYS, *KEYS, "-a", "-b", HEARTBEAT, "+"]), max_size=6).map(tuple)),
    most=st.integers(1, 4),
    lost=st.integers(0, 6),
    more=st.lists(st.sampled_from(KEYS), max_size=6),
)
def test_no_state_is_missed(steps: list[Step], most: int, lost: int, more: list[str]) -> None:
    """In the end the bucket is set back to a copy without the last `lost` writes; then come no more than these."""
    bucket, mirror, rounds = Bucket(steps, most), StateMirror(), 3 * len(steps) + 4
    mirror.filter.add([">"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_watch, "LOOKS", (0.0,) * 4)
        asyncio.run(follow(bucket, mirror, rounds))
        assert known(mirror) == stored(bucket)
        asyncio.run(follow_and_set_back(bucket, mirror, lost, more))
    assert known(mirror) == stored(bucket)


async def follow_and_set_back(bucket: Bucket, mirror: StateMirror, lost: int, more: list[str]) -> None:
    follower = follower_of(bucket, mirror, Wakeups(Bucket.prefix))
    await follower._read_all()
    lost = min(lost, len(bucket._copies) - 1)
    bucket.set_back(lost)
    bucket.put(*more[:lost])
    try:
        await follower._read_changes()
    except WatchLost:
        await follow(bucket, mirror, 1)


async def test_all_writes_that_are_noticed_at_once_are_looked_for(mirror: StateMirror) -> None:
    """The server that answers has some of them only."""
    bucket, wakeups = Bucket(), Wakeups(Bucket.prefix)
    bucket.put("a")
    follower = follower_of(bucket, mirror, wakeups)
    await follower._read_all()
    bucket.put("a", "b", "c")
    await bucket.noticed(wakeups, "a", "b", "c")
    bucket.hidden = 2
    await follower._read_changes()
    assert known(mirror) == stored(bucket)


async def test_a_write_that_is_refused_ends_no_watch(mirror: StateMirror) -> None:
    bucket, wakeups = Bucket(), Wakeups(Bucket.prefix)
    bucket.put("a")
    follower = follower_of(bucket, mirror, wakeups)
    await follower._read_all()
    await wakeups.receive(Msg(None, f"{Bucket.prefix}a", data=b"refused"))  # type: ignore[arg-type]
    await follower._read_changes()
    assert known(mirror) == stored(bucket)


async def test_what_was_read_before_it_was_noticed_is_not_looked_for(mirror: StateMirror) -> None:
    bucket, wakeups = Bucket(), Wakeups(Bucket.prefix)
    bucket.put("a")
    follower = follower_of(bucket, mirror, wakeups)
    await follower._read_all()
    bucket.put("-a", "b")
    await bucket.noticed(wakeups, "a")
    await follower._read_changes()
    answers = bucket.answers
    await bucket.noticed(wakeups, "b")
    await follower._read_changes()
    assert bucket.answers == answers + 2 and follower._poll == POLL


async def test_a_server_that_is_late_is_no_bucket_that_was_set_back(mirror: StateMirror) -> None:
    bucket = Bucket()
    bucket.put("a", "b", "c")
    follower = follower_of(bucket, mirror, Wakeups(Bucket.prefix))
    await follower._read_all()
    bucket.hidden = 2
    await follower._read_changes()
    assert known(mirror) == stored(bucket)


@pytest.mark.parametrize(("hidden", "complete"), [(2, True), (20, False)])
async def test_a_first_reading_is_complete_once_it_has_the_newest_write(
    mirror: StateMirror, hidden: int, complete: bool
) -> None:
    bucket = Bucket()
    bucket.put(*"abc" * 10)
    follower = follower_of(bucket, mirror, Wakeups(Bucket.prefix))
    bucket.hidden = hidden
    if complete:
        await follower._read_all()
        assert known(mirror) == stored(bucket)
    else:
        with pytest.raises(WatchLost, match="late"):
            await follower._read_all()
    assert follower._watch.stats.snapshots == complete


async def test_what_is_watched_besides_during_the_last_question_of_a_first_reading_is_read_too(
    mirror: StateMirror,
) -> None:
    """The states of it were read over."""
    bucket, wakeups = Bucket(), Wakeups(Bucket.prefix)
    bucket.put("a")

    async def first() -> Write | None:
        wakeups.restart()
        return await Bucket.first(bucket)

    bucket.first = first  # type: ignore[method-assign]
    follower = follower_of(bucket, mirror, wakeups)
    with pytest.raises(WatchRestart):
        await follower._read_all()
    assert follower._watch.stats.snapshots == 0


async def test_many_writes_are_read_together(mirror: StateMirror) -> None:
    bucket, wakeups = Bucket(), Wakeups(Bucket.prefix)
    follower = follower_of(bucket, mirror, wakeups)
    running, began = asyncio.create_task(follower.run()), time.monotonic()
    for _ in range(200):
        bucket.put("a", "b")
        await bucket.noticed(wakeups, "a", "b")
        await asyncio.sleep(0.001)
    answers, seconds = bucket.answers, time.monotonic() - began
    assert not running.done() and known(mirror)
    running.cancel()
    assert 0 < answers <= 3 * (seconds / PAUSE + 2), "one reading is two answers, and a first one three"


async def test_a_state_that_vanished_is_dropped_without_another_whole_reading(
    mirror: StateMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_mirror, "VANISHED_SECONDS", math.inf)
    bucket = Bucket()
    bucket.put("a", "b")
    await follower_of(bucket, mirror, Wakeups(Bucket.prefix))._read_all()
    bucket.set_back(1)
    follower = follower_of(bucket, mirror, Wakeups(Bucket.prefix))
    await follower._read_all()
    follower._check_ages()
    assert set(mirror.states) == {"a", "b"}
    monkeypatch.setattr(state_mirror, "VANISHED_SECONDS", -math.inf)
    follower._check_ages()
    assert set(mirror.states) == {"a"}
