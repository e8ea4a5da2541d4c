"""Callers: so many requests a second, come what may, and what they were answered."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter

import msgspec

from nats_backpressure.demo.scenario import PATH, REPORT_EVERY, SENT_AT, Scenario, report

CONNECTIONS = 64
"""Kept open to the gateway; a request for which none is free is counted as `missed`."""
ANSWER_WITHIN = 10.0


class Caller:
    """One connection that is kept: plain HTTP/1.1, so that the load costs the machine little."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def call(self) -> int:
        """The status of one answer. Raises OSError or TimeoutError."""
        try:
            async with asyncio.timeout(ANSWER_WITHIN):
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
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length:")[2].partition("\r\n")[0] or 0)
        await reader.readexactly(length)
        return int(answer.split(" ", 2)[1])

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Load:
    def __init__(self, scene: Scenario, port: int) -> None:
        self.scene, self.answers = scene, Counter[str]()
        self._idle = [Caller(port) for _ in range(CONNECTIONS)]
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        scene, began, due, last = self.scene, time.monotonic(), 0.0, 0.0
        while (at := time.monotonic() - began) < scene.seconds + 2 * scene.calm:
            due += (at - last) * scene.offered(at)
            last = at
            for _ in range(int(due)):
                self._send()
            due %= 1
            await asyncio.sleep(0.01)
        await asyncio.gather(*self._tasks)

    def _send(self) -> None:
        self.answers["offered"] += 1
        if not self._idle:
            self.answers["missed"] += 1
            return
        task = asyncio.create_task(self._call(self._idle.pop()))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, caller: Caller) -> None:
        try:
            status = await caller.call()
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            self.answers["failed"] += 1
        else:
            self.answers["admitted" if status < 300 else "shed" if status in (429, 503) else "failed"] += 1
        finally:
            self._idle.append(caller)

    async def tell(self) -> None:
        while True:
            await asyncio.sleep(REPORT_EVERY)
            report(**self.answers)


async def main(scene: Scenario, port: int) -> None:
    load = Load(scene, port)
    telling = asyncio.create_task(load.tell())
    await load.run()
    telling.cancel()
    report(**load.answers)


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Scenario), int(sys.argv[2])))
