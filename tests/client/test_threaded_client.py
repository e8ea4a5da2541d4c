"""`admit` from threads, in a process without an event loop: as the client's own, beside a real server."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from nats_backpressure.client import BackpressureClient, ThreadedClient, own_connection, threaded_client
from nats_backpressure.client.integrations.prometheus import StatsCollector
from tests.simulations.state_bucket import SUBJECT, States, active, state, wait_until
from tests.support.servers import NatsServer

Make = Callable[..., ThreadedClient]
PROGRAM = Path(__file__).with_name("forking_program.py")
BOTH_USERS = "authorization { users: [{user: gateway, password: right}, {user: test, password: test}] }"
OTHER_PASSWORD = BOTH_USERS.replace("right", "other")


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy machine a thread may get no processor for as long as `admit` waits."""
    monkeypatch.setattr(threaded_client, "LOCK_SECONDS", 60.0)


@pytest.fixture
def threaded(server: NatsServer) -> Iterator[Make]:
    """Makes clients that connect to the server, and closes them."""
    clients = []

    def make(subjects: Any = (SUBJECT,), servers: str = server.url, **options: Any) -> ThreadedClient:
        clients.append(ThreadedClient(servers, subjects, **{"reconnect_time_wait": 0.05, **options}))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


async def admits(client: ThreadedClient, expected: bool, subject: str = SUBJECT) -> None:
    await wait_until(lambda: client.admit(subject).admitted is expected, f"admitted {expected}")


async def test_it_refuses_while_the_subject_is_overloaded_in_every_thread(threaded: Make, states: States) -> None:
    await states.put(active())
    client = threaded()
    assert client.start(wait=10)
    with ThreadPoolExecutor(4) as threads:
        refused = list(threads.map(client.admit, [SUBJECT] * 100))
        assert not any(refused) and {one.retry_after_seconds for one in refused} == {30}
        assert all(threads.map(client.admit, [SUBJECT] * 20, ["critical"] * 20))
    await states.put(state())
    await admits(client, True)
    assert client.stats.shed >= 100 and client.name == "backpressure"


async def test_the_first_request_starts_it(threaded: Make, states: States) -> None:
    await states.put(active())
    client = threaded(SUBJECT)
    assert client._thread is None
    assert client.admit(SUBJECT), "nothing is known yet"
    await admits(client, False)


async def test_while_nats_is_away_it_admits_and_then_it_follows(
    server: NatsServer, threaded: Make, states: States
) -> None:
    await states.put(active())
    await server.stop()
    client = threaded()
    assert not client.start(wait=0.1) and client.admit(SUBJECT)
    await server.start()
    await admits(client, False)


async def test_a_server_that_stands_still_holds_no_request_up(
    server: NatsServer, threaded: Make, states: States
) -> None:
    await states.put(active())
    client = threaded()
    assert client.start(wait=10)
    server.pause()
    try:
        assert not any(client.admit(SUBJECT) for _ in range(100))
    finally:
        server.resume()


