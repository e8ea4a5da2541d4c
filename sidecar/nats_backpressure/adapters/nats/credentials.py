"""How a connection logs in: credentials, seeds, passwords and TLS files, read again for every new connection."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from nats.aio.client import RawCredentials

from nats_backpressure.config.nats import Nats, Secret, Tls


class BadCredentials(Exception):
    """A file that cannot be used; the text names the file and what is wrong, never its content."""


def credentials(nats: Nats) -> dict[str, Any]:
    """The arguments of nats-py's `connect` that log in. Raises BadCredentials."""
    arguments: dict[str, Any] = {}
    if nats.credentials_file:
        # Text, not the path: nats-py loops forever on an empty or truncated file.
        text = read_text(nats.credentials_file)
        token, seed = line_after(text, "BEGIN NATS USER JWT"), line_after(text, "BEGIN USER NKEY SEED")
        if token.count(".") != 2 or not seed:
            raise BadCredentials(f"{nats.credentials_file}: no user JWT with its seed in it")
        _check_seed(nats.credentials_file, seed)
        arguments["user_credentials"] = RawCredentials(text + "\n")  # nats-py always drops the last byte of the line
    if nats.nkey_seed_file:
        arguments["nkeys_seed_str"] = _check_seed(nats.nkey_seed_file, read_text(nats.nkey_seed_file).strip())
    elif nats.nkey_seed:
        arguments["nkeys_seed_str"] = _check_seed("nkey_seed", nats.nkey_seed.reveal().strip())
    if nats.user:
        arguments["user"] = nats.user
        arguments["password"] = _secret(nats.password_file, nats.password)
    if nats.token or nats.token_file:
        arguments["token"] = _secret(nats.token_file, nats.token)
    if nats.tls.ca_file or nats.tls.cert_file or any(s.startswith(("tls://", "wss://")) for s in nats.servers):
        arguments["tls"] = _tls(nats.tls)
    return arguments


def file_problems(nats: Nats) -> list[str]:
    """What is wrong with the files of the login and of TLS, one line for each of the two."""
    problems = []
    for part in (replace(nats, servers=("nats://localhost",), tls=Tls()), Nats(tls=nats.tls)):
        try:
            credentials(part)
        except BadCredentials as problem:
            problems.append(str(problem))
    return problems


def explain(error: BaseException) -> str:
    """The text of an error: what the operating system says, else the error's own text, else its type."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _secret(path: str | None, secret: Secret | None) -> str | None:
    if path:
        return read_text(path).strip()
    return secret.reveal() if secret else None


def _tls(files: Tls) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=files.ca_file)
        if files.cert_file:
            context.load_cert_chain(files.cert_file, files.key_file)
    except (OSError, ssl.SSLError) as error:
        paths = ", ".join(path for path in (files.ca_file, files.cert_file, files.key_file) if path)
        raise BadCredentials(f"TLS files {paths}: {explain(error)}") from None
    return context


def read_text(path: str) -> str:
    """The text of a file. Raises BadCredentials where it cannot be read, or is empty."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise BadCredentials(f"{path}: {explain(error)}") from None
    if not text.strip():
        raise BadCredentials(f"{path}: the file is empty")
    return text


def line_after(text: str, mark: str) -> str:
    """The line after the one that contains `mark`, or nothing."""
    lines = iter(text.splitlines())
    return next(lines, "") if any(mark in line for line in lines) else ""


def _check_seed(where: str, seed: str) -> str:
    import nkeys  # type: ignore[import-untyped]  # only where there is one: it loads a library for cryptography

    try:
        nkeys.from_seed(bytearray(seed.encode())).wipe()
    except Exception:  # nkeys and nacl raise many types, and none of their texts names the file
        raise BadCredentials(f"{where}: its nkey seed is damaged or cut short") from None
    return seed
