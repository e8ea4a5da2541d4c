"""NATS subject patterns and name globs: does one cover the other, which is the more specific, how one is spelt as a tail."""

from __future__ import annotations

from functools import lru_cache

_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_/.")


@lru_cache(maxsize=65_536)
def encode(subject: str) -> str:
    """A subject as the tail of one of our subjects, or a KV key: each byte outside `A-Za-z0-9-_/` of a token as `=XX`."""
    return "".join(chr(b) if b in _PLAIN else f"={b:02X}" for b in subject.encode())


def covers(pattern: str, subject: str) -> bool:
    """Whether every subject that `subject` (literal or pattern) can match is matched by `pattern` too."""
    theirs = subject.split(".")
    for i, token in enumerate(tokens := pattern.split(".")):
        if token == ">":
            return len(theirs) > i
        if i >= len(theirs) or theirs[i] == ">" or (token != "*" and token != theirs[i]):
            return False
    return len(tokens) == len(theirs)


def specificity(pattern: str) -> tuple[int, ...]:
    """A sort key, smaller is more specific: token by token, a literal before `*` before `>`."""
    return tuple({"*": 1, ">": 2}.get(token, 0) for token in pattern.split("."))


def glob(pattern: str, name: str) -> bool:
    """Whether `name` matches `pattern`, in which `*` stands for any run of characters. Linear-time with backtracking to the last star."""
    p = n = 0
    star, mark = -1, 0
    while n < len(name):
        if p < len(pattern) and pattern[p] == "*":
            star, mark, p = p, n, p + 1
        elif p < len(pattern) and pattern[p] == name[n]:
            p, n = p + 1, n + 1
        elif star >= 0:
            mark += 1
            p, n = star + 1, mark
        else:
            return False
    return all(c == "*" for c in pattern[p:])
