"""The client's counters in metrics libraries: Prometheus' text, and OpenTelemetry's reader."""

from __future__ import annotations

from typing import Any

import pytest
from opentelemetry.metrics._internal import _ProxyMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest

from nats_backpressure.client import BackpressureClient
from nats_backpressure.client.counted_clients import MAX_CLIENTS
from nats_backpressure.client.integrations.opentelemetry import observe_stats
from nats_backpressure.client.integrations.prometheus import StatsCollector, export_stats


async def test_prometheus_reads_every_counter() -> None:
    client = BackpressureClient.fixed("reject")
    registry = CollectorRegistry()
    registry.register(StatsCollector(client, BackpressureClient.fixed()))
    for _ in range(3):
        client.admit("orders")
    text = generate_latest(registry).decode()
    assert 'nats_backpressure_client_total{count="shed",installation="backpressure"} 3.0' in text
    assert text.count("nats_backpressure_client_total{") == len(client.stats.counts())


async def test_open_telemetry_reads_every_counter() -> None:
    client, reader = BackpressureClient.fixed("reject"), InMemoryMetricReader()
    provider = MeterProvider([reader])
    observe_stats(provider.get_meter("app"), client)
    client.admit("orders")
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points = {p.attributes["count"]: p.value for p in metric.data.data_points if isinstance(p, NumberDataPoint)}
    assert metric.name == "nats_backpressure.client"
    assert points["shed"] == 1 and points.keys() == client.stats.counts().keys()
    provider.shutdown()


def clients() -> list[BackpressureClient]:
    """Two of one installation and one of another, each of which shed a request."""
    made = [BackpressureClient.fixed("reject") for _ in range(3)]
    made[2].name = "eu"
    for client in made:
        client.admit("orders")
    return made


def test_further_clients_of_a_process_are_exported_with_the_first_ones() -> None:
    registry, (one, two, other) = CollectorRegistry(), clients()
    export_stats(one, registry=registry)
    export_stats(two, other, registry=registry)
    export_stats(one, registry=registry)
    text = generate_latest(registry).decode()
    assert 'count="shed",installation="backpressure"} 2.0' in text and 'count="shed",installation="eu"} 1.0' in text
    assert text.count("# TYPE nats_backpressure_client_total") == 1
    assert text.count("nats_backpressure_client_total{") == 2 * len(one.stats.counts())
    another = CollectorRegistry()
    export_stats(other, registry=another)
    assert 'backpressure"}' not in generate_latest(another).decode(), "each registry has its own"


@pytest.mark.parametrize("meters", ["of a provider", "before there is a provider"])
def test_further_clients_are_observed_with_the_first_ones(meters: str) -> None:
    reader, (one, two, other) = InMemoryMetricReader(), clients()
    provider = MeterProvider([reader])
    before = _ProxyMeterProvider()
    of: Any = before if meters == "before there is a provider" else provider
    observe_stats(of.get_meter("app"), one)
    observe_stats(of.get_meter("app"), two, other)
    before.on_set_meter_provider(provider)
    data = reader.get_metrics_data()
    assert data is not None
    (metric,) = data.resource_metrics[0].scope_metrics[0].metrics
    points = [p for p in metric.data.data_points if isinstance(p, NumberDataPoint)]
    shed = {p.attributes["installation"]: p.value for p in points if p.attributes["count"] == "shed"}
    assert shed == {"backpressure": 2, "eu": 1} and len(points) == 2 * len(one.stats.counts())
    provider.shutdown()


def test_a_client_for_each_request_is_refused() -> None:
    collector = StatsCollector(*(BackpressureClient.fixed() for _ in range(MAX_CLIENTS)))
    with pytest.raises(ValueError, match="make one for each process"):
        collector.add(BackpressureClient.fixed())
