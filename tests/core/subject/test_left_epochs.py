"""Stores that go back again and again, under two replicas of which one may restart: no id is given to two events by one
that knew the first, and they do not overwrite each other for ever."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.inputs import (
    Effect,
    RecordCreated,
    RecordFollowed,
    RecordMissing,
    RemoveKey,
    Tick,
    WriteConflict,
    WriteDone,
    WriteRecord,
)
from nats_backpressure.core.subject.left_epochs import REMEMBERED
from nats_backpressure.core.subject.record import Record
from tests.core.subject.test_step import World
from tests.support.exploring import examples

Copy = tuple[Record | None, list[SubjectEvent]]
CALM, OVERLOAD = 0, 1500


class Stores:
    """The stores that two replicas share, and copies of them that are put back while those run."""

    def __init__(self) -> None:
        self.stored: Record | None = None
        self.revision = self.epochs = self.writes = 0
        self.stream: list[SubjectEvent] = []
        self.given: dict[str, SubjectEvent] = {}
        self.pending = CALM
        self.replicas = [Replica(self), Replica(self)]
        self.turns(4)
        self.copies = [self.copy()]

    def copy(self) -> Copy:
        return self.stored, list(self.stream)

    def load(self, pending: int) -> None:
        self.pending = pending
        self.turns(4)

    def turns(self, n: int) -> None:
        for one in self.replicas[::-1] * n:
            one.at = max(other.at for other in self.replicas)
            one.read(pending=self.pending)
            one.perform(8)
            one.feed(Tick())
            one.perform(8)

    def put_back(self, bucket: Copy, stream: Copy) -> None:
        """Both were deleted and made anew from copies: nothing shows by its revision that it is older."""
        self.stored, self.stream[:] = bucket[0], stream[1]
        self.revision += 7
        for one in reversed(self.replicas):
            assert self.stored is not None
            one.feed(RecordFollowed(self.stored, self.revision, "a copy"))
        self.turns(3)

    def lose(self) -> None:
        """Both are gone: another epoch begins."""
        self.stored, self.revision = None, 0
        self.stream.clear()
        for one in self.replicas:
            one.feed(RecordMissing(recreated=True))
            one.perform(20)
        self.turns(4)

    def restart(self) -> None:
        """The second one forgets what it knew; from then on its ids may repeat those of before."""
        self.replicas[1].start()
        self.turns(3)


class Replica(World):
    """One of them, with these stores instead of its own."""

    def __init__(self, stores: Stores) -> None:
        self.stores = stores
        super().__init__()

    stored = property(lambda self: self.stores.stored, lambda self, value: None)  # type: ignore[assignment]
    revision = property(lambda self: self.stores.revision, lambda self, value: None)  # type: ignore[assignment]
    stream = property(lambda self: self.stores.stream, lambda self, value: None)  # type: ignore[assignment]

    def created(self) -> RecordCreated:
        self.stores.epochs += 1
        return replace(super().created(), epoch=f"e{self.stores.epochs}")

    def do(self, act: Effect) -> None:
        if isinstance(act, WriteRecord):
            self.write(act)
        elif not isinstance(act, RemoveKey):
            super().do(act)
            for event in self.stores.stream:
                self.stores.given.setdefault(event.id, event)

    def write(self, act: WriteRecord) -> None:
        writing, stores = act.writing, self.stores
        if self.state.writing is None or self.state.writing.nonce != writing.nonce:
            return
        if writing.expected != stores.revision:
            self.feed(WriteConflict(writing.nonce))
            return
        stores.stored, stores.revision, stores.writes = writing.record, stores.revision + 1, stores.writes + 1
        self.feed(WriteDone(writing.nonce, stores.revision))
        for other in stores.replicas:
            if other is not self:
                other.at = max(other.at, self.at)
                other.feed(RecordFollowed(writing.record, stores.revision, writing.nonce))


COPY = st.integers(0, 4)
ACTS = st.lists(
    st.one_of(st.sampled_from(["rise", "fall", "keep", "lose", "restart"]), st.tuples(COPY, COPY)), max_size=12
)


def perform(acts: list[str | tuple[int, int]]) -> Stores:
    stores = Stores()
    for act in acts:
        match act:
            case "keep":
                stores.copies.append(stores.copy())
            case "lose":
                stores.lose()
            case "restart":
                stores.restart()
            case "rise" | "fall":
                stores.load(OVERLOAD if act == "rise" else CALM)
            case (bucket, stream):
                stores.put_back(*(stores.copies[int(n) % len(stores.copies)] for n in (bucket, stream)))
        for event in stores.stream:
            assert stores.given.setdefault(event.id, event) == event or "restart" in acts, "two events have one id"
    return stores


@settings(max_examples=examples(100))
@given(acts=ACTS)
@example(["rise", "lose", "fall", (0, 0), "rise"])
@example(["rise", "fall", "keep", "rise", "fall", "lose", "rise", "fall", "rise", "fall", "restart", (1, 1)])
def test_whatever_copies_are_put_back_no_id_is_given_twice_and_writes_end(acts: list[str | tuple[int, int]]) -> None:
    stores = perform(acts)
    for pending in (OVERLOAD, CALM):
        stores.load(pending)
        stores.turns(4)
        before = stores.writes
        stores.turns(8)
        assert stores.writes == before, "replicas overwrite each other"
        one, other = (replica.state.record for replica in stores.replicas)
        assert one == other == stores.stored


def test_the_oldest_of_many_epochs_is_forgotten() -> None:
    stores = Stores()
    for _ in range(REMEMBERED + 2):
        stores.load(OVERLOAD)
        stores.lose()
        stores.load(CALM)
        assert len(stores.replicas[0].state.left_epochs) <= REMEMBERED
    assert len(stores.replicas[0].state.left_epochs) == REMEMBERED
