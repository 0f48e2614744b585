"""Draws, envelopes and waiting lines in an engine that lacks the last of what was acknowledged: one winner a prize, one viewer a share, one
line, and whoever trusts nobody computes the same.
"""

from dataclasses import dataclass
from typing import Any

import pytest

from app.domains.envelopes import service as envelopes
from app.domains.envelopes.rules import CommittedShare, EnvelopeDraft, Mode, commitment
from app.domains.inventory import renewal
from app.domains.inventory import service as inventory
from app.domains.lottery import service as lottery
from app.domains.lottery.rules import Condition, DrawDraft, PrizeDraft, PrizeKind
from app.domains.wallet import service as wallet
from app.protocol.channels import room_channel
from tests.domains.lottery.test_service import recompute
from tests.faults.show import Show, connected, master_and_replica, restart
from tests.support.auditor.ledger import audit_ledger
from tests.support.runtime import TestRuntime
from tests.support.shelf import Shelf

pytestmark = pytest.mark.slow


@dataclass(slots=True)
class Play:
    """A draw, an envelope and a waiting line of a show. `first` was there before the tail that an engine lacks, `known` is of the tail and
    in SQL, `lost` of the tail and in no other place."""

    show: Show
    draw: str
    envelope: str
    offer: str

    @classmethod
    async def open(cls, show: Show) -> "Play":
        room, session = show.room.room_id, show.room.session_id
        async with show.engines.work() as work:
            await wallet.deposit(work, room_id=room, amount_minor=1_500, currency="CNY", reference="bank-1", by="op")
        prizes = (
            PrizeDraft(kind=PrizeKind.MONEY, name="Money", count=2, amount_minor=250),
            PrizeDraft(kind=PrizeKind.PRODUCT, name="Cups", count=1, offer_id=show.room.offer_ids[1]),
        )
        wanted = DrawDraft(title="Tea", condition=Condition.EVERYONE, keyword="", prizes=prizes, duration_s=None)
        draw = await lottery.open_draw(show.engines, wanted, room_id=room, session_id=session, by="host-mei")
        async with show.engines.work() as work:
            share = EnvelopeDraft(title="Harvest", mode=Mode.LUCKY, total_minor=1_000, count=6, ttl_s=600)
            envelope = await envelopes.open_envelope(work, share, room_id=room, session_id=session, by="host-mei")
        offer = await show.shelf.offer(total=1, limit=2, selling_policy="waitlist")
        await show.shelf.order(offer, viewer="holder")
        return cls(show, draw, envelope.id, offer)

    async def take_part(self, viewer: str) -> tuple[Any, ...]:
        """Enters, grabs and waits, or does so again with the same keys; what is answered."""
        engines = self.show.engines
        entered = await lottery.enter(engines, draw_id=self.draw, viewer_id=viewer, name=viewer, key="e")
        grabbed = await envelopes.grab(engines, envelope_id=self.envelope, viewer_id=viewer, key="g")
        waits = await inventory.wait(engines, viewer_id=viewer, offer_id=self.offer, quantity=1, key="w")
        return entered.outcome.value, grabbed.outcome.value, grabbed.position, waits.outcome.value, waits.ahead

    async def end(self) -> set[str]:
        """Draws, settles and returns who took part; by what is published the same winners and the same split are computed again."""
        engines = self.show.engines
        await lottery.close_draw(engines, self.draw, by="host-mei")
        await envelopes.end_envelope(engines, self.envelope, by="host-mei")
        await self.show.work()
        async with engines.sql.read() as session:
            draw = await lottery.fetch_draw(session, self.draw)
            leaves, winners = await lottery.read_outcome(session, draw)
            envelope = await envelopes.fetch_envelope(session, self.envelope)
            shares = await envelopes.list_shares(session, envelope)
        entrants = [bytes.fromhex(leaf.pseudonym + leaf.evidence_hash) for leaf in leaves]
        assert recompute(draw.rules_json, entrants, draw.seed) == (draw.entrants_root, [winner.entrant_index for winner in winners])
        assert len(winners) == 3
        split = [CommittedShare(share.position, share.amount_minor, share.salt) for share in shares]
        assert commitment(envelope.id, split) == envelope.commitment
        assert [share.viewer_id for share in shares if share.viewer_id] == ["first", "known", "new", "lost"]
        assert await audit_ledger(engines) == await self.show.audit() == []
        return {leaf.viewer_id for leaf in leaves}

    async def go_on(self) -> None:
        """In the engine that has taken the place of the other."""
        assert (await self.take_part("new"))[:2] == ("frozen", "frozen")
        await self.show.work()
        assert await self.take_part("first") == ("entered", "opened", 1, "waiting", 0)
        assert await self.take_part("known") == ("entered", "opened", 2, "waiting", 1)
        (reopened,) = await self.show.told(room_channel(self.show.room.room_id), "sales.reopened")
        assert reopened["lost"]
        assert await self.take_part("new") == ("entered", "opened", 3, "waiting", 2)
        assert await self.take_part("lost") == ("entered", "opened", 4, "waiting", 3), "void until it was asked for again"
        assert await self.end() == {"first", "known", "new", "lost"}


async def test_draws_envelopes_and_lines_in_an_engine_that_is_empty(show: Show) -> None:
    play = await Play.open(show)
    for viewer in ("first", "known"):
        await play.take_part(viewer)
    await show.work()
    await play.take_part("lost")
    restart(show.servers, empty=True)
    await play.go_on()


async def test_draws_envelopes_and_lines_in_a_replica_that_lagged(show: Show, runtime: TestRuntime) -> None:
    with master_and_replica(show) as (master, replica):
        old, new = connected(show, runtime, master.url), connected(show, runtime, replica.url)
        try:
            await new.sales.execute_command("REPLICAOF", "127.0.0.1", master.port)
            await renewal.recall_rooms(old)
            await renewal.renew_room(old, show.room.room_id)
            before = Show(old, show.servers, show.room, Shelf(old, show.room.room_id, show.room.session_id))
            play = await Play.open(before)
            await play.take_part("first")
            assert await old.sales.execute_command("WAIT", 1, 10_000) == 1
            await new.sales.execute_command("REPLICAOF", "NO", "ONE")  # what comes now is the tail that the replica lacks
            await play.take_part("known")
            await before.work()
            await play.take_part("lost")
            play.show = Show(new, show.servers, show.room, Shelf(new, show.room.room_id, show.room.session_id))
            await play.go_on()
        finally:
            await old.close()
            await new.close()
