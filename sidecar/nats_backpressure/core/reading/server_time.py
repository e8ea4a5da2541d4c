"""ServerTime: the time of day at the server, from the times in its replies and one's own monotonic clock."""

from __future__ import annotations


class ServerTime:
    """Replicas on machines whose clocks differ, or are set, all go by it. Each reply gives two bounds: the server took
    its time after the request was sent, and before the reply came. What is known is moved to the nearer one where it is
    outside; so the newest quick reply decides, and a slow one does no harm."""

    __slots__ = ("_ahead",)

    def __init__(self) -> None:
        self._ahead: float | None = None
        """By how many seconds it is ahead of the own monotonic clock; None before the first reply with a time."""

    def add(self, shown: float, asked_at: float, came_at: float) -> None:
        """A reply shows the server's time, in Unix seconds; it was asked for and came at these monotonic times."""
        least, most = shown - came_at, shown - asked_at
        ahead = (least + most) / 2 if self._ahead is None else self._ahead
        self._ahead = min(max(ahead, least), most)

    def wall(self, mono: float, own: float) -> float:
        """Unix seconds at the server at this monotonic time; `own`, the time of day on this machine, where no reply has
        shown a time yet (servers before 2.10 show none)."""
        return own if self._ahead is None else mono + self._ahead
