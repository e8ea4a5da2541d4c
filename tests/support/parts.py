"""What a test needs from the machine, and what happens if it is missing."""

import shutil

import pytest

NOT_WITH_THIS_SERVER = "not with this server"


def need_command(name: str) -> str:
    """The path of a program, or a skip that names it; under CI=true every such skip is a failure (conftest)."""
    path = shutil.which(name)
    if path is None:
        pytest.skip(f"missing part: {name}")
    return path


def need_server(version: tuple[int, ...], least: tuple[int, ...], why: str) -> None:
    """Leave a test out on servers older than `least`: the one skip that CI accepts."""
    if version < least:
        pytest.skip(f"{NOT_WITH_THIS_SERVER}: {why} needs {'.'.join(map(str, least))}")
