"""A GrantTracker whose offers are all accepted at once."""

from __future__ import annotations

from nats_backpressure.core.admission.asked import Asked
from nats_backpressure.core.admission.grant_shares import Share
from nats_backpressure.core.admission.pull_grants import Grant, GrantTracker
from nats_backpressure.core.model.member import Member


class GrantingTracker(GrantTracker):
    @property
    def pause(self) -> float:
        """Seconds without a pull beyond the room, as the last one found nobody dead."""
        return self._recovery.pause

    def grant(
        self,
        member: Member,
        n: int,
        asker: str,
        now: float,
        replicas: int,
        jitter: float,
        held: int | None = None,
        unused: int = 0,
        lost: int = 0,
        ahead: int = 0,
    ) -> Grant:
        return self.grant_to(Asked(n, asker, unused, held, lost, ahead), member, now, jitter, replicas)

    def grant_to(self, asked: Asked, member: Member, now: float, jitter: float, replicas: int = 1) -> Grant:
        offer = self.offer(member, asked, now, Share(replicas, 0), jitter)
        if offer.n:
            self.add(offer.n, asked.requester, now)
        return offer
