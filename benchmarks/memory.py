"""Measures whether memory stays flat: an hour's worth of samples of 10,000 consumers, at full speed.

In this process: an hour of waiting is no benchmark, so the clock is moved, and the samples go through the intake and
the registry of the service. Every tenth consumer moves in each reading; the others are idle. The memory of the real
process over its window is in `standing`.
"""

from __future__ import annotations

import gc

from msgspec import Struct

from benchmarks.figures import Figure, Figures, Size, command, progress
from benchmarks.judging import World, busy, rss, spread
from nats_backpressure.core.model.samples import Sample

HOUR = 3600.0
MOVING = 10
"""One consumer in so many moves."""


class Scale(Struct, frozen=True):
    consumers: int
    streams: int
    every: float
    """Seconds of the moved clock between two readings of all."""


SCALES: dict[Size, Scale] = {
    "full": Scale(10_000, 20, 20.0),
    "quick": Scale(1000, 4, 30.0),
    "tiny": Scale(20, 2, 600.0),
}


def change(sample: Sample, turn: int) -> Sample:
    return busy(sample, turn) if int(sample.key.consumer[1:]) % MOVING == 0 else sample


def main(size: Size = "full") -> Figures:
    scale = SCALES[size]
    gc.collect()
    before = rss()
    world = World(spread(scale.consumers, scale.streams))
    readings = round(HOUR / scale.every)
    mib: dict[str, float] = {}
    for n in range(1, readings + 1):
        world.read(change, n, after=scale.every)
        if n % (readings // 6) == 0:
            gc.collect()
            minute = round(n * scale.every / 60)
            mib[f"minute {minute}"] = rss() / 2**20
            progress(f"minute {minute} of an hour: {mib[f'minute {minute}']:.0f} MiB")
    last, middle = list(mib.values())[-1], list(mib.values())[len(mib) // 2 - 1]
    name = f"an hour of samples of {scale.consumers:,}"
    return {
        f"{name}: memory at its end": Figure(
            last, "MiB", middle, "after half an hour", 1.02, aim_of_ratio=True, spread=mib
        ),
        f"{name}: memory per consumer": Figure((1024 * last - before / 1024) / scale.consumers, "KiB"),
    }


if __name__ == "__main__":
    command(main)
