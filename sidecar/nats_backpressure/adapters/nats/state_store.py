"""The state bucket: one key per subject, changed only if its revision is the expected one, and the heartbeat key.

What others write is followed, and everything is read again after each reconnect, and where the bucket is another or has
lost keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import structlog
from nats.aio.client import Client

from nats_backpressure.adapters.nats.api import JetStreamApi, Message
from nats_backpressure.adapters.nats.kv import Bucket
from nats_backpressure.adapters.nats.stream_follower import Info, StreamFollower
from nats_backpressure.core.model.samples import StreamLook
from nats_backpressure.core.subject.stored_state import newer_record, record_of
from nats_backpressure.policy.validation import shorten
from nats_backpressure.protocol.decoding import read_message
from nats_backpressure.protocol.messages import SCHEMA, Heartbeat
from nats_backpressure.protocol.subjects import HEARTBEAT, BadTail, Names, decode, encode
from nats_backpressure.runtime.ports import Clock, Conflict, Stored
from nats_backpressure.runtime.slices import Slices
from nats_backpressure.runtime.tasks import Once

log = structlog.get_logger()


class _Loading:
    """A reading of all records that is under way."""

    def __init__(self, created: str) -> None:
        self.created = created
        """When the bucket was created, which distinguishes it from another bucket of the same name."""
        self.records: dict[str, Stored] = {}
        self.reached = 0
        """The highest revision that was read."""


class JetStreamStateStore:
    """The StateStore on a bucket. Reads go to the leader of its stream."""

    def __init__(
        self, js: JetStreamApi, names: Names, count: Callable[[str], None], client: Callable[[], Client], clock: Clock
    ) -> None:
        self._bucket, self._count = Bucket(js, client, names.state_bucket), count
        self._client, self._clock = client, clock
        self._follower = StreamFollower(
            js, client, clock, self._bucket.stream, self._bucket.pattern, self._follow_one, self._read_all
        )
        self._take: Callable[[str, Stored], None] = lambda subject, stored: None
        self._keys: set[str] = set()
        """The keys that there are, deleted ones too, as far as was read or written."""
        self._writing: dict[str, bytes] = {}
        """What is being written under each key: it comes back before its reply."""
        self._malformed, self._newer = Once(), Once()
        self._loading: _Loading | None = None
        """What `load_all` had read when it failed."""
        self.on_heartbeat: Callable[[Heartbeat], None] = lambda heartbeat: None
        self.on_current: Callable[[], object] = lambda: None
        self._follower.on_current = lambda: self.on_current()
        self._heartbeat = 0
        """The revision of the newest heartbeat of any replica, as far as it was read or written."""

    async def load(self, subject: str) -> Stored | None:
        message = await self._bucket.get(encode(subject))
        return None if message is None else self._stored(subject, message)

    async def load_all(self) -> dict[str, Stored]:
        client, info = self._client(), await self._bucket.info()
        created = info.created if info else ""
        if self._loading is None or self._loading.created != created:
            self._loading = _Loading(created)
        loading = self._loading
        async for key, message in self._bucket.entries(loading.reached):
            self._keys.add(key)
            if key == HEARTBEAT:
                self._heartbeat = message.seq
            if (subject := self._subject(key)) is not None:
                loading.records.pop(subject, None)  # a later write of the same key
                if (stored := self._stored(subject, message)).record is not None:
                    loading.records[subject] = stored
            loading.reached = message.seq
        self._loading = None
        self._follower.continue_from(created, loading.reached, client)
        return loading.records

    def take_looks(self, looks: Sequence[StreamLook], asked_at: float) -> None:
        look = next((look for look in looks if look.name == self._bucket.stream), None)
        if look is None:
            return
        if look.last_seq == self._follower.position.reached and look.messages < len(self._keys):
            self._follower.read_again()  # keys went without a trace
        self._follower.take_look(look, asked_at)

    def connected(self) -> None:
        self._follower.connected()

    @property
    def is_current(self) -> bool:
        return self._follower.is_current

    async def follow(self, take: Callable[[str, Stored], None]) -> None:
        self._take = take
        await self._follower.run()

    def _follow_one(self, message: Message) -> None:
        """Something was stored that we have not written, or not known to be stored yet."""
        key = self._bucket.key(message)
        self._keys.add(key)
        if message.data == self._writing.get(key):
            return
        if key == HEARTBEAT:
            self._take_heartbeat(message)
        elif (subject := self._subject(key)) is not None:
            self._take(subject, self._stored(subject, message))

    def _take_heartbeat(self, message: Message) -> None:
        if message.seq == self._heartbeat:
            return
        self._heartbeat = max(self._heartbeat, message.seq)
        if (heartbeat := read_message(message.data, Heartbeat)) is not None:
            self.on_heartbeat(heartbeat)

    async def _read_all(self, info: Info) -> int:
        """Take every key, and those that are gone; returns up to which revision."""
        keys: set[str] = set()
        reached, slices = 0, Slices(self._clock)
        async for key, message in self._bucket.entries():
            keys.add(key)
            reached = message.seq
            if key == HEARTBEAT:
                self._take_heartbeat(message)
            if (subject := self._subject(key)) is not None:
                self._take(subject, self._stored(subject, message))
            await slices.pause()
        gone = self._keys - keys if info.created == self._follower.position.created else ()
        self._keys = keys
        for key in gone:
            if (subject := self._subject(key)) is not None:
                self._take(subject, Stored(None, 0))
            await slices.pause()
        return reached

    def _subject(self, key: str) -> str | None:
        """The subject whose state a key holds."""
        if key.startswith("="):  # a heartbeat: no encoded subject looks like this
            return None
        try:
            return decode(key)
        except BadTail as bad:
            self._report(key, f"the key is not an encoded subject: {bad}")
            return None

    async def write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        key = encode(subject)
        self._writing[key] = value
        try:
            revision = await self._write(subject, value, expected, nonce)
        finally:
            self._writing.pop(key, None)
        self._wrote(key, revision)
        return revision

    def _wrote(self, key: str, revision: int) -> None:
        self._keys.add(key)
        self._follower.position.wrote(revision)

    async def _write(self, subject: str, value: bytes, expected: int, nonce: str) -> int:
        key = encode(subject)
        with suppress(Conflict):
            return await self._bucket.update(key, value, expected)
        message = await self._bucket.get(key)
        if message is not None and self._stored(subject, message).nonce == nonce:
            return message.seq
        if message is not None and expected == 0 and message.deleted:
            return await self._write(subject, value, message.seq, nonce)
        raise Conflict(subject)

    async def remove(self, subject: str, expected: int) -> None:
        try:
            await self._bucket.delete(encode(subject), expected)
        except Conflict:
            message = await self._bucket.get(encode(subject))
            if message is not None and not message.deleted:
                raise Conflict(subject) from None

    async def write_heartbeat(self, value: bytes) -> bool:
        self._writing[HEARTBEAT] = value
        try:
            revision = await self._update_heartbeat(value)
        except Conflict:
            return False
        finally:
            self._writing.pop(HEARTBEAT, None)
        self._heartbeat = revision
        self._wrote(HEARTBEAT, revision)
        return True

    async def _update_heartbeat(self, value: bytes) -> int:
        with suppress(Conflict):
            return await self._bucket.update(HEARTBEAT, value, self._heartbeat)
        message = await self._bucket.get(HEARTBEAT)
        if message is not None and message.seq > self._heartbeat:
            self._take_heartbeat(message)
            raise Conflict(HEARTBEAT)
        self._heartbeat = message.seq if message else 0  # the bucket is another one
        return await self._bucket.update(HEARTBEAT, value, self._heartbeat)

    async def write_last_heartbeat(self, value: bytes, instances: Collection[str]) -> bool:
        message = await self._bucket.get(HEARTBEAT)
        heartbeat = read_message(message.data, Heartbeat) if message else None
        if message is None or heartbeat is None or heartbeat.instance not in instances:
            return False
        with suppress(Conflict):
            await self._bucket.update(HEARTBEAT, value, message.seq)
            return True
        return False

    def _stored(self, subject: str, message: Message) -> Stored:
        if message.deleted:
            return Stored(None, message.seq)
        if (newer := newer_record(message.data, subject)) is not None:
            self._report_newer(encode(subject))
            return Stored(newer, message.seq, newer=True)
        if (parsed := record_of(message.data)) is None or parsed[0].subject != subject:
            self._report(encode(subject), "the value is not a state that this program writes; it is overwritten")
            return Stored(None, message.seq)
        return Stored(parsed[0], message.seq, parsed[1])

    def _report_newer(self, key: str) -> None:
        """Count what a newer version wrote, and log each key once."""
        self._count("state_newer")
        if self._newer.first(key):
            log.warning(
                "state.newer",
                key=shorten(key),
                because=f"its schema is above {SCHEMA}, the highest that this version can write",
                hint="it is left alone while a replica of the newer version runs; update this one too",
            )

    def _report(self, key: str, because: str) -> None:
        """Count what another program wrote here, and log each key once."""
        self._count("state_malformed")
        if self._malformed.first(key):
            log.warning("state.malformed", key=shorten(key), because=because, hint="ignored; check who may write there")
