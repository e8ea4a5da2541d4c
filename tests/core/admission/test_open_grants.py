"""What counts as granted and not delivered yet: no less than is true, and no more for those that pull one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.admission.open_grants import OpenGrants
from nats_backpressure.core.model.reading import Reading
from nats_backpressure.protocol.timestamps import Now
from nats_backpressure.protocol.values import ConsumerKey


@dataclass
class Pullers:
    """Each is granted some, pulls all of it, and asks again."""

    grants: OpenGrants = field(default_factory=OpenGrants)
    now: float = 100.0
    delivered: int = 0
    open: dict[str, int] = field(default_factory=dict)
    granted_since: int = 0
    """Since the last reading."""

    def __post_init__(self) -> None:
        self.read()
        self.grants.outstanding(self.reading, self.now)  # as before every grant

    def pull(self, name: str) -> None:
        self.delivered += self.open.pop(name, 0)

    def ask(self, name: str, n: int) -> None:
        self.pull(name)
        self.grants.add(n, name, self.now)
        self.open[name] = n
        self.granted_since += n

    def read(self) -> None:
        self.reading = Reading(
            ConsumerKey("S", "c"), Now(self.now, self.now), 1000, 0, None, None, delivered_consumer=self.delivered
        )
        self.left, self.granted_since = sum(self.open.values()), 0

    @property
    def outstanding(self) -> int:
        return self.grants.outstanding(self.reading, self.now)


steps = st.lists(st.tuples(st.floats(0.01, 0.09), st.sampled_from("abcd"), st.booleans()), max_size=100)


@given(steps, st.sampled_from([0.07, 0.1, 0.15]))
def test_what_those_that_pull_one_by_one_were_granted_counts_until_a_reading_shows_it(
    past: list[tuple[float, str, bool]], reads_every: float
) -> None:
    """Each asks again within 0.2 s. Deliveries that were forgotten counted once more, as those of others: two thirds of
    what counted as granted was long pulled."""
    pullers, asked_at, read_at = Pullers(), dict.fromkeys("abcd", -1.0), 100.0
    for pause, name, pulls in past:
        pullers.now += pause
        for one in [name, *(late for late, at in asked_at.items() if pullers.now - at > 0.2)]:
            pullers.ask(one, 7)
            asked_at[one] = pullers.now
        if pulls:
            pullers.pull(name)
        if pullers.now - read_at > reads_every:
            pullers.read()
            read_at = pullers.now
        assert pullers.outstanding == pullers.left + pullers.granted_since
