"""The settings for the connection to NATS: servers, login and TLS, from the file and the usual NATS variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Final
from urllib.parse import urlsplit

from msgspec import Meta, Struct
from msgspec.structs import replace

from nats_backpressure.policy.validation import Problems
from nats_backpressure.protocol.inboxes import inbox_of
from nats_backpressure.protocol.patterns import literal_problem

Text = Annotated[str, Meta(min_length=1, max_length=1024)]

_TLS: Final = {"NATS_CA": "ca_file", "NATS_CERT": "cert_file", "NATS_KEY": "key_file"}
_LOGIN: Final = ("NATS_CREDS", "NATS_NKEY", "NATS_USER", "NATS_PASSWORD", "NATS_TOKEN")
CONTENT: Final = re.compile(r"\n|-----BEGIN|(?i:\bS[A-Z2-7]{40,})|\beyJ\w{20,}")
"""What the content of a file has and its path has not: more than one line, PEM, a seed, a JWT."""
VARIABLES: Final = ("NATS_URL", *_LOGIN, *_TLS)


class Secret:
    """A text that `repr` and logs do not show."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)


class Tls(Struct, frozen=True, forbid_unknown_fields=True):
    """Files for TLS, in PEM format."""

    ca_file: Text | None = None
    """Certificate authorities that the server's certificate is checked with; null uses those of the system."""
    cert_file: Text | None = None
    """The client's certificate; goes together with `key_file`."""
    key_file: Text | None = None
    """The private key of `cert_file`."""


class Nats(Struct, frozen=True, forbid_unknown_fields=True):
    """How to reach NATS. Secrets come from files or the environment, never from this file itself."""

    # For logs and errors use `shown_servers`.
    servers: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=100)] = ("nats://127.0.0.1:4222",)
    """URLs `nats://HOST:PORT` or `tls://HOST:PORT`; the scheme may be left out. A URL may hold a user and password,
    which are never logged."""
    credentials_file: Text | None = None
    """A `.creds` file (JWT and seed). Of credentials, nkey, user and token only one may be set."""
    nkey_seed_file: Text | None = None
    """A file that holds an nkey seed."""
    user: Text | None = None
    """User name; needs a password."""
    password_file: Text | None = None
    """A file that holds the password of `user`."""
    token_file: Text | None = None
    """A file that holds a token."""
    tls: Tls = Tls()
    """Certificates for TLS. With a CA, a certificate or a `tls://` URL, a server that offers no TLS gets no login."""
    js_domain: Text | None = None
    """JetStream domain; not together with `js_api_prefix`."""
    js_api_prefix: Text | None = None
    """Prefix of the JetStream API, where an account imports it under another name than `$JS.API`."""
    inbox_prefix: Text = inbox_of("sidecar")
    """Prefix of the inboxes on which replies to the sidecar arrive: one that its user may subscribe to."""
    nkey_seed: Secret | None = None
    """The nkey seed itself."""
    password: Secret | None = None
    """The password of `user`."""
    token: Secret | None = None
    """The token itself."""

    @property
    def shown_servers(self) -> tuple[str, ...]:
        """The servers without user, password or token, as logs and errors may show them."""
        return tuple(_without_user(server) for server in self.servers)

    @property
    def api_prefix(self) -> str:
        """The subject of JetStream's API: the plain one, that of a domain, or one imported from another account."""
        if self.js_api_prefix:
            return self.js_api_prefix.rstrip(".")
        return f"$JS.{self.js_domain}.API" if self.js_domain else "$JS.API"

    def __repr__(self) -> str:
        rest = ((name, getattr(self, name)) for name in self.__struct_fields__ if name != "servers")
        return f"Nats(servers={self.shown_servers!r}, {', '.join(f'{name}={value!r}' for name, value in rest)})"


def _without_user(server: str) -> str:
    scheme, mark, rest = server.partition("://")
    if not scheme.isalpha() or not mark:  # nats-py accepts `user:password@host` as well
        return server.rpartition("@")[2]
    return scheme + mark + rest.rpartition("@")[2]


def variables_in(env: Mapping[str, str]) -> tuple[str, ...]:
    """The variables that are set, and so replace what the file has."""
    return tuple(name for name in VARIABLES if env.get(name, "").strip())


