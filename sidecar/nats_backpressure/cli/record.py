"""`record`: writes what the replicas of an installation read to a file, for `replay`. It only listens."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from msgspec.structs import replace

from nats_backpressure.cli.options import Target, connection_flags, connection_given
from nats_backpressure.cli.output import print_note
from nats_backpressure.cli.settings_file import EX_CONFIG, load_or_exit
from nats_backpressure.config.settings import Settings

if TYPE_CHECKING:
    from nats_backpressure.recording.recorder import Recorder, RecordingFile
    from nats_backpressure.runtime.clock import SystemClock


@click.command(short_help="Record what running replicas read.")
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    metavar="FILE",
    envvar="BACKPRESSURE_CONFIG",
    help="Settings file of the sidecars: its policies and `watch` are recorded too, and its `nats` is the connection "
    "unless an option or context gives one.  [default: $BACKPRESSURE_CONFIG, else none; `replay` then needs it]",
)
@click.option(
    "--limit",
    type=click.IntRange(1),
    metavar="MIB",
    default=1024,
    show_default=True,
    help="Size in MiB at which FILE is renamed to FILE.1 (an older FILE.1 is replaced) and a new one starts.",
)
@connection_flags
def record(target: Target, file: Path, config: Path | None, limit: int) -> None:
    """Write what the replicas of an installation read to FILE, for `replay`, until Ctrl-C or SIGTERM.

    It only listens: it publishes and requests nothing, and needs no right but to subscribe to NAME.v1.internal.>.
    Replicas send each other what they read; a replica alone sends nothing (use its `run --record`). A stream is in it
    from the next message on that shows all of it, after `observe.max_interval_ms` or a little more while nothing is
    lost; what began before (a stall, a hold, an alert) begins there in a replay. A recording that exists is continued.

    Exits with 0 when it is stopped, with 78 if the settings or FILE cannot be used, and with 1 if
    FILE cannot be written any further.
    """
    settings = load_or_exit(config) if config else Settings(name=target.names.name)
    if settings.name != target.names.name:
        raise click.UsageError(f"{config} is of the installation {settings.name}: give --name {settings.name}")
    if config and not connection_given():
        target = replace(target, nats=settings.nats)
    recording = _open(file, limit << 20)
    from nats_backpressure.adapters import logs

    logs.set_up("warning", "auto")
    if not asyncio.run(_record(target, settings, recording, with_policies=config is not None)):
        click.echo(f"{file}: cannot be written any further; what was written can be used", err=True)
        sys.exit(1)


def _open(path: Path, limit: int) -> RecordingFile:
    """Exits with 78 where the file cannot be written, or is something else than a recording."""
    from nats_backpressure.recording.format import HeaderLine, read_lines
    from nats_backpressure.recording.recorder import RecordingFile

    try:
        if path.exists() and path.stat().st_size:
            with path.open("rb") as file:
                if not isinstance(next(read_lines(file))[1], HeaderLine):
                    click.echo(f"{path}: exists, and is no recording: it is left as it is", err=True)
                    sys.exit(EX_CONFIG)
        return RecordingFile(path, limit)
    except OSError as error:
        click.echo(f"{path}: cannot be written: {(error.strerror or str(error)).lower()}", err=True)
        sys.exit(EX_CONFIG)


async def _record(target: Target, settings: Settings, recording: RecordingFile, *, with_policies: bool) -> bool:
    """Record until a signal; returns whether all could be written."""
    from nats_backpressure.recording.recorder import Recorder
    from nats_backpressure.runtime.clock import SystemClock

    clock, stop = SystemClock(), asyncio.Event()
    for sign in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(sign, stop.set)
    recorder = Recorder(clock, recording, settings, lambda what: None)
    if with_policies:
        _record_policies(recorder, settings)
    print_note(f"recording what is read to {recording.path}; end it with Ctrl-C")
    await _listen(target, clock, recorder, stop)
    return not recorder.failed


def _record_policies(recorder: Recorder, settings: Settings) -> None:
    from nats_backpressure.policy.active import ActivePolicies

    policies = ActivePolicies(settings.policies, settings.policy_guard, settings.trust_consumer_metadata)
    recorder.record_policies(policies.sources)


async def _listen(target: Target, clock: SystemClock, recorder: Recorder, stop: asyncio.Event) -> None:
    from nats_backpressure.adapters.nats.connection import Connection
    from nats_backpressure.adapters.nats.replica_channel import NatsReplicaChannel
    from nats_backpressure.recording.broadcast_listener import SILENT_FOR, BroadcastListener
    from nats_backpressure.runtime.tasks import cancel_and_wait

    def on_silence() -> None:
        if not connection.connected:
            print_note(f"not connected to {', '.join(target.nats.shown_servers)}; it keeps trying")
            return
        print_note(
            f"nothing was read for {SILENT_FOR:.0f} s, as far as is sent here. Two or more replicas must run, with "
            f"--name {target.names.name} and `sharing.enabled`; this user must be allowed to subscribe to "
            f"{target.names.internal}.>"
        )

    connection = Connection(
        f"{target.names.name}/record",
        target.nats,
        clock,
        set_up=lambda client: channel.subscribe(client),
        count=lambda kind: None,
        on_rebuild=lambda: None,
    )
    channel = NatsReplicaChannel(target.names, lambda: connection.client, connection.listening_time, lambda what: None)
    listener = BroadcastListener(clock, channel, recorder, on_silence)
    connecting = asyncio.create_task(connection.run())
    try:
        await listener.run(stop)
    finally:
        await cancel_and_wait([connecting])
    after = f"; it has all of them from {listener.complete_after:.1f} s after its start on" if listener.newest else ""
    print_note(f"recorded {listener.readings:,} readings of {len(listener.newest):,} streams{after}")
