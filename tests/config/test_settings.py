"""Settings: each mistake with line and path, the environment first, and no secret shown."""

from pathlib import Path
from textwrap import dedent
from typing import Any

import msgspec
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.config.nats import Nats, Secret
from nats_backpressure.config.settings import BadSettings, Settings, load_settings, parse_settings
from nats_backpressure.policy.schema import Guard

SEED = "SU" + "A" * 56


def lines(text: str | bytes, **env: str) -> list[str]:
    with pytest.raises(BadSettings) as bad:
        parse_settings(text if isinstance(text, bytes) else dedent(text).encode(), env, "f")
    assert all("\n" not in line and line.isprintable() for line in bad.value.lines)
    return list(bad.value.lines)


def nats(text: str = "{}", **env: str) -> Nats:
    return parse_settings(text.encode(), env, "f").nats


WRONG = {
    "a misspelt key": ("obsrve: {}", "f:1: obsrve: unknown key; did you mean `observe`?"),
    "a misspelt field": (
        "log:\n  levle: info",
        "f:2: log.levle: unknown key; did you mean `level`?",
    ),
    "a list": ("- 1", "f:1: must be a mapping of settings"),
    "text": ("hello", "f:1: must be a mapping of settings"),
    "an empty list of what is watched": ("watch:", "f:1: watch: must be a list, not null"),
    "a section that is none": ("http: 1", "f:1: http: must be a mapping, not a whole number"),
    "policies that are none": ("policies: {}", "f:1: policies: must be a list of policies"),
    "a name with a blank": ("name: a b", "f:1: name: must match [A-Za-z0-9_-]{1,64}"),
    "a name with a newline": ('name: "a\\n"', "f:1: name: must not hold control characters"),
    "a group": ("group: blue", "f:1: group: unknown key; to run separate installations give each"),
    "no such port": ("http: {port: 65536}", "f:1: http.port: must be at most 65,535, is 65,536"),
    "true is no port": ("http: {port: true}", "f:1: http.port: must be a whole number, not true"),
    "ninety is not meant": (
        "publish: {heartbeat_seconds: 1:30}",
        "f:1: publish.heartbeat_seconds: must be a number, not text",
    ),
    "not finite": ("observe: {server_share: .inf}", "f:1: observe.server_share: must be a finite number"),
    "intervals crossed": (
        "observe: {min_interval_ms: 500, max_interval_ms: 400}",
        "f:1: observe.min_interval_ms: must not be above max_interval_ms",
    ),
    "unknown too soon": (
        "observe: {stale_after_seconds: 16}",
        "f:1: observe.unknown_after_seconds: must be at least twice stale_after_seconds",
    ),
    "a lease": ("lease: {ttl_seconds: 1}", "f:1: lease: unknown key; replicas of one `name` need no leader"),
    "nothing watched": ("watch: []", "f:1: watch: must not be empty"),
    "a stream left out": ("watch:\n  - consumers: [a]", "f:2: watch[0].stream: is missing"),
    "a stream with a dot": ("watch: [{stream: a.b}]", "f:1: watch[0].stream: must not hold blanks, dots"),
    "a user alone": ("nats: {user: bob}", "f:1: nats.user: needs a password"),
    "two ways in": (
        "nats: {credentials_file: a, token_file: b}",
        "f:1: nats: has several logins (credentials, token): keep one",
    ),
    "a certificate alone": ("nats: {tls: {cert_file: a}}", "f:1: nats.tls: cert_file and key_file must be set"),
    "two prefixes": ("nats: {js_domain: a, js_api_prefix: b}", "f:1: nats.js_domain: sets the same as js_api_prefix"),
    "a web server": ("nats: {servers: ['http://a']}", "f:1: nats.servers[0]: must be nats://HOST:PORT"),
    "a pattern for an alias": ("service: {status_alias: a.*}", "f:1: service.status_alias: must be a plain subject"),
    "an alias of ours": ("service: {status_alias: backpressure.v1.x}", "f:1: service.status_alias: must not overlap"),
    "replies to the system": (
        "service: {reply_prefixes: [$JS]}",
        "f:1: service.reply_prefixes[0]: must not begin with `$`",
    ),
    "replies to our events": (
        "service: {reply_prefixes: [backpressure]}",
        "f:1: service.reply_prefixes[0]: must not overlap",
    ),
    "a guard crossed": (
        "policy_guard: {min_pending_overload: 9, max_pending_overload: 8}",
        "f:1: policy_guard.min_pending_overload: must not be above max_pending_overload",
    ),
    "a guard of nothing": (
        "policy_guard: {min_pending_overload: 0}",
        "f:1: policy_guard.min_pending_overload: must be at least 0.001, is 0",
    ),
    "a guard of nobody's": ("policy_guard: {allow_buckets: true}", "f:1: policy_guard.allow_buckets: unknown key"),
    "half a trust": ("trust_consumer_metadata: 1", "f:1: trust_consumer_metadata: must be true or false"),
    "an override in the file": (
        "policies: [{subjects: [a], override: {action: open, until: 2026-11-23}}]",
        "f:1: policies[0].override: must not be in a policy. An override has its own key in the policy bucket",
    ),
    "a password in the file": ("nats: {password: hunter2}", "f:1: nats.password: unknown key"),
    "a key twice": ("name: a\ntrust_consumer_metadata: true\nname: c", "f:1: name: is set twice, again in line 3"),
    "a tab": ("log:\n\tlevel: info", "f:2: has a tab for indentation"),
    "an alias bomb": ("a: &a [1]\nb: [*a, *a]", "f:2: aliases (`*name`) are not supported"),
    "a tower": ("a: " + "[" * 5000, "f:1: is nested deeper than 32 levels"),
    "an object": ("name: !!python/object:os.system x", "f:1: name: tags (`!name`) are not supported"),
    "a tag": ("name: !x y", "f:1: name: tags (`!name`) are not supported"),
    "two documents": ("name: a\n---\nname: b", "f:2: is not YAML: expected a single document"),
    "an open bracket": ("watch: [", "f:1: is not YAML: "),
    "a null byte": ("name: \x00", "f:1: holds a control character"),
    "a list for a key": ("[a]: 1", "f:1: keys must be text"),
    "a number for a key": ("1: 1", "f:1: keys must be text, not a whole number"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_that_says_where(case: str) -> None:
    text, expected = WRONG[case]
    (line,) = lines(text)
    assert line.startswith(expected)


def test_bytes_that_are_not_text_are_reported_by_line() -> None:
    assert lines(b"name: a\nlog: \xff") == ["f:2: is not UTF-8 text"]


def test_a_file_too_large_is_not_looked_into() -> None:
    assert lines(b"#" * (1 << 20) + b"\nname: a b") == ["f: is larger than 1,048,576 bytes"]


def test_every_mistake_of_a_file_is_reported_with_its_line() -> None:
    problems = lines(
        """\
        name: a b
        nmae: x
        observe:
          stale_after_seconds: 20
        policies:
          - subjects: [a.b]
            pending:
              warn: 3000
              wran: 3
        """,
        NATS_URL="http://x",
    )
    assert {line.split(": ")[0] + ": " + line.split(": ")[1] for line in problems} == {
        "f:1: name",
        "f:2: nmae",
        "f:3: observe.unknown_after_seconds",
        "f:8: policies[0].pending.warn",
        "f:9: policies[0].pending.wran",
        "environment: NATS_URL",
    }


def test_without_a_file_the_documented_defaults_hold() -> None:
    settings = load_settings(None, {})
    assert settings == Settings(instance=settings.instance) and settings.instance
    assert settings.nats.servers == ("nats://127.0.0.1:4222",)
    assert (settings.observe.stale_after_seconds, settings.http.port) == (10, 7778)


DOCUMENTED = """
name: backpressure
instance: null
nats: {servers: ["nats://127.0.0.1:4222"], credentials_file: null, nkey_seed_file: null, user: null,
       password_file: null, token_file: null, tls: {ca_file: null, cert_file: null, key_file: null},
       js_domain: null, js_api_prefix: null, inbox_prefix: _INBOX_sidecar}
watch: [{stream: "*", consumers: ["*"]}]
policies: []
policy_guard: {allow_bucket: true, min_pending_overload: null, max_pending_overload: null}
trust_consumer_metadata: false
observe: {min_interval_ms: 100, max_interval_ms: 5000, api_requests_per_second: 50, server_share: 0.05,
          stale_after_seconds: 10, unknown_after_seconds: 30}
publish: {replicas: 1, events_max_age_seconds: 604800, heartbeat_seconds: 2, manage_resources: true}
service: {status_alias: null, reply_prefixes: []}
http: {host: 0.0.0.0, port: 7778, ready_requires_nats: false}
metrics: {max_subjects: 1000}
log: {level: info, format: auto}
"""


def test_the_documented_file_is_the_default() -> None:
    assert parse_settings(DOCUMENTED.encode(), {}, "f") == load_settings(None, {})


def test_the_router_example_is_taken() -> None:
    settings = parse_settings(
        b"""
        policies:
          - subjects: ["beamline.router.v1.decide"]
            retry_after_seconds: 30
        service:
          status_alias: beamline.router.v1.status.backpressure
          reply_prefixes: [acme.replies, OTHER]
        watch: [{stream: "ROUTER*", consumers: ["router-*", audit]}]
        """,
        {},
        "f",
    )
    (entry,) = settings.policies
    assert entry.subjects == ("beamline.router.v1.decide",) and entry.fields == (("retry_after_seconds", 30),)
    assert settings.service.reply_prefixes == ("acme.replies", "OTHER")
    assert (settings.watch[0].stream, settings.watch[0].consumers) == ("ROUTER*", ("router-*", "audit"))


def test_what_others_may_say_of_policies_is_taken() -> None:
    text = b"""
        policy_guard: {allow_bucket: false, min_pending_overload: 100, max_pending_overload: 100000}
        trust_consumer_metadata: true
        policies:
          - subjects: [a]
            override: null
        """
    settings = parse_settings(text, {}, "f")
    assert settings.policy_guard == Guard(False, 100, 100_000) and settings.trust_consumer_metadata
    assert settings.policies[0].fields == ()


@pytest.mark.parametrize(("what", "why"), [(".", "is a directory"), ("none.yaml", "no such file or directory")])
def test_what_cannot_be_read_is_one_line(tmp_path: Path, what: str, why: str) -> None:
    with pytest.raises(BadSettings) as bad:
        load_settings(tmp_path / what, {})
    assert bad.value.lines == (f"{tmp_path / what}: cannot be read: {why}",)


def test_the_variable_names_the_file_where_no_argument_does(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: from-variable")
    assert load_settings(None, {"BACKPRESSURE_CONFIG": str(file)}).name == "from-variable"
    assert load_settings(None, {"BACKPRESSURE_CONFIG": ""}).name == "backpressure"


def test_the_environment_wins_over_the_file() -> None:
    text = "nats: {servers: ['nats://file'], tls: {ca_file: old}, credentials_file: old.creds}"
    settings = nats(text, NATS_URL=" nats://a:1, b:2,", NATS_CA="new", NATS_TOKEN="t")
    assert settings.servers == ("nats://a:1", "nats://b:2")
    assert settings.tls.ca_file == "new"
    assert settings.token == Secret("t") and settings.credentials_file is None


def test_a_password_from_the_environment_goes_with_the_user_of_the_file() -> None:
    settings = nats("nats: {user: bob, password_file: /p}", NATS_PASSWORD="hunter2")
    assert settings.user == "bob" and settings.password_file is None
    assert settings.password is not None and settings.password.reveal() == "hunter2"


def test_an_nkey_is_a_seed_or_a_file_of_one() -> None:
    assert nats(NATS_NKEY=SEED).nkey_seed == Secret(SEED)
    assert nats(NATS_NKEY="/etc/nats/seed.nk").nkey_seed_file == "/etc/nats/seed.nk"


@pytest.mark.parametrize("nkey", [SEED[:-1], "U" + "A" * 55], ids=["cut short", "a public key"])
def test_a_broken_seed_is_neither_taken_for_a_file_nor_shown(nkey: str) -> None:
    (line,) = lines("{}", NATS_NKEY=nkey)
    assert line.startswith("environment: NATS_NKEY: must be a seed") and nkey not in line


@pytest.mark.parametrize(
    "env",
    [
        {"NATS_USER": "bob"},
        {"NATS_PASSWORD": "hunter2"},
        {"NATS_USER": "bob", "NATS_PASSWORD": "x", "NATS_CREDS": "y"},
        {"NATS_CERT": "a"},
        {"NATS_URL": ","},
        {"NATS_URL": "nats://a:99999"},
        {"NATS_URL": "nats://[::1"},
        {"NATS_URL": "nats://"},
    ],
    ids=lambda env: " ".join(f"{k}={v}" for k, v in env.items()),
)
def test_an_environment_that_cannot_work_is_reported(env: dict[str, str]) -> None:
    assert lines("{}", **env)


def test_no_secret_is_ever_shown() -> None:
    settings = parse_settings(
        b"nats: {user: bob}", {"NATS_PASSWORD": "hunter2", "NATS_URL": "nats://u:hunter2@a:1,tls://hunter2@b"}, "f"
    )
    assert "hunter2" not in repr(settings) + str(settings.nats) + f"{settings.nats.password}"
    assert settings.nats.shown_servers == ("nats://a:1", "tls://b")
    with pytest.raises(TypeError):
        msgspec.json.encode(settings)
    for text in (
        "nats: {servers: ['http://u:hunter2@a']}",
        "nats: {token_file: [hunter2]}",
        "nats: {passwrd: hunter2}",
    ):
        assert "hunter2" not in "".join(lines(text))


VALUES: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


def error_lines(data: bytes) -> tuple[str, ...]:
    try:
        parse_settings(data, {}, "f")
    except BadSettings as bad:
        return bad.lines
    return ()


@given(st.dictionaries(st.sampled_from(Settings.__struct_fields__), VALUES))
def test_no_value_anywhere_does_worse_than_bad_settings(document: dict[str, Any]) -> None:
    data = yaml.safe_dump(document, allow_unicode=True).encode("utf-8", "replace")
    assert all(line.isprintable() for line in error_lines(data))


@given(st.binary(max_size=80) | st.text("{}[]:-,&*!|>'\"%@` \n\tabc1.", max_size=60).map(str.encode))
def test_no_bytes_do_worse_than_bad_settings(data: bytes) -> None:
    assert all(line.isprintable() for line in error_lines(data))


@pytest.mark.parametrize("wrap", ["'{}'", '"{}"', " {}\n"])
def test_a_seed_in_the_environment_may_stand_in_quotes(wrap: str) -> None:
    found = nats(NATS_NKEY=wrap.format(SEED))
    assert found.nkey_seed is not None and found.nkey_seed.reveal() == SEED and found.nkey_seed_file is None


@pytest.mark.parametrize("name", ["NATS_NKEY", "NATS_CREDS", "NATS_CERT", "NATS_KEY", "NATS_CA"])
@pytest.mark.parametrize(
    "value",
    [
        SEED[:50],
        SEED.lower(),
        f"seed={SEED}",
        f"{SEED} {SEED}",
        f"-----BEGIN USER NKEY SEED-----\n{SEED}",
        f"/tmp/{SEED}",
        6 * SEED,
    ],
)
def test_a_secret_in_place_of_a_path_is_refused_and_not_shown(name: str, value: str) -> None:
    with pytest.raises(BadSettings) as bad:
        nats(**{name: value})
    assert SEED[:20].lower() not in "".join(bad.value.lines).lower()


def test_a_secret_in_place_of_a_path_in_the_file_is_refused_and_not_shown() -> None:
    for field in ("credentials_file", "nkey_seed_file", "token_file"):
        with pytest.raises(BadSettings, match=f"nats.{field}: must be the path of a file") as bad:
            nats(f"nats: {{{field}: {SEED}}}")
        assert SEED not in "".join(bad.value.lines)


SECTIONS = [
    *(path for path in Settings.__struct_fields__ if isinstance(getattr(Settings(), path), msgspec.Struct)),
    *(f"nats.{path}" for path in Nats.__struct_fields__ if isinstance(getattr(Nats(), path), msgspec.Struct)),
    "policies",
]


@pytest.mark.parametrize("path", SECTIONS)
def test_a_section_whose_lines_are_all_commented_out_is_empty(path: str) -> None:
    *outer, name = path.split(".")
    text = "".join(f"{each}:\n  " for each in outer) + f"{name}:\n    # key: value\n"
    assert msgspec.structs.replace(parse_settings(text.encode(), {}, "f"), instance="i") == Settings(instance="i")


@pytest.mark.parametrize("text", ["", "\n", "# nothing\n", "---\n", "null\n"])
def test_an_empty_file_is_a_mistake_since_it_puts_all_policies_out_of_force(text: str) -> None:
    with pytest.raises(BadSettings, match="is empty: write"):
        nats(text)