def with_environment(nats: Nats, env: Mapping[str, str], problems: Problems) -> Nats:
    """The settings with the usual NATS variables over them; a login in the environment replaces that of the file."""
    given = {name: env[name].strip() for name in variables_in(env)}
    nats = replace(nats, tls=replace(nats.tls, **_renamed(given, _TLS)))
    if any(name in given for name in _LOGIN):
        same = "NATS_USER" in given or "NATS_PASSWORD" in given
        user, password_file = (nats.user, nats.password_file) if same else (None, None)
        nats = replace(
            nats,
            credentials_file=None,
            nkey_seed_file=None,
            token_file=None,
            user=user,
            password_file=None if "NATS_PASSWORD" in given else password_file,
        )
    nats = replace(nats, **_renamed(given, {"NATS_CREDS": "credentials_file", "NATS_USER": "user"}))
    if "NATS_PASSWORD" in given:
        nats = replace(nats, password=Secret(given["NATS_PASSWORD"]))
    if "NATS_TOKEN" in given:
        nats = replace(nats, token=Secret(given["NATS_TOKEN"]))
    if nkey := given.get("NATS_NKEY", "").strip("\"'"):
        if re.fullmatch(r"S[A-Z2-7]{57}", nkey):
            nats = replace(nats, nkey_seed=Secret(nkey))
        elif "/" in nkey or os.path.isfile(nkey):  # Path.is_file raises for a name that is too long
            nats = replace(nats, nkey_seed_file=nkey)
        else:  # the value is not repeated: it may be a damaged seed
            problems.add("NATS_NKEY", "must be a seed (58 characters, beginning with S) or the path of a file with one")
    return replace(nats, servers=_servers(nats, given.get("NATS_URL"), problems))


def _renamed(given: Mapping[str, str], fields: Mapping[str, str]) -> dict[str, str]:
    return {field: given[name] for name, field in fields.items() if name in given}


def _servers(nats: Nats, url: str | None, problems: Problems) -> tuple[str, ...]:
    servers = nats.servers if url is None else tuple(s for s in map(str.strip, url.split(",")) if s)
    whole = tuple(server if "://" in server else f"nats://{server}" for server in servers)
    for i, server in enumerate(whole):
        if not _is_server(server):
            # The value is not repeated: it may hold a password.
            problems.add("NATS_URL" if url else f"nats.servers[{i}]", "must be nats://HOST:PORT or tls://HOST:PORT")
    if not whole:
        problems.add("NATS_URL", "has no server URL: give nats://HOST:PORT")
    return whole


def _check_files(nats: Nats, problems: Problems) -> None:
    """A secret in place of the path of its file must not be shown as a file that is missing."""
    logins = ("credentials_file", "nkey_seed_file", "password_file", "token_file")
    files = {name: getattr(nats, name) for name in logins}
    files |= {f"tls.{name}": getattr(nats.tls, name) for name in ("ca_file", "cert_file", "key_file")}
    for name, path in files.items():
        if path is not None and CONTENT.search(path):
            problems.add(f"nats.{name}", "must be the path of a file, and not what is in it")


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isprintable() and " " not in url
    return plain and parts.scheme in ("nats", "tls") and bool(parts.hostname) and port != 0 and parts.path in ("", "/")


def check_nats(nats: Nats, problems: Problems) -> None:
    """Add a problem for each field and combination of fields that cannot work."""
    _check_files(nats, problems)
    password = nats.password or nats.password_file
    if nats.user and not password:
        problems.add("nats.user", "needs a password: nats.password_file or NATS_PASSWORD")
    if password and not nats.user:
        problems.add("nats.password_file", "needs a user: nats.user or NATS_USER")
    logins = {
        "credentials": nats.credentials_file,
        "nkey seed": nats.nkey_seed or nats.nkey_seed_file,
        "user": nats.user,
        "token": nats.token or nats.token_file,
    }
    if len(used := [login for login, value in logins.items() if value]) > 1:
        problems.add("nats", f"has several logins ({', '.join(used)}): keep one")
    if bool(nats.tls.cert_file) != bool(nats.tls.key_file):
        problems.add("nats.tls", "cert_file and key_file must be set together")
    if nats.js_domain and nats.js_api_prefix:
        problems.add("nats.js_domain", "sets the same as js_api_prefix: keep one")
    for name in ("js_domain", "js_api_prefix", "inbox_prefix"):
        if (subject := getattr(nats, name)) is not None and (problem := literal_problem(subject)) is not None:
            problems.add(f"nats.{name}", problem)
