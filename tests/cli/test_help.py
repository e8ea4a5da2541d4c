"""The help of every command fits on its screen: no line in a list of commands is cut."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from nats_backpressure.cli import COMMANDS, Commands, main


@pytest.mark.parametrize("group", ["", "policy", "override", "decide"])
def test_the_list_of_commands_is_not_cut(group: str) -> None:
    output = CliRunner().invoke(main, [*group.split(), "--help"]).stdout
    assert "Commands:" in output and "..." not in output.partition("Commands:")[2]


WITHOUT_JSON = {"run", "record", "schema", "completion"}
"""They go on until they are stopped, or print one format anyway."""


def test_every_command_that_prints_a_result_prints_json() -> None:
    assert isinstance(main, Commands)
    commands: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = main.get_command(click.Context(main), name)
        assert command is not None
        inner = command.commands if isinstance(command, click.Group) else {"": command}
        commands |= {f"{name} {each}".strip(): one for each, one in inner.items()}
    without = {name for name, one in commands.items() if not {"output", "as_json"} <= {p.name for p in one.params}}
    assert without == WITHOUT_JSON
