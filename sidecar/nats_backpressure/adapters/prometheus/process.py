"""What the operating system and Python report of this process, under the names that all exporters use for it."""

from __future__ import annotations

import gc
import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

from nats_backpressure.adapters.prometheus.definitions import PROCESS
from nats_backpressure.adapters.prometheus.exposition import Labels, Series, header

PROC = Path("/proc")
TICKS, PAGE = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")


def process_text() -> Iterator[str]:
    """The lines of all these metrics, one piece each; without /proc only those of Python."""
    values = _of_the_system() | _of_the_garbage_collection()
    for name, (kind, text, labels) in PROCESS.items():
        if series := values.get(name):
            line = Series(name, labels).line
            yield header(name, kind, text) + "".join(line(each, value) for each, value in series.items())


def _of_the_system() -> dict[str, dict[Labels, float]]:
    try:
        fields = (PROC / "self/stat").read_text().rpartition(")")[2].split()
        booted = next(line for line in (PROC / "stat").read_text().splitlines() if line.startswith("btime "))
        files = len(os.listdir(PROC / "self/fd"))
    except (OSError, StopIteration):
        return {}
    # The fields after the name of the program, which is the second one; see proc(5).
    user, system, started, size, pages = (int(fields[at]) for at in (11, 12, 19, 20, 21))
    most_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    values = {
        "process_cpu_seconds_total": (user + system) / TICKS,
        "process_start_time_seconds": int(booted.split()[1]) + started / TICKS,
        "process_resident_memory_bytes": pages * PAGE,
        "process_virtual_memory_bytes": size,
        "process_open_fds": files,
        "process_max_fds": math.inf if most_files == resource.RLIM_INFINITY else most_files,
    }
    return {name: {(): float(value)} for name, value in values.items()}


def _of_the_garbage_collection() -> dict[str, dict[Labels, float]]:
    facts = {
        "python_gc_collections_total": "collections",
        "python_gc_objects_collected_total": "collected",
        "python_gc_objects_uncollectable_total": "uncollectable",
    }
    stats = [(str(n), each) for n, each in enumerate(gc.get_stats())]
    return {name: {(n,): float(each[fact]) for n, each in stats} for name, fact in facts.items()}
