"""The text of the metrics page is the one that Prometheus's own client library writes, and its parser reads it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Histogram, Metric, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from nats_backpressure.adapters.prometheus import counters, exposition
from nats_backpressure.adapters.prometheus.exposition import Series, escape, header, joined, number
from nats_backpressure.policy.schema import Policy
from tests.simulations.metrics_page import World, everything, member, state

LABELS = (
    'quote"d',
    "back\\slash",
    "back\\nslash",
    "größe.→",
    "orders.*.>",
    "a b",
    "line\nend",
    "{}%s{0}",
    "",
    "_other",
)


class Parsed(Collector):
    """The families of a page as the parser reads them."""

    def __init__(self, page: str) -> None:
        self._page = page

    def collect(self) -> Iterator[Metric]:
        yield from text_string_to_metric_families(self._page)


def written_by_the_library(page: str) -> str:
    """A page, read and written again by Prometheus's client library."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Parsed(page))
    return generate_latest(registry).decode()


def without_comments(page: str) -> str:
    return "".join(line for line in page.splitlines(keepends=True) if not line.startswith("# router"))


@pytest.mark.parametrize("most", [0, 3, 1000], ids=["all share a label", "some do", "none does"])
def test_the_page_is_what_the_library_writes(most: int) -> None:
    world = World(max_subjects=most)
    everything(world)
    world.watch(*(state(label, member(label), member("c2", p95=1e7)) for label in LABELS if label != "_other"))
    world.watch(state("dry", replace(member(), policy=Policy(mode="observe"))))
    for label in LABELS:
        world.decision(label, "gateway", "reject", 0.03)
        world.metrics.event(label, "recovery")
    page = world.text()
    assert without_comments(page) == written_by_the_library(page)
    assert page.startswith(
        "# router_intake_backpressure_active 1 is the largest of all subjects\n# HELP router_intake_"
    )


@given(st.dictionaries(st.tuples(st.text(), st.sampled_from(LABELS), st.text()), st.floats(), max_size=5))
def test_any_labels_and_numbers_are_written_as_the_library_does(series: dict[tuple[str, ...], float]) -> None:
    names = ("subject", "from", "to")
    written = (Series("x_total", names).line(tuple(map(escape, labels)), value) for labels, value in series.items())
    page = header("x_total", "counter", 'A "help" with \\ and\nlines.') + "".join(joined(written))
    # Only with a line end does the parser take \r and the like as what they are.
    if not any(set(label) & set("\r\v\f\x1c\x1d\x1e\x85\u2028\u2029") for labels in series for label in labels):
        assert page == written_by_the_library(page)
    read = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
    assert [tuple(sample.labels[name] for name in names) for sample in read] == list(series)


@given(st.floats() | st.integers(-(10**16), 10**16).map(float))
def test_any_number_is_written_as_the_library_does(value: float) -> None:
    assert number(value) == floatToGoString(value)


@given(st.lists(st.floats(0, 20) | st.sampled_from([0.001, 0.5, 1.0]), max_size=20))
def test_a_histogram_counts_as_the_library_does(values: list[float]) -> None:
    bounds = (0.001, 0.5, 1.0)
    registry = CollectorRegistry()
    theirs = Histogram("h_seconds", "Seconds.", buckets=bounds, registry=registry)
    ours = exposition.Histogram("h_seconds", "Seconds.", bounds)
    for value in values:
        theirs.observe(value)
        ours.observe(value)
    lines = generate_latest(registry).decode().splitlines(keepends=True)
    assert ours.text() == "".join(line for line in lines if "_created" not in line)


def test_a_large_page_comes_in_pieces_with_pauses_in_between(monkeypatch: pytest.MonkeyPatch) -> None:
    """The event loop waits while another thread computes without a pause."""
    world, worked, pauses = World(), 0.0, list[float]()

    def clock() -> float:
        nonlocal worked
        worked += counters.WORK / 4  # each look at it is a little work later
        return worked

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "sleep", pauses.append)
    world.watch(*(state(f"s{n}", member()) for n in range(1000)))
    pieces = world.metrics.page()
    assert len(pauses) >= 20 and set(pauses) == {counters.PAUSE}
    assert max(map(len, pieces)) < 300_000
