"""The help of every command fits on its screen: no line in a list of commands is cut."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from nats_backpressure.cli import main


@pytest.mark.parametrize("group", ["", "policy", "override", "decide"])
def test_the_list_of_commands_is_not_cut(group: str) -> None:
    output = CliRunner().invoke(main, [*group.split(), "--help"]).stdout
    assert "Commands:" in output and "..." not in output.partition("Commands:")[2]
