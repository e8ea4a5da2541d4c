"""The story: calm, a burst, backpressure, a queue that drains, recovery."""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import nats
from nats.aio.client import Client
from nats.js.api import AckPolicy, ConsumerConfig
from rich.console import Console

from sidecar.demo.programs import CONSUMER, STREAM, SUBJECT, Gateway, Router, ask

BURST = 3000
HANDS, SECONDS_EACH = 8, 0.02
"""The router's capacity: 400 messages a second."""
STEADY = 60
LONGEST = 50.0
"""Seconds after which the story is told to have failed."""
COLOURS = {"inactive": "green", "warning": "yellow", "active": "red", "unknown": "dim"}
MUST_COME = ("backpressure_active", "recovery")


class Story:
    """Tells on a terminal what happens, as it happens."""

    def __init__(self, url: str, console: Console) -> None:
        self.url, self.console = url, console
        self.began = time.monotonic()
        self.events: Counter[str] = Counter()
        self.returned = asyncio.Event()
        self.largest = 0

    def say(self, text: str) -> None:
        self.console.print(f"[dim]{time.monotonic() - self.began:5.1f} s[/]  {text}", highlight=False, soft_wrap=True)

    async def tell(self) -> bool:
        nc = await nats.connect(self.url)
        try:
            return await self._tell(nc)
        finally:
            await nc.close()

    async def _tell(self, nc: Client) -> bool:
        js = nc.jetstream()
        await js.add_stream(name=STREAM, subjects=[SUBJECT])
        config = ConsumerConfig(durable_name=CONSUMER, ack_policy=AckPolicy.EXPLICIT, max_ack_pending=1000, ack_wait=30)
        await js.add_consumer(STREAM, config)
        self.say(f"stream [b]{STREAM}[/], durable pull consumer [b]{CONSUMER}[/] on [b]{SUBJECT}[/]")
        router, gateway = Router(nc, SECONDS_EACH, HANDS), Gateway(nc)
        await gateway.listen()
        await self._until_answered(nc)
        loops = [
            asyncio.create_task(router.run()),
            asyncio.create_task(gateway.steady(STEADY)),
            asyncio.create_task(self._report(nc, gateway)),
            asyncio.create_task(self._hear(gateway)),
        ]
        try:
            await asyncio.sleep(3)
            self.say(
                f"[b]a burst:[/] {BURST} requests at once, where the router can do {HANDS / SECONDS_EACH:.0f} a second"
            )
            await gateway.call(BURST)
            finished = await _within(self.returned, LONGEST)
            await asyncio.sleep(2)
        finally:
            for loop in loops:
                loop.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
            await router.finish()
        return self._sum_up(router, gateway, finished)

    async def _until_answered(self, nc: Client) -> None:
        while await ask(nc, f"decide.gateway.{SUBJECT}") is None:
            await asyncio.sleep(0.05)
        self.say("the sidecar found the consumer and answers")

    async def _report(self, nc: Client, gateway: Gateway) -> None:
        while True:
            status = await ask(nc, f"get.status.{SUBJECT}")
            if status is not None:
                metrics, colour = status["metrics"], COLOURS[status["status"]]
                self.largest = max(self.largest, metrics["pending_messages"] or 0)
                drain = metrics["drain_seconds"]
                self.say(
                    f"[{colour}]{status['status']:<8}[/]  pending {metrics['pending_messages'] or 0:>5}"
                    f"  in flight {metrics['inflight_messages'] or 0:>4}"
                    f"  drain {'    -' if drain is None else f'{drain:4.1f}s'}"
                    f"  gateway 202 x {gateway.answered[202]:<5} 503 x {gateway.answered[503]}"
                )
            await asyncio.sleep(1)

    async def _hear(self, gateway: Gateway) -> None:
        while True:
            event = await gateway.events.get()
            self.events[event["type"]] += 1
            self.say(self._event_line(event))
            if event["type"] == "recovery" and event["to"] == "inactive" and self.events["backpressure_active"]:
                self.returned.set()

    def _event_line(self, event: dict[str, Any]) -> str:
        retry = f", Retry-After {event['retry_after_seconds']}" if event["to"] == "active" else ""
        because = f" because of {', '.join(event['reasons'])}" if event["reasons"] else ""
        return (
            f"[b reverse {COLOURS[event['to']]}] {event['type']} [/] seq {event['seq']}: "
            f"{event['from']} -> {event['to']}{because}{retry}"
        )

    def _sum_up(self, router: Router, gateway: Gateway, finished: bool) -> bool:
        missing = [kind for kind in MUST_COME if not self.events[kind]]
        self.console.print()
        told = ", ".join(f"{kind} x {n}" for kind, n in self.events.items())
        asked = ", ".join(f"{action} x {n}" for action, n in sorted(router.answers.items()))
        self.console.print(f"events          {told or 'none'}", highlight=False, soft_wrap=True)
        self.console.print(
            f"gateway         202 x {gateway.answered[202]}, 503 x {gateway.answered[503]}", highlight=False
        )
        self.console.print(f"router          asked before each pull: {asked}", highlight=False, soft_wrap=True)
        self.console.print(
            f"messages        {router.done} done, {router.redelivered} redelivered, longest queue {self.largest}",
            highlight=False,
            soft_wrap=True,
        )
        if missing or not finished:
            self.console.print(f"[red]failed:[/] missing {', '.join(missing) or 'the return to inactive'}")
            return False
        self.console.print("[green]the gateway was told in time, and told when it was over[/]")
        return True


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def tell(server: Any, console: Console) -> bool:
    """Run the sidecar as a process of its own against `server`, and tell the story to its end."""
    with tempfile.TemporaryDirectory(prefix="nats-backpressure-demo-") as where:
        config = Path(where) / "config.yaml"
        config.write_text("http: {host: 127.0.0.1, port: 0}\nlog: {level: warning}\n")
        environment = {k: v for k, v in os.environ.items() if not k.startswith("NATS_")} | {"NATS_URL": server.url}
        arguments = ("-m", "sidecar", "run", "--config", str(config))
        sidecar = await asyncio.create_subprocess_exec(sys.executable, *arguments, env=environment)
        try:
            return await Story(server.url, console).tell()
        finally:
            if sidecar.returncode is None:
                sidecar.terminate()
            code = await sidecar.wait()
            if code:
                console.print(f"[red]the sidecar ended with exit code {code}[/]")
