"""Hints are summed into lines of at most one second, within the stated error."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nats_backpressure.core.signals.quantiles import Quantiles
from nats_backpressure.protocol.values import ConsumerKey
from nats_backpressure.recording import hint_batch as hints
from nats_backpressure.recording.decoder import (
    HintsDecoded,
    ReadingDecoded,
)
from nats_backpressure.recording.encoder import Encoder
from nats_backpressure.recording.hint_batch import BATCH_SECONDS
from nats_backpressure.runtime.observations import (
    AckSeen,
    ApiLimited,
    MaxDeliveries,
    Nak,
    Terminated,
)
from tests.recording.observations import KEY, back, now, sample, seen
from tests.support.recordings import written


class TestHints:
    def decoded_hints(self, *hints: Any, every: float = 0.0) -> list[HintsDecoded]:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample()), now(0))
        at = 0.0
        for hint in hints:
            at += every
            lines += writer.add_hint(hint, now(at))
        return [decoded for decoded in back(lines + writer.flush()) if isinstance(decoded, HintsDecoded)]

    def test_hints_are_summed_by_kind(self) -> None:
        (decoded,) = self.decoded_hints(Nak(KEY), Nak(KEY), MaxDeliveries(KEY), Terminated(KEY), Terminated(KEY))
        assert (decoded.key, decoded.naks, decoded.dropped, decoded.acks) == (KEY, 2, 3, ())

    def test_hints_are_written_before_the_next_reading(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample(0)), now(0)) + writer.add_hint(Nak(KEY), now(0.05))
        lines += writer.encode_reading(seen(sample(0.1)), now(0.1))
        assert [type(decoded) for decoded in back(lines)] == [ReadingDecoded, HintsDecoded, ReadingDecoded]

    def test_hints_about_unread_consumers_or_without_counts_are_dropped(self) -> None:
        assert self.decoded_hints(Nak(ConsumerKey("S", "other")), Nak(ConsumerKey("T", "c")), ApiLimited()) == []

    def test_a_line_has_at_most_one_second_of_hints(self) -> None:
        decoded = self.decoded_hints(*[Nak(KEY)] * 50, every=0.1)
        assert [batch.naks for batch in decoded] == pytest.approx([BATCH_SECONDS * 10] * 5, abs=1)
        assert sum(batch.naks for batch in decoded) == 50

    def test_ten_thousand_acks_a_second_need_less_than_10_kb(self) -> None:
        writer = Encoder()
        lines = writer.encode_reading(seen(sample()), now(0))
        for n in range(10_000):
            lines += writer.add_hint(AckSeen(KEY, 0.001 + n / 10_000, 1, now(0)), now(n / 10_000))
        assert len(written(writer.flush())) < 10_000

    def test_more_ack_times_than_a_line_may_have_fill_several_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hints, "ACK_TIMES_LIMIT", 10)
        decoded = self.decoded_hints(*[AckSeen(KEY, 1.1**n, 1, now(0)) for n in range(25)])
        assert [len(batch.acks) for batch in decoded] == [10, 10, 5]

    @given(st.lists(st.floats(1e-6, 1e5), min_size=20, max_size=200))
    def test_quantiles_stay_within_two_percent(self, seconds: list[float]) -> None:
        """The stated error of the product page, of window and recording together."""
        again = Quantiles()
        for batch in self.decoded_hints(*[AckSeen(KEY, s, 1, now(0)) for s in seconds]):
            for value, deliveries, n in batch.acks:
                assert deliveries == 1
                for _ in range(n):
                    again.add(0.0, value)
        decoded = again.at(0.0, 0.5, 0.95)
        assert decoded is not None
        for share, value in zip((0.5, 0.95), decoded, strict=True):
            exact = sorted(seconds)[int(share * (len(seconds) - 1))]
            assert value == pytest.approx(exact, rel=0.02)
