"""The marks of refused policies of the bucket: by them each replica knows what is published already."""

from __future__ import annotations

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


def is_replaced(mark: str, published: str) -> bool:
    """Whether the newest refusal that is published under a key is this one, or of a later value: then one that was late
    has nothing to report. Not for a record, which outlives a bucket that goes back to earlier revisions."""
    (bucket, place), (other, newest) = _place(mark), _place(published)
    return mark == published or (bucket == other != "" and place < newest)


def _place(mark: str) -> tuple[str, tuple[int, bool]]:
    """The bucket, and what orders its marks; no bucket where it is a mark of something else."""
    bucket, _, revision = mark.removesuffix(UNREAD).rpartition(":")
    if not revision.isdecimal() or len(revision) > LONGEST_REVISION:
        return "", (0, False)
    return bucket, (int(revision), not mark.endswith(UNREAD))
