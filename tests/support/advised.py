"""What a remedy advises to type: a line that begins with a command, or has one in backticks, is that whole command."""

from __future__ import annotations

import re
import shlex

from click.testing import CliRunner

from nats_backpressure.cli import main

NATS = re.compile(
    r"nats (stream (add|edit|info|rm|report|cluster peer-remove)|consumer (edit|ls)|kv (add|del)"
    r"|server report jetstream|micro|account info)( .+)?"
)
OPTION = re.compile(r"--[a-z-]+(=\S+)?")


def commands_in(remedy: str) -> list[str]:
    quoted = re.findall(r"`((?:nats|nats-backpressure) [^`]*)`", remedy)
    return [remedy, *quoted] if re.match(r"(nats|nats-backpressure) ", remedy) else quoted


def check_commands(remedy: str) -> None:
    """Fails where a command could not be typed as it stands."""
    for command in commands_in(remedy):
        words = shlex.split(command)
        bare = [word.strip("'\"") for word in shlex.split(command, posix=False)]
        assert not any(word in ("or", "and", "...", ";") or word.endswith((";", ",", ":")) for word in bare), command
        if words[0] == "nats":
            _check_nats(command, words)
        else:
            _check_own(words[1:])


def _check_nats(command: str, words: list[str]) -> None:
    assert NATS.fullmatch(command), command
    options = [word for word in words if word.startswith("-")]
    assert all(OPTION.fullmatch(option) for option in options), command
    assert words[2] != "edit" or options, f"edits nothing: {command}"


def _check_own(words: list[str]) -> None:
    """Its options are parsed, and nothing is opened or sent."""
    ran = CliRunner().invoke(main, [*words, "--help"])
    assert ran.exit_code == 0, ran.output
