"""A TCP proxy with faults: forward, black-hole, cut and delay, per direction where it matters."""

import asyncio
from typing import Self


class Proxy:
    """Stands between a client and `host:port`. `async with Proxy(port) as proxy:` listens on `proxy.port`."""

    def __init__(self, target_port: int, *, target_host: str = "127.0.0.1") -> None:
        self.target = (target_host, target_port)
        self.port = 0
        self.delay = 0.0  # seconds before each chunk is passed on
        self.connections = 0  # accepted so far
        self._passing = asyncio.Event()
        self._passing.set()
        self._refusing = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        assert self._listener is not None
        self._listener.close()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._listener.wait_closed()

    def black_hole(self) -> None:
        """Connections stay open, new ones are accepted, nothing passes: a half-open link."""
        self._passing.clear()

    def refuse(self) -> None:
        """Close all connections, and each new one at once."""
        self._refusing = True
        self.cut()

    def forward(self) -> None:
        """Pass everything again, what was held back first."""
        self._refusing = False
        self._passing.set()

    def cut(self) -> None:
        """Reset every open connection; the next one goes through."""
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        try:
            if not self._refusing:
                await self._join(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a link that breaks is what this is for; a cancel comes only from our own exit
        finally:
            writer.transport.abort()
            self._writers.discard(writer)
            self._tasks.discard(task)

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream = await asyncio.open_connection(*self.target)
        self._writers.add(upstream)
        ways = [
            asyncio.ensure_future(self._pump(reader, upstream)),
            asyncio.ensure_future(self._pump(upstream_reader, writer)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            upstream.transport.abort()
            self._writers.discard(upstream)
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(65536):
            if self.delay:
                await asyncio.sleep(self.delay)
            await self._passing.wait()
            writer.write(chunk)
            await writer.drain()
