"""The client's counters in metrics libraries: Prometheus' text, and OpenTelemetry's reader."""

from __future__ import annotations

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, NumberDataPoint
from prometheus_client import CollectorRegistry, generate_latest

from nats_backpressure.client import BackpressureClient
from nats_backpressure.client.integrations.opentelemetry import observe_stats
from nats_backpressure.client.integrations.prometheus import StatsCollector


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
