"""Stores that go back again and again, under replicas of which some may restart or hear nothing for a while: none gives
an id that it could know to be given, they do not overwrite each other for ever, and all agree in the end."""

from __future__ import annotations

from unittest.mock import patch

from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject import left_epochs
from nats_backpressure.core.subject.inputs import (
    Effect,
    EventSeen,
    Input,
    PublishEvent,
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

Copy = tuple[Record | None, list[SubjectEvent], int]
Act = str | tuple[int, int, str] | tuple[str, int]
CALM, OVERLOAD = 0, 1500
MADE_AGAIN = "made again"
"""A copy that is put back is noticed as another bucket."""


class Stores:
    """The stores that the replicas share, and copies of them that are put back while those run."""

    def __init__(self, replicas: int = 3) -> None:
        self.stored: Record | None = None
        self.revision = self.epochs = self.writes = 0
        self.nonce = ""
        self.stream: list[SubjectEvent] = []
        self.given: dict[str, SubjectEvent] = {}
        self.pending = CALM
        self.replicas: list[Replica] = []
        for _ in range(replicas):
            self.replicas.append(Replica(self))
        self.order = self.replicas[::-1]
        """Who hears and acts first."""
        self.turns(4)
        self.copies = [self.copy()]

    def copy(self) -> Copy:
        return self.stored, list(self.stream), self.revision

    def load(self, pending: int) -> None:
        self.pending = pending
        self.turns(4)

    def load_alone(self, n: int) -> None:
        """The load changes, and one reads it before the others do."""
        self.pending = CALM if self.pending else OVERLOAD
        self.turns(3, [self.replicas[n % len(self.replicas)]])

    def turns(self, n: int, order: list[Replica] | None = None) -> None:
        for one in (order or self.order) * n:
            one.at = max(other.at for other in self.replicas)
            one.read(pending=self.pending)
            one.perform(8)
            one.feed(Tick())
            one.perform(8)

    def put_back(self, bucket: Copy, stream: Copy, how: str) -> None:
        """Both were deleted and made anew from copies: its revision may be any."""
        self.stored, self.stream[:], self.nonce = bucket[0], stream[1], "a copy"
        self.revision = {"later": self.revision + 7, "same": self.revision}.get(how, bucket[2])
        for one in self.order:
            one.notice(how == MADE_AGAIN)
        self.turns(3)

    def lose(self) -> None:
        """Both are gone: another epoch begins."""
        self.stored, self.revision = None, 0
        self.stream.clear()
        for one in self.replicas:
            one.notice(made_again=True)
            one.perform(20)
        self.turns(4)

    def put_first(self, n: int) -> None:
        one = self.replicas[n % len(self.replicas)]
        self.order.sort(key=lambda each: each is not one)

    def deafen(self, n: int, to_events: bool) -> None:
        """One hears nothing of the bucket until it does again, but what it asks is answered."""
        one = self.replicas[n % len(self.replicas)]
        one.deaf = not one.deaf
        one.deaf_to_events = one.deaf and to_events
        one.notice(made_again=False)
        self.turns(1)

    def restart(self, n: int) -> None:
        """One forgets what it knew; from then on its ids may repeat those of before."""
        self.replicas[n % len(self.replicas)].start()
        self.turns(3)


class Replica(World):
    """One of them, with these stores instead of its own."""

    def __init__(self, stores: Stores) -> None:
        self.stores, self.deaf, self.deaf_to_events = stores, False, False
        super().__init__()

    stored = property(lambda self: self.stores.stored, lambda self, value: None)  # type: ignore[assignment]
    revision = property(lambda self: self.stores.revision, lambda self, value: None)  # type: ignore[assignment]
    stream = property(lambda self: self.stores.stream, lambda self, value: None)  # type: ignore[assignment]

    def start(self) -> None:
        self.left, self.stored_record = set[str](), None
        self.heard: dict[str, SubjectEvent] = {}
        super().start()

    def feed(self, input_: Input) -> None:
        self.stored_record = was = self.state.record if not self.state.unstored else self.stored_record
        super().feed(input_)
        record = self.state.record
        if was is not None and record is not None and not self.state.unstored and was.epoch != record.epoch:
            self.left.add(was.epoch)

    def notice(self, made_again: bool) -> None:
        """What is stored may be another record, as a RecordFollower finds."""
        if self.deaf:
            return
        if made_again:
            self.feed(RecordMissing(recreated=True))
        stores, state = self.stores, self.state
        if stores.stored is not None and stores.revision > state.revision:
            self.feed(RecordFollowed(stores.stored, stores.revision, stores.nonce))
        elif state.record is not None and (stores.stored, stores.revision) != (state.record, state.revision):
            self.feed(RecordMissing())

    def created(self) -> RecordCreated:
        self.stores.epochs += 1
        return replace(super().created(), epoch=f"e{self.stores.epochs}")

    def do(self, act: Effect) -> None:
        if isinstance(act, WriteRecord):
            self.write(act)
        elif isinstance(act, PublishEvent):
            self.publish(act)
        elif not isinstance(act, RemoveKey):
            super().do(act)

    def publish(self, act: PublishEvent) -> None:
        stores, event = self.stores, act.event
        if self.state.publishing != event.id or self.state.doubted:
            self.todo.append(act)
            return
        if stores.given.setdefault(event.id, event) != event:
            assert event.epoch not in self.left, "an id of an epoch that it has left is given again"
        assert self.heard.setdefault(event.id, event) == event, "an id that it has heard of is given again"
        super().do(act)
        for other in stores.replicas:
            if not other.deaf_to_events:
                other.heard.setdefault(event.id, event)
                other.feed(EventSeen(event.epoch, event.seq))

    def write(self, act: WriteRecord) -> None:
        writing, stores = act.writing, self.stores
        if self.state.writing is None or self.state.writing.nonce != writing.nonce:
            return
        if writing.expected != stores.revision:
            self.feed(WriteConflict(writing.nonce))
            return
        stores.stored, stores.revision, stores.writes = writing.record, stores.revision + 1, stores.writes + 1
        stores.nonce = writing.nonce
        self.feed(WriteDone(writing.nonce, stores.revision))
        for other in stores.replicas:
            if other is not self:
                other.at = max(other.at, self.at)
                other.notice(made_again=False)


COPY, WHICH = st.integers(0, 4), st.integers(0, 2)
HOW = st.sampled_from(["later", "same", "its own", MADE_AGAIN])
ACTS = st.lists(
    st.one_of(
        st.sampled_from(["rise", "fall", "keep", "lose"]),
        st.tuples(COPY, COPY, HOW),
        st.tuples(st.sampled_from(["restart", "deafen", "lag", "first", "alone"]), WHICH),
    ),
    max_size=14,
)


def perform(acts: list[Act], replicas: int) -> Stores:
    stores = Stores(replicas)
    for act in acts:
        match act:
            case "keep":
                stores.copies.append(stores.copy())
            case "lose":
                stores.lose()
            case "rise" | "fall":
                stores.load(OVERLOAD if act == "rise" else CALM)
            case ("restart", int(n)):
                stores.restart(n)
            case ("first", int(n)):
                stores.put_first(n)
            case ("alone", int(n)):
                stores.load_alone(n)
            case ("deafen" | "lag" as which, int(n)):
                stores.deafen(n, to_events=which == "deafen")
            case (int(bucket), int(stream), str(how)):
                stores.put_back(*(stores.copies[n % len(stores.copies)] for n in (bucket, stream)), how)
    for n, one in enumerate(stores.replicas):
        if one.deaf:
            stores.deafen(n, to_events=False)
    return stores


@settings(max_examples=examples(100))
@given(acts=ACTS, replicas=st.sampled_from([2, 3]))
@example(["rise", "lose", "fall", (0, 0, "later"), "rise"], 2)
@example(
    ["rise", "fall", "keep", "rise", "fall", "lose", "rise", "fall", "rise", "fall", ("restart", 1), (1, 1, "later")], 2
)
@example(["rise", "fall", "keep", "lose", "rise", "fall", ("restart", 1), (1, 1, "later")], 2)
@example([("restart", 0), "lose", "keep", ("restart", 2), (0, 1, "same")], 3)
@example([("lag", 0), ("alone", 1), ("first", 0), (0, 0, "same")], 3)
@example([("deafen", 0), ("alone", 1), "lose", ("deafen", 0), ("first", 0), (0, 0, "later")], 3)
def test_whatever_copies_are_put_back_no_id_is_given_twice_and_writes_end(acts: list[Act], replicas: int) -> None:
    with patch.object(left_epochs, "REMEMBERED", 99):
        stores = perform(acts, replicas)
        for pending in (stores.pending, OVERLOAD, CALM):
            stores.load(pending)
            stores.turns(4)
            before = stores.writes
            stores.turns(8)
            assert stores.writes == before, "replicas overwrite each other"
            assert [one.state.record for one in stores.replicas] == [stores.stored] * replicas


def test_the_oldest_of_many_epochs_is_forgotten() -> None:
    stores = Stores()
    for _ in range(REMEMBERED + 2):
        stores.load(OVERLOAD)
        stores.lose()
        stores.load(CALM)
        assert len(stores.replicas[0].state.left_epochs) <= REMEMBERED
    assert len(stores.replicas[0].state.left_epochs) == REMEMBERED
