"""Which batches of hints count: none that shows again what was counted, whoever counted it."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.reading.counted_hints import APART, CountedHints


def test_batches_of_one_source_count_in_their_order() -> None:
    counted = CountedHints()
    assert [counted.count("a", n, 10.0, 10.0) for n in (0, 1, 1, 0, 3)] == [True, True, False, False, True]


def test_a_batch_of_another_source_counts_if_it_began_later() -> None:
    counted = CountedHints()
    counted.count("a", 5, 9.0, 10.0)
    assert not counted.count("b", 0, 9.9, 10.5)
    assert counted.count("a", 6, 10.0, 10.6), "what did not count changed nothing"
    assert counted.count("b", 1, 10.6 + APART, 11.0)
    assert not counted.count("a", 7, 10.6, 11.1)


def test_a_batch_does_not_count_beside_own_hints() -> None:
    counted = CountedHints()
    counted.count("a", 0, 9.0, 10.0)
    counted.count_own(11.0)
    assert not counted.count("a", 1, 10.5, 11.5), "it was counted here while the other one counted it too"
    assert counted.count("a", 2, 11.5, 12.0)


def test_without_a_time_a_batch_of_another_source_does_not_count() -> None:
    counted = CountedHints()
    assert not counted.count("a", 0, None, 10.0)
    assert counted.count("a", 1, 10.0, 10.0)
    assert counted.count("a", 2, None, 11.0)


@dataclass
class Source:
    """A process that receives every hint, and sends what came since its last batch."""

    late: float
    """Seconds by which hints reach it later than the first one."""
    waiting: list[tuple[float, int]] = field(default_factory=list)
    n: int = 0


steps = st.lists(
    st.tuples(st.sampled_from(["hint", "hint", "batch a", "batch b", "own", "lost a"]), st.floats(0.0, 0.3)),
    max_size=60,
)


@given(steps, st.floats(0.0, APART / 2), st.floats(0.0, APART / 2))
def test_nothing_counts_twice_whoever_counts_it(script: list[tuple[str, float]], late: float, error: float) -> None:
    """Every source gets every hint, nearly at the same time, and clocks are related with an error."""
    sources = {"a": Source(0.0), "b": Source(late)}
    counted, taken, now, hints = CountedHints(), list[int](), 0.0, 0
    for what, seconds in script:
        now += seconds
        if what == "hint":
            hints += 1
            for source in sources.values():
                source.waiting.append((now + source.late, hints))
        elif what == "own":  # it receives this one itself
            hints += 1
            for source in sources.values():
                source.waiting.append((now + source.late, hints))
            counted.count_own(now)
            taken.append(hints)
        else:
            source = sources[what[-1]]
            came = [hint for hint in source.waiting if hint[0] <= now]
            source.waiting = [hint for hint in source.waiting if hint[0] > now]
            if came:
                source.n += 1
                if not what.startswith("lost") and counted.count(what[-1], source.n, came[0][0] + error - 1e-9, now):
                    taken += [n for _, n in came]
    assert len(taken) == len(set(taken))
