"""Decides which consumers of a stream are still members, from one reply of the server.

A member is removed at once where the server returned it and it does not count, or counts under other subjects. It is
absent where the server returned all consumers without it, and gone once it was absent twice, GONE_AFTER apart. One
that exists and could not be read is neither: it stays, and has no influence on the others.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from nats_backpressure.core import watch_filter
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.values import ConsumerKey

GONE_AFTER = 1.0
"""Seconds between two replies that both lack a consumer, after which it is gone."""
ROUNDING = 0.05
"""Seconds by which the times of two replies may be wrong where another replica asked for one of them: all replicas are
to come to the same."""

Pair = tuple[ConsumerKey, str]
"""A consumer under one of its subjects."""


class ReadState(Struct, frozen=True):
    """What one reply of the server shows about a stream's consumers."""

    subjects_of: Mapping[ConsumerKey, tuple[str, ...]]
    """The consumers in the reply, with the subjects under which they count: none where they do not."""
    unread: Collection[str] = ()
    """Names of consumers that exist and could not be read."""
    complete: bool = False
    """Whether the stream has no other consumers."""
    asked_at: float | None = None
    """Monotonic time at which it was asked for; None: a moment ago."""


NOTHING_READ = ReadState({})


class Membership(Struct, frozen=True):
    """What one reply means for the members of a stream; those in no field count and were read."""

    removed: tuple[Pair, ...]
    """No longer members: the server returned them as such, or `watch` does not match their names."""
    absent: frozenset[ConsumerKey]
    unread: frozenset[ConsumerKey]
    """Unknown: they stay members, and should be read one by one."""


def membership(
    members: Iterable[Pair], shown: ReadState, watch: Sequence[WatchEntry], ours: Collection[str]
) -> Membership:
    """What `shown` means for `members`. `ours`: the names of our own streams."""
    out: list[Pair] = []
    absent: set[ConsumerKey] = set()
    silent: set[ConsumerKey] = set()
    for key, subject in members:
        if (under := shown.subjects_of.get(key)) is not None:
            if subject not in under:
                out.append((key, subject))
        elif not watch_filter.is_name_watched(key, watch, ours):
            out.append((key, subject))
        elif shown.complete and key.consumer not in shown.unread:
            absent.add(key)
        else:
            silent.add(key)
    return Membership(tuple(out), frozenset(absent), frozenset(silent))


def confirmed_gone(
    since: Mapping[ConsumerKey, float], absent: Collection[ConsumerKey], there: Collection[ConsumerKey], now: float
) -> tuple[dict[ConsumerKey, float], list[ConsumerKey]]:
    """Since when each consumer is absent, and which are gone. `there`: those that exist; `now`: monotonic time at
    which that was asked for."""
    absent_since = {key: at for key, at in since.items() if key not in there}
    for key in absent:
        absent_since.setdefault(key, now)
    sure = [key for key in absent if now - absent_since[key] >= GONE_AFTER - ROUNDING]
    return {key: at for key, at in absent_since.items() if key not in sure}, sure
