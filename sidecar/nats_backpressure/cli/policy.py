"""`policy`: shows the policy in force for a subject, and writes or removes policies in the bucket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nats_backpressure.cli.bucket_list import changes
from nats_backpressure.cli.command import decode_reply, run_command
from nats_backpressure.cli.governed_subjects import find_governed, require_governed
from nats_backpressure.cli.options import Target, connection_flags, json_option, parse_subject
from nats_backpressure.cli.output import POLICY_HEADERS, policy_rows, print_json, print_note, print_table
from nats_backpressure.cli.policy_bucket import (
    PolicyKey,
    encode_policy,
    exit_with_problems,
    read_bucket,
    require_allowed,
    write_change,
)
from nats_backpressure.cli.policy_output import print_change, print_listed
from nats_backpressure.config import yaml_source
from nats_backpressure.config.settings import problem_line
from nats_backpressure.policy.validation import FieldProblem, Problems
from nats_backpressure.protocol.policies import EffectivePolicy
from nats_backpressure.protocol.subjects import encode

if TYPE_CHECKING:
    from nats_backpressure.adapters.nats.cli_client import ServiceClient


@click.group(short_help="Show and change policies.")
def policy() -> None:
    """Show and change policies. Policies in the policy bucket in NATS (KV) take effect within one second."""


@policy.command(short_help="Show the policy that applies to SUBJECT.")
@click.argument("subject", type=parse_subject)
@json_option("Print the reply as one JSON document.")
@connection_flags
def get(target: Target, subject: str, as_json: bool) -> None:
    """Show the policy that applies to SUBJECT, and where each field comes from (default, file, bucket or consumer
    metadata)."""

    async def query(service: ServiceClient) -> None:
        document = await service.query(f"get.policy.{encode(subject)}")
        if as_json:
            print_json(document)
            return
        effective = decode_reply(document, EffectivePolicy)
        _print_policy(subject, effective.policy, effective.sources)
        for each in effective.consumers:
            _print_policy(f"{each.stream} > {each.consumer}", each.policy, each.sources)

    run_command(target, query)


def _print_policy(title: str, policy: Mapping[str, Any], sources: Mapping[str, str]) -> None:
    print_table(POLICY_HEADERS, list(policy_rows(policy, sources)), title, dim_if="default")


@policy.command("ls", short_help="List the stored policies.")
@click.argument("pattern", required=False, type=parse_subject)
@json_option("Print the list as one JSON document.")
@connection_flags
def ls(target: Target, pattern: str | None, as_json: bool) -> None:
    """List the policies of the policy bucket in NATS (KV): what each sets, when it was stored, and how many watched
    subjects it governs. With PATTERN: those that it covers, or that cover it. The policies of settings files are not
    there: `policy get SUBJECT` shows what is in force."""
    run_command(target, lambda service: print_listed(target, service, pattern, as_json))


@policy.command("set", short_help="Store the policy in FILE for PATTERN.")
@click.argument("pattern", type=parse_subject)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--force", is_flag=True, help="Write it even if it would apply to no watched subject now.")
@click.option("--allow-unknown", is_flag=True, help="Store fields that this version does not know, too.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@json_option("Print the result as one JSON document.")
@connection_flags
def set_(
    target: Target, pattern: str, file: Path, force: bool, allow_unknown: bool, dry_run: bool, as_json: bool
) -> None:
    """Store the policy in FILE (YAML or JSON, `-` for standard input) for PATTERN in the policy bucket in NATS
    (KV). It replaces the stored policy for PATTERN; what that changes is printed before, on standard error.

    Exits with 1 and one line for each mistake, also if it would apply to no watched subject now (unless --force is
    given); the bucket is then unchanged.
    """
    key, value = PolicyKey(pattern), _read_policy_file(file, allow_unknown)

    async def put(service: ServiceClient) -> None:
        bucket = await read_bucket(target, service)
        _print_changes(bucket[key.name].value if key.name in bucket else None, value)
        subjects = await find_governed(service, key, bucket, value)
        require_governed(key, subjects, force)
        await require_allowed(service, value, note=dry_run)
        revision = None if dry_run else await write_change(target, service, key, value)
        what = "nothing was changed (--dry-run)" if revision is None else f"stored as revision {revision}"
        print_change(pattern, what, subjects, as_json, revision=revision)

    run_command(target, put)


def _print_changes(before: bytes | None, after: bytes) -> None:
    lines = changes(before, after)
    for line in lines if before is not None else [f"{line} (new)" for line in lines]:
        print_note(line)
    if not lines:
        print_note("it is what is stored already")


def _read_policy_file(file: Path, allow_unknown: bool) -> bytes:
    """The validated policy in a file, as it is stored. Exits with 1 and one line for each mistake, as FILE:LINE."""
    try:
        with click.open_file(str(file), "rb") as opened:
            data = opened.read(yaml_source.LARGEST_FILE + 1)
    except OSError as error:
        raise click.ClickException(f"{file}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    lines: dict[str, int] = {}
    problems = Problems()
    document = yaml_source.load_yaml(data, lines, problems)

    def with_line(problem: FieldProblem) -> str:
        return problem_line(problem, lines, str(file))

    exit_with_problems(map(with_line, problems.listed()))
    if document == {}:
        raise click.ClickException(f"{file}: is empty: to remove a policy use `policy rm PATTERN`")
    if not isinstance(document, dict):
        raise click.ClickException(f"{file}: must be a mapping of the fields of a policy")
    return encode_policy(document, with_line, allow_unknown=allow_unknown)


@policy.command(short_help="Remove the stored policy for PATTERN.")
@click.argument("pattern", type=parse_subject)
@click.option("--force", is_flag=True, hidden=True)
@json_option("Print the result as one JSON document.")
@connection_flags
def rm(target: Target, pattern: str, force: bool, as_json: bool) -> None:
    """Remove the policy for PATTERN from the policy bucket in NATS (KV), a refused one too. Exits with 1 if the bucket
    has none for exactly this pattern. It does not remove an override: use `override PATTERN auto`."""
    key = PolicyKey(pattern)

    async def remove(service: ServiceClient) -> None:
        bucket = await read_bucket(target, service)
        if key.name not in bucket:
            raise click.ClickException(f"the bucket has no policy for {pattern}")
        subjects = await find_governed(service, key, bucket, bucket[key.name].value)
        await write_change(target, service, key, b"")
        print_change(pattern, "removed", subjects, as_json, "governed")

    run_command(target, remove)
