"""StatsCollector: the counters of a client as Prometheus metrics. Needs prometheus-client (extra `prometheus`)."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from nats_backpressure.client.stats import Counted, summed

METRIC = "nats_backpressure_client"
HELP = "What a backpressure client counted since it was made, by the name of the counter in client.stats."


class StatsCollector(Collector):
    """`REGISTRY.register(StatsCollector(client))`: `nats_backpressure_client_total{installation, count}`.

    Register one for each process, with all its clients; two of one installation are added up. The values of the labels
    are bounded: the installations, and the counters of `Stats`.
    """

    def __init__(self, *clients: Counted) -> None:
        self._clients = clients

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Nothing is read when it is registered."""
        yield CounterMetricFamily(METRIC, HELP, labels=("installation", "count"))

    def collect(self) -> Iterator[CounterMetricFamily]:
        family = CounterMetricFamily(METRIC, HELP, labels=("installation", "count"))
        for labels, n in summed(self._clients).items():
            family.add_metric(labels, n)
        yield family
