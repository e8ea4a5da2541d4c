"""Runs a program on a terminal of its own (a pty), of a size that the test chooses."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence

WITHIN = 30.0
"""Seconds for a program to print what is expected, on a busy machine."""


class Terminal:
    """`with Terminal(command) as terminal:` has a program that believes to be used by somebody."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], *, columns: int = 80, rows: int = 24, kind: str = "xterm"
    ) -> None:
        self._command, self._env = command, {**env, "TERM": kind}
        self._size = struct.pack("HHHH", rows, columns, 0, 0)
        self.output = ""

    def __enter__(self) -> Terminal:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, self._size)
        self._process = subprocess.Popen(
            self._command, env=self._env, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._ours)

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def until(self, text: str, times: int = 1) -> str:
        """All output so far, once this text is in it so often."""
        ends = time.monotonic() + WITHIN
        while self.output.count(text) < times:
            assert time.monotonic() < ends and self._read(0.5), f"{text!r} is not in {self.output!r}"
        return self.output

    def end(self) -> int:
        """Its exit code, once it has ended and all its output was read."""
        while self._read(WITHIN):
            pass
        return self._process.wait(WITHIN)

    def _read(self, seconds: float) -> bool:
        """Read for this long at most; returns False once the program has closed the terminal."""
        if not select.select([self._ours], [], [], seconds)[0]:
            return True
        try:
            data = os.read(self._ours, 65536)
        except OSError:  # Linux: nobody has the other end any more
            return False
        self.output += data.decode(errors="replace")
        return bool(data)
