"""Runs the benchmarks one after the other, prints their table, and writes results.json: `make bench`.

    python -m benchmarks [NAME ...] [--size full|quick|tiny] [--out FILE]

`make docs` then writes the page and the plots from that file. Each benchmark is a module with `main(size)` (see
figures.py) and runs in a process of its own. Names given: only these run, and their results replace those in the file;
the others stay, each with its own date, load and commit.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import msgspec

from benchmarks import page
from benchmarks.figures import Figure, Size
from benchmarks.results import BEFORE, RESULTS, Results, Run, commit, kept_runs, load, machine, store, utc_now
from nats_backpressure.adapters.embedded_server import end_with_parent

ON_REQUEST = ("replicas",)
"""Only where it is named: it takes 20 minutes."""
NAMES = (
    *("decisions", "detection", "standing", "reading", "scrape", "judging", "sharing", "memory", "gate"),
    *(*ON_REQUEST, "scale"),
)
"""In the order of the table. Not here: `overload` (10 minutes, `make bench-overload`), `adaptive` and `admit`, which
print tables of their own."""
STOP_WITHIN = 20.0
"""Seconds that an interrupted benchmark has to stop its processes."""


def run(name: str, size: Size) -> Run | None:
    """One benchmark in a process of its own; None if it fails, which is printed."""
    print(f"{name} ...", file=sys.stderr, flush=True)
    started, at, average, measured = time.monotonic(), utc_now(), os.getloadavg(), commit()
    with tempfile.TemporaryDirectory(prefix="nats-backpressure-bench-") as directory:
        out = Path(directory) / "figures.json"
        command = [sys.executable, "-m", f"benchmarks.{name}", "--size", size, "--json", str(out)]
        code = _wait(subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=end_with_parent))
        if code or not out.exists():
            print(f"{name} FAILED: exit code {code}; run it alone: python -m benchmarks.{name}", file=sys.stderr)
            return None
        figures = msgspec.json.decode(out.read_bytes(), type=dict[str, Figure])
    return Run(at, average, round(time.monotonic() - started, 1), figures, measured)


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The exit code. On Ctrl-C or SIGTERM the benchmark gets STOP_WITHIN to stop what it started."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.terminate()
        try:
            process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            process.kill()
        raise


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which to run, of {', '.join(NAMES)}; default: all but {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--size", choices=get_args(Size), default="full")
    parser.add_argument("--out", type=Path, help="the file to write; default: benchmarks/results.json for size full")
    wanted = parser.parse_args()
    if unknown := set(wanted.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}")
    out = wanted.out or (RESULTS if wanted.size == "full" else None)
    kept = load(out) if out is not None else None
    runs = kept_runs(kept) if kept is not None and kept.size == wanted.size else {}
    if not wanted.names:
        runs = {name: run for name, run in runs.items() if name in ON_REQUEST}
    failed = False
    results = Results(wanted.size, machine(), runs)
    for name in wanted.names or [name for name in NAMES if name not in ON_REQUEST]:
        result = run(name, wanted.size)
        failed = failed or result is None
        if result is not None:
            runs[name] = result
        results = Results(wanted.size, results.machine, {each: runs[each] for each in NAMES if each in runs})
        if out is not None:
            store(results, out)
    print(page.table_text(results, load(BEFORE)))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
