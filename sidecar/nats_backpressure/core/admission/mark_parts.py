"""How the mark of in flight is divided among those that want messages. Pure."""

from __future__ import annotations

from msgspec import Struct


class Parts(Struct, frozen=True):
    """What each requester may hold of a target."""

    target: int
    level: int
    """The most that each may hold."""
    more: frozenset[str] = frozenset()
    """Those that may hold one more, as the target is no multiple of their number."""
    fit: bool = False
    """Whether all parts together are no more than the target."""

    def of(self, requester: str) -> int:
        return self.level + (requester in self.more)


def parts_of(target: int, wants: dict[str, int]) -> Parts:
    """The parts of all requesters, by what each wants; what the level leaves goes to the first of them by name, which
    are the same in all replicas."""
    level = level_of(target, [*wants.values()])
    spare = target - sum(min(want, level) for want in wants.values())
    more = sorted(name for name, want in wants.items() if want > level)[: max(0, spare)]
    return Parts(target, level, frozenset(more), spare >= 0)


def level_of(target: int, wants: list[int]) -> int:
    """The most that each may have of the target, at least 1: what one does not want goes to the others (max-min
    fairness, Bertsekas and Gallager, Data Networks, 6.5)."""
    spare = target
    for place, want in enumerate(sorted(wants)):
        share = spare // (len(wants) - place)
        if want > share:
            return max(1, share)
        spare -= want
    return target
