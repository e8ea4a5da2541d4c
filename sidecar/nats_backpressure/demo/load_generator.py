"""The demo's load generator process: sends requests at a given rate, and counts the responses."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

import msgspec

from nats_backpressure.demo.scenario import PATH, REPORT_INTERVAL, SENT_AT, Scenario, print_report

CONNECTIONS = 64
"""Open connections to the gateway; a request that finds none free is counted as `missed`."""
RESPONSE_TIMEOUT = 10.0
"""Seconds."""


class HttpConnection:
    """One keep-alive connection: plain HTTP/1.1, so that the load costs the machine little."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self) -> int:
        """Sends one request; returns the status of the response. Raises OSError or TimeoutError."""
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                return await self._call()
        except BaseException:
            self.close()
            raise

    async def _call(self) -> int:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        head = f"POST {PATH} HTTP/1.1\r\nhost: gateway\r\n{SENT_AT}: {time.monotonic()}\r\ncontent-length: 0\r\n\r\n"
        writer.write(head.encode())
        response = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(response.partition("content-length:")[2].partition("\r\n")[0] or 0)
        await reader.readexactly(length)
        return int(response.split(" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class LoadGenerator:
    def __init__(self, scenario: Scenario, port: int) -> None:
        self.scenario, self.counts = scenario, Counter[str]()
        self._idle = [HttpConnection(port) for _ in range(CONNECTIONS)]
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        scenario, start, due, last = self.scenario, time.monotonic(), 0.0, 0.0
        while (at := time.monotonic() - start) < scenario.seconds + 2 * scenario.calm:
            due += (at - last) * scenario.offered(at)
            last = at
            for _ in range(int(due)):
                self._send()
            due %= 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*self._tasks)
        for connection in self._idle:
            connection.close()

    def _send(self) -> None:
        self.counts["offered"] += 1
        if not self._idle:
            self.counts["missed"] += 1
            return
        task = asyncio.create_task(self._call(self._idle.pop()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, connection: HttpConnection) -> None:
        try:
            status = await connection.call()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self.counts["failed"] += 1
        else:
            self.counts["admitted" if status < 300 else "shed" if status in (429, 503) else "failed"] += 1
        finally:
            self._idle.append(connection)

    async def report(self) -> None:
        while True:
            await asyncio.sleep(REPORT_INTERVAL)
            print_report(**self.counts)


async def main(scenario: Scenario, port: int) -> None:
    load = LoadGenerator(scenario, port)
    reporting = asyncio.create_task(load.report())
    await load.run()
    reporting.cancel()
    print_report(**load.counts)


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Scenario), int(sys.argv[2])))
