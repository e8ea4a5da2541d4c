"""Fixtures of the Prometheus tests."""

from __future__ import annotations

from collections.abc import Iterator

import prometheus_client
import pytest

from tests.simulations.metrics_page import World


@pytest.fixture(autouse=True)
def created_as_before() -> Iterator[None]:
    yield
    prometheus_client.enable_created_metrics()


@pytest.fixture
def world() -> World:
    return World()
