"""Loads the settings file for a command, or exits with 78 and one line for each mistake."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from nats_backpressure.config.settings import BadSettings, Settings, load_settings, parse_settings
from nats_backpressure.config.yaml_source import LARGEST_FILE

EX_CONFIG = 78
"""The exit code of sysexits.h for a configuration that cannot be used."""
STANDARD_INPUT = Path("-")


def load_or_exit(path: Path | None) -> Settings:
    """The settings of a file; `-`: of standard input."""
    if path == STANDARD_INPUT:
        with click.open_file("-", "rb") as given:
            data = given.read(LARGEST_FILE + 1)
        return settings_or_exit(lambda: parse_settings(data, os.environ, str(path)))
    return settings_or_exit(lambda: load_settings(path, os.environ))


def settings_or_exit(load: Callable[[], Settings]) -> Settings:
    try:
        return load()
    except BadSettings as bad:
        for line in bad.lines:
            click.echo(line, err=True)
        sys.exit(EX_CONFIG)
