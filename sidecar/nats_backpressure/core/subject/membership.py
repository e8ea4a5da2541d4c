"""Which members of a stream still count, by what the server answered: nothing that is not read may hold a subject.

A member is out at once where the server answered for it and it does not count, or counts under other subjects. It is
absent where the server showed all there are without it, and gone once it was absent twice, GONE_AFTER apart. What
exists and could not be read is neither: it stays, and does not keep others in.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from msgspec import Struct

from nats_backpressure.core import watch_filter
from nats_backpressure.core.watch_filter import WatchEntry
from nats_backpressure.protocol.values import ConsumerKey

GONE_AFTER = 1.0
"""Seconds between two answers that both lack a consumer, after which it is gone."""

Pair = tuple[ConsumerKey, str]
"""A consumer under one of its subjects."""


class ReadState(Struct, frozen=True):
    """What one answer of the server says of a stream's consumers."""

    subjects_of: Mapping[ConsumerKey, tuple[str, ...]]
    """Those that it shows, with the subjects under which they count: none where they do not."""
    unread: Collection[str] = ()
    """Names of consumers that exist and could not be read."""
    complete: bool = False
    """Whether there are no others."""


NOTHING_READ = ReadState({})


class Membership(Struct, frozen=True):
    """The members of a stream after one answer; those in no list count and were read."""

    removed: tuple[Pair, ...]
    """They do not count there any more: the server answered for them, or `watch` leaves their names out."""
    absent: frozenset[ConsumerKey]
    unread: frozenset[ConsumerKey]
    """Of these nothing is known: they stay, and are best asked about one by one."""


def membership(
    members: Iterable[Pair], shown: ReadState, watch: Sequence[WatchEntry], ours: Collection[str]
) -> Membership:
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
    """From when each consumer has been absent, and which of them are now gone for sure. `there`: those that exist."""
    left = {key: at for key, at in since.items() if key not in there}
    for key in absent:
        left.setdefault(key, now)
    sure = [key for key in absent if now - left[key] >= GONE_AFTER]
    return {key: at for key, at in left.items() if key not in sure}, sure
