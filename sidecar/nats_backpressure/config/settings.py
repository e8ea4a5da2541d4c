"""The settings, and how they are loaded from a YAML file and the environment; each problem has its line and path."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import replace

from nats_backpressure.config import nats, yaml_source
from nats_backpressure.config.nats import Nats, Text
from nats_backpressure.policy.guard import check_guard
from nats_backpressure.policy.parse import PolicyEntry, parse_entries
from nats_backpressure.policy.schema import Guard
from nats_backpressure.policy.validation import FieldProblem, Problems, read_with_defaults, shorten
from nats_backpressure.protocol.patterns import glob_problem, literal_problem

LONGEST_PATH: Final = 4096
NO_FILE: Final = b"{}"

Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_-]{1,64}\Z")]
Globs = Annotated[tuple[str, ...], Meta(min_length=1, max_length=1000)]
Seconds = Annotated[float, Meta(ge=0.01, le=86_400)]
Millis = Annotated[int, Meta(ge=10, le=3_600_000)]
LIFETIME: Final = 10 * 365 * 86_400
REMOVED_SETTINGS: Final = {
    "group": "unknown key; to run separate installations give each its own `name`",
    "lease": "unknown key; replicas of one `name` need no leader, so there is nothing to set",
}
"""Settings of earlier versions, with what to do instead."""


class WatchSetting(Struct, frozen=True, forbid_unknown_fields=True):
    """Streams and consumers to watch. Globs match only those that count; an exact name matches any."""

    stream: str
    """Glob (`*` is any text) over stream names."""
    consumers: Globs = ("*",)
    """Globs over the consumer names of these streams."""


class Observe(Struct, frozen=True, forbid_unknown_fields=True):
    """How often streams and consumers are read, and when a status counts as old."""

    min_interval_ms: Millis = 100
    """Shortest time between two reads of one stream, in milliseconds: that of consumers that may be above a mark."""
    max_interval_ms: Millis = 5000
    """Longest time between two reads of a consumer, in milliseconds: that of consumers with nothing to do, which looks
    at their stream prove meanwhile. A consumer that was created again or has another filter is noticed within it."""
    api_requests_per_second: Annotated[float, Meta(ge=0.1, le=10_000)] = 50
    """JetStream API requests per second, for all streams and all replicas together. Where that is too few, everything
    is read more rarely by the same factor (metric `read_stretch`). Not in it: a few reads of our own bucket and
    events stream for each new subject, which come all together at a start."""
    server_share: Annotated[float, Meta(ge=0.0001, le=1)] = 0.05
    """Share of its time that the server may spend on answering our reads of one stream: reads that each
    took 5 ms follow one another after 100 ms at 0.05. After a calm, 50 ms of its time may be spent at once. What
    the link takes there and back is no time of the server."""
    stale_after_seconds: Seconds = 10
    """Seconds without a new proof after which a status is `stale`."""
    unknown_after_seconds: Seconds = 30
    """Seconds without a new proof after which a status is `unknown`; at least twice `stale_after_seconds`."""


class Publish(Struct, frozen=True, forbid_unknown_fields=True):
    """The event stream, the buckets and the heartbeat."""

    replicas: Annotated[int, Meta(ge=1, le=5)] = 1
    """JetStream replicas of the event stream and the buckets when they are created. Existing ones are not changed."""
    events_max_age_seconds: Annotated[float, Meta(ge=1, le=LIFETIME)] = 604_800
    """Seconds for which the event stream keeps an event. Used when the stream is created."""
    heartbeat_seconds: Seconds = 2
    """Seconds between two heartbeats. Clients wait at least three of them before a refusal opens."""
    manage_resources: bool = True
    """Whether missing streams and buckets are created. If false, the log shows the command that creates them."""


class Serving(Struct, frozen=True, forbid_unknown_fields=True):
    """The request service over NATS."""

    status_alias: Text | None = None
    """Another subject that answers status requests, in the format of the router. No stream may capture it."""
    reply_prefixes: Annotated[tuple[Text, ...], Meta(max_length=100)] = ()
    """Prefixes (whole tokens) that the reply subject of a request may have, besides the inboxes `_INBOX` and `_R_`."""


class Sharing(Struct, frozen=True, forbid_unknown_fields=True):
    """What the replicas of one `name` share, so that all together read as much as one."""

    enabled: bool = True
    """Whether each stream is read by one of the replicas, which sends what it reads to the others."""
    silence_ms: Annotated[int, Meta(ge=100, le=60_000)] = 600
    """Milliseconds without a reading of a stream after which another replica reads it, at least: three intervals
    between two readings, and twice what the last one took, if that is more."""


class Http(Struct, frozen=True, forbid_unknown_fields=True):
    """The HTTP server for probes and metrics."""

    host: Text = "0.0.0.0"
    """Address on which `/metrics`, `/healthz` and `/readyz` are served."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 7778
    """Port; 0 takes any free one."""
    ready_requires_nats: bool = False
    """Whether `/readyz` is 503 until the streams are read, and again after a long loss of NATS."""


