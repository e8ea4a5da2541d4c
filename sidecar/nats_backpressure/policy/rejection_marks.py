"""The marks of refused policies of the bucket: by them each replica knows what is published already."""

from __future__ import annotations

from collections.abc import Iterable

UNREAD = ":unread"
"""Ends the mark of a value that was not read, as the bucket is too full."""
LONGEST_REVISION = 20
"""Digits of a 64-bit number; any program may publish a longer one."""


def bucket_mark(bucket: str, revision: int, fits: bool) -> str:
    """`bucket`: when it was created, since another one of the same name begins again with its revisions."""
    return f"{bucket}:{revision}" + ("" if fits else UNREAD)


def is_of_revision(mark: str, revision: int) -> bool:
    """Whether the mark of a refused policy is that of this revision of a key; metadata has marks of its own."""
    return mark.removesuffix(UNREAD).endswith(f":{revision}")


def is_published(mark: str, published: Iterable[str]) -> bool:
    """Whether this refusal needs no event beside those with these marks, of one key: it has one, or its value was
    replaced before a replica that was late could report it."""
    bucket, place = _place(mark)
    return any(mark == other or (_place(other)[0] == bucket != "" and place < _place(other)[1]) for other in published)


def _place(mark: str) -> tuple[str, tuple[int, bool]]:
    """The bucket, and what orders its marks; no bucket where it is a mark of something else."""
    bucket, _, revision = mark.removesuffix(UNREAD).rpartition(":")
    if not revision.isdecimal() or len(revision) > LONGEST_REVISION:
        return "", (0, False)
    return bucket, (int(revision), not mark.endswith(UNREAD))
