"""The counters of a client as an OpenTelemetry instrument. Needs opentelemetry-api (extra `opentelemetry`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nats_backpressure.client.stats import Counted, summed

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

INSTRUMENT = "nats_backpressure.client"


def observe_stats(meter: Meter, *clients: Counted) -> None:
    """Create the observable counter `nats_backpressure.client`, with the attributes `installation` and `count` (the
    name of the counter in `client.stats`). Once for each meter, with all clients of the process."""
    from opentelemetry.metrics import Observation  # only here: an optional package

    def read(_: CallbackOptions) -> Iterator[Observation]:
        for (installation, name), n in summed(clients).items():
            yield Observation(n, {"installation": installation, "count": name})

    meter.create_observable_counter(
        INSTRUMENT, callbacks=[read], unit="1", description="What a backpressure client counted since it was made."
    )
