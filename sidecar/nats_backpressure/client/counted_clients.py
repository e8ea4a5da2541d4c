"""CountedClients: the counters of all clients of a process, as metrics libraries export them."""

from __future__ import annotations

from typing import Protocol

from nats_backpressure.client.stats import Stats

MAX_CLIENTS = 100
"""More are a mistake, such as a client for each request. None makes room: a counter must not fall."""


class Counted(Protocol):
    """What has counters: a client of either kind."""

    @property
    def name(self) -> str: ...

    @property
    def stats(self) -> Stats: ...


class CountedClients:
    """Each client once."""

    def __init__(self) -> None:
        self._clients: list[Counted] = []

    def add(self, *clients: Counted) -> None:
        """Raises ValueError for more than MAX_CLIENTS."""
        for client in clients:
            if any(client is known for known in self._clients):
                continue
            if len(self._clients) >= MAX_CLIENTS:
                raise ValueError(f"more than {MAX_CLIENTS} backpressure clients to export: make one for each process")
            self._clients.append(client)

    def summed(self) -> dict[tuple[str, str], int]:
        """The counts by installation and name of the counter; those of several clients of one installation are added:
        a metric has each combination of labels once."""
        sums: dict[tuple[str, str], int] = {}
        for client in tuple(self._clients):
            for name, n in client.stats.counts().items():
                sums[client.name, name] = sums.get((client.name, name), 0) + n
        return sums
