"""The counters of a client as an OpenTelemetry instrument. Needs opentelemetry-api (extra `opentelemetry`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from nats_backpressure.client.counted_clients import Counted, CountedClients

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Meter, Observation

INSTRUMENT = "nats_backpressure.client"


_observed: WeakKeyDictionary[Meter, CountedClients] = WeakKeyDictionary()


def observe_stats(meter: Meter, *clients: Counted) -> None:
    """Create the observable counter `nats_backpressure.client`, with the attributes `installation` and `count` (the
    name of the counter in `client.stats`). Further clients of the process may be added by further calls with the same
    meter; those of one installation are added up. Raises ValueError for more than 100 clients."""
    from opentelemetry.metrics import Observation  # only here: an optional package

    if (known := _counted(meter)) is not None:
        known.add(*clients)
        return
    counted = CountedClients()
    counted.add(*clients)
    _observed[meter] = counted

    def read(_: CallbackOptions) -> Iterator[Observation]:
        for (installation, name), n in counted.summed().items():
            yield Observation(n, {"installation": installation, "count": name})

    meter.create_observable_counter(
        INSTRUMENT, callbacks=[read], unit="1", description="What a backpressure client counted since it was made."
    )


def _counted(meter: Meter) -> CountedClients | None:
    """What an instrument of this meter reports already. Before there is a provider, each call of `get_meter` returns
    another stand-in, and those of one name become one meter."""
    waits = hasattr(meter, "on_set_meter_provider")
    for known, counted in _observed.items():
        same = waits and hasattr(known, "on_set_meter_provider") and _identity(known) == _identity(meter)
        if known is meter or same:
            return counted
    return None


def _identity(meter: Meter) -> tuple[str, str | None, str | None]:
    return meter.name, meter.version, meter.schema_url
