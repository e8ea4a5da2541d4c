"""A program that forks while it uses a ThreadedClient, and ends without closing it. What it saw it prints as JSON."""

from __future__ import annotations

import asyncio
import json
import os
import threading

from nats_backpressure.client import ThreadedClient, threaded_client

SUBJECT = os.environ["SUBJECT"]
CHILDREN = 3
threaded_client.LOCK_SECONDS = 60.0  # on a busy machine a thread may get no processor for as long as `admit` waits
client = ThreadedClient(os.environ["NATS_URL"], [SUBJECT])


def show(who: str, first_counts: int = 0) -> None:
    """What this process has."""
    refused = not client.admit(SUBJECT)
    nc = client._nc
    port = nc._transport._io_writer.get_extra_info("sockname")[1]  # type: ignore[union-attr]
    facts = {
        "who": who,
        "refused": refused,
        "first_counts": first_counts,
        "connected": nc.is_connected,
        "reconnects": nc.stats["reconnects"],
        "port": port,
    }
    os.write(1, f"{json.dumps(facts)}\n".encode())


def hammer(stop: threading.Event) -> None:
    while not stop.is_set():
        client.admit(SUBJECT)


def fork() -> int:
    pid = os.fork()
    if pid == 0:
        client.admit(SUBJECT)
        first_counts = client.stats.admitted + client.stats.shed
        assert client.start(wait=30)
        show("child", first_counts)
        raise SystemExit  # an orderly end, as that of a gunicorn worker
    return pid


def main() -> None:
    assert client.start(wait=30)
    stop = threading.Event()
    threads = [threading.Thread(target=hammer, args=(stop,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    pids = [fork() for _ in range(CHILDREN)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    stop.set()
    thread = client._thread
    assert thread is not None
    asyncio.run_coroutine_threadsafe(client._nc.flush(30), thread._loop).result(60)  # a child has closed nothing
    show("parent")
    raise SystemExit(max(codes))


main()
