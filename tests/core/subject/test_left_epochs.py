"""Stores that go back again and again: no id is given to two events by a process that knew the first one."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from nats_backpressure.core.model.event import SubjectEvent
from nats_backpressure.core.subject.inputs import RecordCreated, RecordFollowed
from nats_backpressure.core.subject.left_epochs import REMEMBERED
from nats_backpressure.core.subject.record import Record
from tests.core.subject.test_step import World
from tests.support.exploring import examples

Copy = tuple[Record, list[SubjectEvent]]


class Numbered(World):
    """Each epoch is another one."""

    begun = 0

    def created(self) -> RecordCreated:
        self.begun += 1
        return replace(super().created(), epoch=f"e{self.begun}")


class Stores:
    """A subject, its stores, and copies of them that are put back while it runs."""

    def __init__(self) -> None:
        self.world, self.given = Numbered(), dict[str, SubjectEvent]()
        self.copies: list[Copy] = []
        self.load(0)
        self.keep()

    def load(self, pending: int) -> None:
        for _ in range(3):
            self.world.settled(pending=pending)
        for event in self.world.stream:
            assert self.given.setdefault(event.id, event) == event, "two events have one id"

    def keep(self) -> None:
        assert self.world.stored is not None
        self.copies.append((self.world.stored, list(self.world.stream)))

    def put_back(self, bucket: Copy, stream: Copy) -> None:
        """Both were deleted and made anew from copies: nothing shows by its revision that it is older."""
        world = self.world
        world.stored, world.stream[:] = bucket[0], stream[1]
        world.revision += 7
        world.feed(RecordFollowed(bucket[0], world.revision, "another's"))
        world.perform()


COPY = st.integers(0, 5)
ACTS = st.lists(st.one_of(st.sampled_from(["rise", "fall", "keep"]), st.tuples(COPY, COPY)), max_size=12)


@settings(max_examples=examples(200))
@given(acts=ACTS)
def test_whatever_copies_are_put_back_no_id_is_given_to_two_events(acts: list[str | tuple[int, int]]) -> None:
    stores = Stores()
    for act in acts:
        if isinstance(act, tuple):
            stores.put_back(*(stores.copies[n % len(stores.copies)] for n in act))
        elif act == "keep":
            stores.keep()
        else:
            stores.load(1500 if act == "rise" else 0)
    stores.load(1500)
    stores.load(0)


def test_the_oldest_of_many_epochs_is_forgotten() -> None:
    stores = Stores()
    for n in range(REMEMBERED + 2):
        stores.load(1500)
        stores.put_back(stores.copies[0], stores.copies[0])
        assert len(stores.world.state.left_epochs) <= REMEMBERED, n