class MetricsSettings(Struct, frozen=True, forbid_unknown_fields=True):
    """The bound of the metrics page."""

    max_subjects: Annotated[int, Meta(ge=1, le=1_000_000)] = 1000
    """Subjects with metric series of their own. All others are summed under the subject `_other`."""


class Log(Struct, frozen=True, forbid_unknown_fields=True):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Messages below this level are not logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """`auto` is `console` on a terminal, else `json`."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """All settings of a process, after the file and the environment."""

    name: Name = "backpressure"
    """Name of the installation. It is the prefix of all our subjects, streams and buckets; replicas share it."""
    instance: Annotated[str, Meta(pattern=r"^[!-~]{1,253}\Z")] = field(default_factory=socket.gethostname)
    """Name of this replica; null is the host name (in Kubernetes: the pod's name)."""
    nats: Nats = Nats()
    """The connection to NATS."""
    watch: Annotated[tuple[WatchSetting, ...], Meta(min_length=1, max_length=1000)] = (WatchSetting("*"),)
    """Which streams and consumers are watched."""
    policies: tuple[PolicyEntry, ...] = ()
    """Policies of the file: see [policy.md](policy.md#policies)."""
    policy_guard: Guard = Guard()
    """Limits for policies from the bucket and from metadata."""
    trust_consumer_metadata: bool = False
    """Whether a consumer's metadata may set fields of its policy."""
    observe: Observe = Observe()
    """How often and how much is read."""
    publish: Publish = Publish()
    """What is stored and published."""
    service: Serving = Serving()
    """The request service."""
    sharing: Sharing = Sharing()
    """What replicas share."""
    http: Http = Http()
    """Probes and metrics over HTTP."""
    metrics: MetricsSettings = MetricsSettings()
    """Prometheus metrics."""
    log: Log = Log()
    """Logging."""


class BadSettings(Exception):
    """Settings with problems; `lines` has one printable line for each."""

    def __init__(self, problems: Iterable[FieldProblem], lines: Iterable[str]) -> None:
        self.problems = tuple(problems)
        self.lines = tuple(lines)
        super().__init__("; ".join(self.lines))


def load_settings(path: Path | None, env: Mapping[str, str]) -> Settings:
    """The settings of a file (else of the file in BACKPRESSURE_CONFIG, else the defaults), with the NATS variables of
    the environment. Raises BadSettings."""
    if path is None and env.get("BACKPRESSURE_CONFIG"):
        path = Path(env["BACKPRESSURE_CONFIG"])
    if path is None:
        return parse_settings(NO_FILE, env, "settings")
    name = shorten(str(path), LONGEST_PATH)
    try:
        with path.open("rb") as file:
            data = file.read(yaml_source.LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "not a valid path"
        problem = FieldProblem("", f"cannot be read: {why[0].lower()}{why[1:]}")
        raise BadSettings([problem], [f"{name}: {problem.line}"]) from None
    return parse_settings(data, env, name)


def parse_settings(data: bytes, env: Mapping[str, str], name: str) -> Settings:
    """The settings of a YAML text, with the NATS variables of the environment. Raises BadSettings; its lines begin with
    `name`."""
    problems = Problems(_suggest)
    lines: dict[str, int] = {}
    document = yaml_source.load_yaml(data, lines, problems)
    settings = Settings()
    if isinstance(document, dict):
        settings = _read(document, problems)
    elif document is not None:
        problems.add("", "must be a mapping of settings")
    elif not problems:  # emptied by accident, it would put all policies out of force
        problems.add("", "is empty: write {} for a file without settings")
    settings = replace(settings, nats=nats.with_environment(settings.nats, env, problems))
    _check(settings, problems)
    if problems:
        listed = problems.listed()
        raise BadSettings(listed, (problem_line(problem, lines, name) for problem in listed))
    return settings


def _read(document: dict[Any, Any], problems: Problems) -> Settings:
    # Policies set only some fields, so they have their own parser; `instance: null` is the host name.
    rest = {k: v for k, v in document.items() if k != "policies" and not (k == "instance" and v is None)}
    for key in REMOVED_SETTINGS.keys() & rest.keys():
        problems.add(key, REMOVED_SETTINGS[key])
        del rest[key]
    settings = read_with_defaults(Settings, _without_empty_sections(rest, Settings()), "", problems)
    if document.get("policies") is not None:
        settings = replace(settings, policies=parse_entries(document["policies"], "policies", problems))
    return settings


def _without_empty_sections(given: dict[Any, Any], like: Struct) -> dict[Any, Any]:
    """Without the sections whose lines are all commented out, which YAML reads as null."""
    kept = {}
    for key, value in given.items():
        section = getattr(like, str(key), None)
        if not isinstance(section, Struct):
            kept[key] = value
        elif value is not None:
            kept[key] = _without_empty_sections(value, section) if isinstance(value, dict) else value
    return kept


def _suggest(key: str, known: Iterable[str]) -> str | None:
    return next(iter(get_close_matches(key, list(known), n=1)), None)


def problem_line(problem: FieldProblem, lines: Mapping[str, int], name: str) -> str:
    """A problem in the form that editors understand: file, line, path, message."""
    path = problem.path
    if path in nats.VARIABLES:
        return f"environment: {problem.line}"
    while path and path not in lines:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return f"{name}:{lines[path]}: {problem.line}" if path in lines else f"{name}: {problem.line}"


def _check(settings: Settings, problems: Problems) -> None:
    nats.check_nats(settings.nats, problems)
    _check_subjects(settings, problems)
    for i, entry in enumerate(settings.watch):
        _add(problems, f"watch[{i}].stream", glob_problem(entry.stream))
        for j, name in enumerate(entry.consumers):
            _add(problems, f"watch[{i}].consumers[{j}]", glob_problem(name))
    observe = settings.observe
    if observe.min_interval_ms > observe.max_interval_ms:
        problems.add("observe.min_interval_ms", "must not be above max_interval_ms")
    if observe.unknown_after_seconds < 2 * observe.stale_after_seconds:
        problems.add("observe.unknown_after_seconds", "must be at least twice stale_after_seconds")
    check_guard(settings.policy_guard, "policy_guard", problems)


def _check_subjects(settings: Settings, problems: Problems) -> None:
    """A reply is published with our rights, so a reply subject must be neither the system's nor ours."""
    prefix = [settings.name, "v1"]
    subjects = [(f"service.reply_prefixes[{i}]", text) for i, text in enumerate(settings.service.reply_prefixes)]
    if settings.service.status_alias is not None:
        subjects.append(("service.status_alias", settings.service.status_alias))
    for path, subject in subjects:
        tokens = subject.split(".")
        if problem := literal_problem(subject):
            problems.add(path, problem)
        elif subject.startswith("$"):
            problems.add(path, "must not begin with `$`: those subjects are the system's")
        elif all(a == b for a, b in zip(tokens, prefix, strict=False)):
            problems.add(path, f"must not overlap {'.'.join(prefix)}: those subjects are ours")


def _add(problems: Problems, path: str, message: str | None) -> None:
    if message is not None:
        problems.add(path, message)
