"""Keeps Python's garbage collection from holding the event loop: what has become old is not looked at again.

A full collection looks at every object: at 10,000 subjects it takes 90 ms, and at their changes it took place every two
seconds. Objects of ours do not need it: they are dropped when nothing refers to them, and cycles are found young.

What each sample makes is not looked at either (`gc=False`, also in pages of consumers): values that refer to values
only, never in a cycle. To look at them was an eighth of what a process at rest did.
"""

from __future__ import annotations

import gc
import sys

from nats_backpressure.runtime.ports import Clock

YOUNG, MIDDLE, NEVER = 2000, 2, 1_000_000
"""New objects, and collections of them, after which Python collects them, and those of middle age; the third is for
full collections, which are made here."""
EVERY = 1.0
"""Seconds after which what is not young any more is frozen. Until then it is so little that its collection takes
milliseconds."""
SOON, LONG = 0.1, 0.003
"""The same while the subjects are loaded, and after a collection that took so many seconds. Python counts new objects
less those that went: where new ones take the place of old ones, it lets any number become middle-aged (60,000 of them
took 27 ms)."""
SETTLE = 60.0
"""Seconds after the start in which the subjects are loaded: what grows then is no garbage."""
SHARE, BLOCKS = 1.25, 50_000
"""Growth of the allocated blocks of memory since then or the last full collection, and a number beside, at which there
may be garbage among what is frozen: then all of it is looked at once. (To count what is frozen takes 40 ms.)"""


async def keep_collections_short(clock: Clock) -> None:
    """Until cancelled; then it is as it was before."""
    before = gc.get_threshold()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    gc.collect()
    gc.freeze()
    settled_at, most, took = clock.now().mono + SETTLE, _limit(), 0.0
    try:
        while True:
            await clock.sleep(SOON if took > LONG or clock.mono() < settled_at else EVERY)
            started = clock.mono()
            gc.collect(1)
            gc.freeze()
            took = clock.mono() - started
            if clock.now().mono < settled_at:
                most = _limit()
            elif sys.getallocatedblocks() > most:
                gc.unfreeze()
                gc.collect()
                gc.freeze()
                most = _limit()
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def _limit() -> float:
    """Blocks of memory, an object has one or two."""
    return SHARE * sys.getallocatedblocks() + BLOCKS