@pytest.mark.slow
async def test_a_connection_that_nats_py_gives_up_is_made_again(
    start_server: Callable[..., Any], threaded: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(own_connection, "RETRY_SECONDS", 0.1)
    monkeypatch.setattr(own_connection, "CLOSED_POLL", 0.02)
    server: NatsServer = await start_server(BOTH_USERS)
    nc = Client()
    await nc.connect(server.url, user="test", password="test")
    states = States(nc)
    await states.make()
    await states.put(active())
    client = threaded(servers=server.url, user="gateway", password="right")
    assert client.start(wait=10)
    server.reload(OTHER_PASSWORD)
    await wait_until(lambda: any("Authorization" in record.message for record in caplog.records), "a refused login")
    server.reload(BOTH_USERS)
    await states.put(state())
    await admits(client, True)
    await states.put(active())
    await admits(client, False)
    await nc.close()


async def test_the_counts_are_exact_whatever_the_threads_do(server: NatsServer, threaded: Make, states: States) -> None:
    """New subjects, states, and reports that go through all subjects, all the time."""
    client = threaded(["orders.>"], make=partial(BackpressureClient, report_every=0.05, max_subjects=100_000))
    await states.put(state("orders.*"))
    assert client.start(wait=10)
    threads, each = 4, 2000

    def ask(thread: int) -> None:
        for n in range(each):
            client.admit(f"orders.{thread}-{n}")

    with ThreadPoolExecutor(threads) as pool:
        done = [pool.submit(ask, thread) for thread in range(threads)]
        for n in range(20):
            await states.put(state(f"orders.{n % 4}-{n}"))
    for one in done:
        one.result()
    assert client.stats.admitted == threads * each
    reports = client.stats.reports
    await wait_until(lambda: bool(client.admit("orders.1") and client.stats.reports > reports), "one more report")


async def test_on_count_may_ask_again(threaded: Make) -> None:
    counted: list[str] = []

    def on_count(name: str, subject: str) -> None:
        counted.append(name)
        if len(counted) == 1:
            client.admit("other")

    client = threaded(make=partial(BackpressureClient, on_count=on_count))
    client.admit(SUBJECT)
    assert counted.count("admitted") == 2


class Interrupted(Exception):
    """Raised by the handler of a signal, as Celery's SoftTimeLimitExceeded is."""


@pytest.mark.parametrize("ends", [False, True], ids=["admit", "close"])
@pytest.mark.parametrize("where", ["acquire", "release"])
async def test_what_a_signal_handler_raises_in_admit_leaves_no_lock_held_for_good(
    where: str, ends: bool, threaded: Make, states: States
) -> None:
    await states.put(active())
    client = threaded()
    await admits(client, False)
    lock = client._lock

    class Interrupting:
        """The lock; the handler runs right after it was acquired, or before it is released."""

        def acquire(self, timeout: float) -> bool:
            acquired = lock.acquire(timeout=timeout)
            if where == "acquire":
                raise Interrupted
            return acquired

        def release(self) -> None:
            client._lock = lock
            raise Interrupted

        def _is_owned(self) -> bool:
            return where == "release" and lock._is_owned()  # type: ignore[attr-defined]

    client._lock = Interrupting()  # type: ignore[assignment]
    with pytest.raises(Interrupted):
        client.admit(SUBJECT)
    client._lock = lock
    assert lock._is_owned()  # type: ignore[attr-defined]
    if ends:
        client.close()
    else:
        assert not client.admit(SUBJECT)
        await states.put(state())
        await admits(client, True)
    assert not lock._is_owned()  # type: ignore[attr-defined]


@pytest.mark.parametrize("before", [True, False], ids=["before it runs", "when it runs"])
async def test_what_a_signal_handler_raises_in_the_first_admit_starts_one_thread_all_the_same(
    before: bool, threaded: Make, states: States, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(active())
    client, start = threaded(), threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if not before:
            start(thread)
        raise Interrupted

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", interrupted)
        for _ in range(2):
            with pytest.raises(Interrupted):
                client.admit(SUBJECT)
    await admits(client, False)
    assert [thread.name for thread in threading.enumerate()].count("backpressure") == 1
    client.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "backpressure"]
    assert not caplog.records


async def test_the_loop_may_ask_too(threaded: Make, states: States) -> None:
    """As `on_count` and handlers of log lines do: the lock stays the loop's."""
    owned: list[bool] = []

    def on_count(name: str, subject: str) -> None:
        if name == "reports" and not owned:
            client.admit(SUBJECT)
            owned.append(client._lock._is_owned())  # type: ignore[attr-defined]

    client = threaded(make=partial(BackpressureClient, on_count=on_count))
    client.start()
    assert client._thread is not None
    client._thread._loop.call_soon_threadsafe(client.stats.count, "reports")
    await wait_until(lambda: bool(client.admit(SUBJECT) and owned), "the count")
    assert owned == [True]


async def test_a_closed_one_ages_and_is_not_started_again(threaded: Make, states: States) -> None:
    await states.put(active())
    with threaded() as client:
        await admits(client, False)
        thread = client._thread
    assert thread is not None and not thread._thread.is_alive()
    assert not client.admit(SUBJECT), "for a while"
    client.close()
    with pytest.raises(RuntimeError, match="closed"):
        client.start()
    never_started = threaded()
    never_started.close()
    assert never_started.admit(SUBJECT)


@pytest.mark.parametrize("after", [0.0, 0.0005, 0.001, 0.002, 0.005])
async def test_it_ends_whatever_its_connection_is_at(threaded: Make, after: float) -> None:
    client = threaded()
    client.start()
    await asyncio.sleep(after)
    thread = client._thread
    client.close()
    assert thread is not None and not thread._thread.is_alive()


@pytest.mark.parametrize(
    "error", [RuntimeError("can't start new thread"), OSError(24, "Too many open files")], ids=repr
)
async def test_in_a_process_that_may_have_no_more_threads_it_admits_and_tries_again(
    error: Exception, threaded: Make, states: States, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await states.put(active())
    monkeypatch.setattr(threaded_client, "RETRY_SECONDS", 0.0)
    client = threaded()

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        if isinstance(error, RuntimeError):
            patch.setattr(threading.Thread, "start", fail)
        else:
            patch.setattr(asyncio, "SelectorEventLoop", fail)
        assert client.admit(SUBJECT) and client.admit(SUBJECT)
        assert len(caplog.records) == 1
    await admits(client, False)


def test_a_thread_that_hangs_holds_up_neither_requests_nor_the_end(
    threaded: Make, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(threaded_client, "CLOSE_TIMEOUT", 0.01)
    monkeypatch.setattr(threaded_client, "LOCK_SECONDS", 0.01)
    hangs, end = threading.Event(), threading.Event()

    def on_count(*_: str) -> None:
        hangs.set()
        end.wait(60)

    client = threaded(make=partial(BackpressureClient, on_count=on_count))
    client.start()
    thread = client._thread
    assert thread is not None
    thread._loop.call_soon_threadsafe(client.stats.count, "reports")
    assert hangs.wait(60)
    assert client.admit(SUBJECT) and client.admit(SUBJECT)
    assert client.stats.failed_open == 2 and client.stats.admitted == 0
    client.close()
    assert [("admit waited" in one.message, "did not end" in one.message) for one in caplog.records] == [(1, 0), (0, 1)]
    end.set()
    assert thread.stop(60)


def test_the_fixed_one_has_no_thread_and_decides_the_same_in_all() -> None:
    with ThreadedClient.fixed("reject", retry_after_seconds=7) as client, ThreadPoolExecutor(2) as threads:
        assert client.start()
        assert {one.retry_after_seconds for one in threads.map(client.admit, ["a", "b"])} == {7}
        assert client._thread is None
    some = ThreadedClient.fixed("throttle", admit_ratio=0.25)
    assert sum(bool(some.admit("a")) for _ in range(100)) == pytest.approx(25, abs=1)
    samples = [sample for family in StatsCollector(some).collect() for sample in family.samples]
    assert {"installation": "backpressure", "count": "admitted"} in [sample.labels for sample in samples]


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        ({"servers": ""}, ValueError),
        ({"servers": []}, ValueError),
        ({"servers": "s", "subjects": ["a b"]}, ValueError),
        ({"servers": "s", "pasword": "x"}, TypeError),
        ({"servers": "s", "make": partial(BackpressureClient, name="a b")}, ValueError),
    ],
    ids=str,
)
def test_what_cannot_be_used_is_refused(wrong: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        ThreadedClient(**wrong)


@pytest.mark.slow
async def test_each_process_that_is_forked_has_a_connection_of_its_own(server: NatsServer, states: States) -> None:
    """Made, started and used before the fork, and with threads in `admit` while it is: as with gunicorn's preload."""
    await states.put(active())
    environment = {**os.environ, "NATS_URL": server.url, "SUBJECT": SUBJECT, "PYTHONWARNINGS": "ignore"}
    run = await asyncio.to_thread(
        subprocess.run, [sys.executable, PROGRAM], env=environment, capture_output=True, text=True, timeout=100
    )
    assert (run.returncode, run.stderr) == (0, "")
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    children = [line for line in lines if line["who"] == "child"]
    [parent] = [line for line in lines if line["who"] == "parent"]
    assert len(children) == 3 and all(child["refused"] and child["first_counts"] == 1 for child in children)
    assert parent["refused"] and parent["connected"] and parent["reconnects"] == 0
    assert len({line["port"] for line in lines}) == 4, "a connection each"


def test_the_loop_may_close_it_too(threaded: Make, caplog: pytest.LogCaptureFixture) -> None:
    """As `on_count` and handlers of log lines can."""
    client = threaded()
    client.start()
    thread = client._thread
    assert thread is not None
    thread._loop.call_soon_threadsafe(lambda: (client.close(), client.admit(SUBJECT)))
    assert thread.stop(60)
    assert not [record for record in caplog.records if record.exc_info]
