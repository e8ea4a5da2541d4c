"""Whatever happens to the bucket between any two questions of the watch: it has every state in the end, or knows that
it has not, and reads them all again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nats_backpressure.client import state_watch
from nats_backpressure.client.bucket_reader import Write, Writes
from nats_backpressure.client.state_mirror import StateMirror
from nats_backpressure.client.state_watch import Wakeups, WatchLost, _Follower
from nats_backpressure.client.stats import OnceLogger, Stats
from nats_backpressure.protocol.subjects import HEARTBEAT
from tests.support.exploring import examples

KEYS = "abc"
Step = tuple[str, ...]
"""Keys to write; `+` first: the bucket is deleted and created again before; `-a`: the key is deleted."""


class Bucket:
    """A bucket in memory. Before each answer the next steps happen."""

    prefix = "$KV.b."

    def __init__(self, steps: Iterable[Step], most: int) -> None:
        self._steps, self._most = iter(steps), most
        self.keys: dict[str, Write] = {}
        self._revision = self.written = 0

    def step(self) -> bool:
        """Whether anything happened."""
        step = next(self._steps, ())
        for what in step:
            if what == "+":
                self.keys, self._revision = {}, 0
            else:
                self._put(what)
        return bool(step)

    def _put(self, what: str) -> None:
        self._revision += 1
        self.written += 1
        key = what.removeprefix("-")
        value = {"subject": key, "status": "inactive", "action": "continue", "seq": self.written}
        data = b"{}" if key == HEARTBEAT else json.dumps(value).encode()
        self.keys.pop(key, None)
        self.keys[key] = Write(key, self._revision, float(self.written), data, what.startswith("-"))

    async def after(self, revision: int, most: int = 256) -> Writes:
        self.step()
        later = [write for write in self.keys.values() if write.revision > revision]
        most = min(most, self._most)
        return Writes(later[:most], len(later) > most)

    async def first(self) -> Write | None:
        return next(iter((await self.after(0, 1)).writes), None)

    async def newest(self) -> Write | None:
        self.step()
        return next(reversed(self.keys.values()), None)


async def follow(bucket: Bucket, mirror: StateMirror, rounds: int) -> None:
    """As a watch does, but without waiting."""
    watch: Any = SimpleNamespace(
        mirror=mirror, stats=Stats(), logger=OnceLogger(), nc=SimpleNamespace(stats={"reconnects": 0})
    )
    watch.snapshot_read = lambda: None
    follower: _Follower | None = None
    for _ in range(rounds):
        try:
            if follower is None:
                follower = _Follower(watch, bucket, Wakeups())  # type: ignore[arg-type]
                await follower._read_all()
            await follower._read_changes()
        except WatchLost:
            follower = None
    assert follower is not None, "it comes to rest"


@settings(max_examples=examples(100))
@given(
    steps=st.lists(st.lists(st.sampled_from([*KEYS, *KEYS, "-a", "-b", HEARTBEAT, "+"]), max_size=6).map(tuple)),
    most=st.integers(1, 4),
)
def test_no_state_is_missed(steps: list[Step], most: int) -> None:
    bucket, mirror = Bucket(steps, most), StateMirror()
    mirror.filter.add([">"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state_watch, "LOOKS", (0.0,) * 4)
        asyncio.run(follow(bucket, mirror, 3 * len(steps) + 4))
    known = {subject: state.value.seq for subject, state in mirror.states.items() if not state.orphan}
    stored = {key: w for key, w in bucket.keys.items() if not w.deleted and key != HEARTBEAT}
    assert known == {key: json.loads(write.value)["seq"] for key, write in stored.items()}
