"""A program that forks while it uses a ThreadedClient, and ends without closing it. What it saw it prints as JSON."""

from __future__ import annotations

import json
import os
import threading
import time

from nats_backpressure.client import ThreadedClient

SUBJECT = os.environ["SUBJECT"]
CHILDREN = 3
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
    time.sleep(0.3)  # long enough to notice a connection that a child has closed
    show("parent")
    raise SystemExit(max(codes))


main()
