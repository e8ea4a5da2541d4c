"""The counters of clients as Prometheus metrics. Needs prometheus-client (extra `prometheus`)."""

from __future__ import annotations

from collections.abc import Iterator
from weakref import WeakKeyDictionary

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import REGISTRY, Collector, CollectorRegistry

from nats_backpressure.client.counted_clients import Counted, CountedClients

METRIC = "nats_backpressure_client"
HELP = "What a backpressure client counted since it was made, by the name of the counter in client.stats."


_collectors: WeakKeyDictionary[CollectorRegistry, StatsCollector] = WeakKeyDictionary()


def export_stats(*clients: Counted, registry: CollectorRegistry = REGISTRY) -> None:
    """Export the counters as `nats_backpressure_client_total{installation, count}`. Further clients of the process may
    be added by further calls; those of one installation are added up. Raises ValueError for more than 100 clients, and
    as the registry does where one has registered a StatsCollector of its own."""
    if (collector := _collectors.get(registry)) is None:
        collector = StatsCollector()
        registry.register(collector)
        _collectors[registry] = collector
    collector.add(*clients)


class StatsCollector(Collector):
    """What `export_stats` registers: one for each registry, which takes each metric from one collector alone. The
    values of the labels are bounded: the installations, and the counters of `Stats`."""

    def __init__(self, *clients: Counted) -> None:
        self._clients = CountedClients()
        self.add(*clients)

    def add(self, *clients: Counted) -> None:
        """Raises ValueError for more than 100."""
        self._clients.add(*clients)

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Nothing is read when it is registered."""
        yield CounterMetricFamily(METRIC, HELP, labels=("installation", "count"))

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(METRIC, HELP, labels=("installation", "count"))
        for labels, n in self._clients.summed().items():
            family.add_metric(labels, n)
        yield family
