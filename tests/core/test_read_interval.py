"""How often a stream is read."""

from __future__ import annotations

import pytest

from nats_backpressure.core.read_interval import LIMITED_FACTOR, SLOW_LIST, Budget, read_interval

BUDGET = Budget(min_interval=0.1, max_interval=5.0, requests_per_second=50.0, server_share=0.05)


@pytest.mark.parametrize(
    ("streams", "requests", "took", "complete", "limited", "seconds"),
    [
        pytest.param(1, 1, 0.001, True, False, 0.1, id="a cheap stream at the shortest interval"),
        pytest.param(100, 2, 0.001, True, False, 4.0, id="many streams share the requests per second"),
        pytest.param(0, 10, 0.001, True, False, 0.2, id="no stream counts as one"),
        pytest.param(1, 1, 0.02, True, False, 0.4, id="the server spends its share on us"),
        pytest.param(1, 1, 0.02, True, True, 0.4 * LIMITED_FACTOR, id="rarer after a refusal"),
        pytest.param(1000, 10, 0.5, True, True, 5.0, id="never rarer than the longest interval"),
        pytest.param(1, 1, 0.001, False, False, 5.0, id="an incomplete read waits for the longest"),
        pytest.param(1, 1, SLOW_LIST, True, False, 5.0, id="and so does a slow list"),
    ],
)
def test_the_interval_follows_what_a_read_costs(
    streams: int, requests: int, took: float, complete: bool, limited: bool, seconds: float
) -> None:
    assert read_interval(BUDGET, streams, requests, took, complete, limited) == pytest.approx(seconds)
