"""Red envelopes from funding to settlement.

Invariants
- funded = opened + refunded + still open, at every commit; the money lies in the account `envelope:<id>` until a share or the refund
  moves it.
- The split is fixed and committed before the envelope is announced. A share goes to one viewer, a viewer gets one share.
- The engine decides who gets which share, and when time is up; SQL follows its outbox.
- A new life of the engine hands out nothing before it knows what SQL has given (`renew_room`). A share that was answered and is in neither
  the outbox nor SQL is void; the room hears that something was lost (`sales.reopened`), and who asks again hears what is true.

Not here: envelopes on a schedule, grabbing in a window with a public shuffle, conditions beyond "no staff".
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial

import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from app.core.errors import AppError
from app.core.ids import room_of, scoped_id
from app.core.runtime import at_text
from app.domains.envelopes import store
from app.domains.envelopes.rules import (
    SALT_BYTES,
    SHOWN_EVERY_MS,
    CommittedShare,
    EnvelopeDraft,
    SplitRefusal,
    commitment,
    decide_split,
    split,
)
from app.domains.envelopes.tables import Envelope, EnvelopeShare
from app.domains.inventory import service as inventory
from app.domains.wallet import service as wallet
from app.domains.wallet.rules import Movement, TransferOutcome
from app.protocol.channels import room_channel, user_channel
from app.protocol.codes import BAD_REQUEST, INSUFFICIENT_FUNDS, NOT_FOUND
from app.protocol.commands import EnvelopeGrabbed, GrabOutcome
from app.protocol.events import EnvelopeOpened, EnvelopeUpdated, ShareOpened
from app.protocol.views import EnvelopeView
from app.storage.gathering import gather_each, raise_first
from app.storage.intake import OutboxEntry, being_written, catch_up
from app.storage.life import being_renewed
from app.storage.work import Engines, Work

log = structlog.get_logger()

SWEEP_MAX = 100  # envelopes one pass of the worker's loop looks at


def account_of(envelope_id: str) -> str:
    return f"envelope:{envelope_id}"


def envelope_view(envelope: Envelope, state: str | None = None) -> EnvelopeView:
    """As viewers see it; what is left is what the last event said."""
    return EnvelopeView(
        id=envelope.id,
        title=envelope.title,
        state=state or envelope.state,
        mode=envelope.mode,
        total_minor=envelope.total_minor,
        currency=envelope.currency,
        count=envelope.share_count,
        remaining=envelope.shown_remaining,
        commitment=envelope.commitment,
        expires_at=at_text(round(envelope.expires_at.timestamp() * 1000)),
    )


# --- opening --------------------------------------------------------------------------------------------------------------------------


async def open_envelope(work: Work, draft: EnvelopeDraft, *, room_id: str, session_id: str, by: str) -> Envelope:
    """Takes the money from the room's account, splits it, commits to the split and announces it. Raises AppError when it cannot."""
    refusal = decide_split(draft.mode, draft.total_minor, draft.count)
    if refusal is not None:
        raise AppError(BAD_REQUEST, _SPLIT_TEXT[refusal])
    envelope_id = scoped_id(room_id, work.runtime.new_short_id())
    amounts = split(draft.mode, draft.total_minor, draft.count, work.runtime.rng)
    shares = [
        CommittedShare(position, amount, work.runtime.token_bytes(SALT_BYTES).hex()) for position, amount in enumerate(amounts, start=1)
    ]
    envelope = Envelope(
        id=envelope_id,
        room_id=room_id,
        session_id=session_id,
        title=draft.title,
        mode=draft.mode,
        total_minor=draft.total_minor,
        currency=work.engines.settings.currency,
        share_count=draft.count,
        commitment=commitment(envelope_id, shares),
        state="open",
        remaining=draft.count,
        shown_remaining=draft.count,
        shown_at=work.now,
        ended_by="",
        opened_minor=0,
        refunded_minor=0,
        settled_at=None,
        opened_by=by,
        opened_at=work.now,
        expires_at=datetime.fromtimestamp((await work.engines.sales_now_ms(room_id) + draft.ttl_s * 1000) / 1000, UTC),
    )
    await _fund(work, envelope)
    await store.insert_envelope(work.session, envelope, shares)
    work.emit(room_id, [room_channel(room_id)], EnvelopeOpened(at=work.at, envelope=envelope_view(envelope)))
    await work.audit(
        room_id,
        by,
        "envelope.opened",
        envelope_id,
        total_minor=draft.total_minor,
        count=draft.count,
        mode=draft.mode,
        commitment=envelope.commitment,
    )
    return envelope


_SPLIT_TEXT = {
    SplitRefusal.TOO_SMALL: "total_minor: every share needs at least 1 minor unit; raise the total or lower the count",
    SplitRefusal.NOT_EVEN: "total_minor: equal shares would leave a rest; choose a multiple of the count, or the mode `lucky`",
}


async def _fund(work: Work, envelope: Envelope) -> None:
    outcome = await wallet.transfer(
        work,
        transfer_id=f"fund:{envelope.id}",
        from_account=f"room:{envelope.room_id}",
        to_account=account_of(envelope.id),
        amount_minor=envelope.total_minor,
        currency=envelope.currency,
        kind="envelope.funded",
        reference=envelope.id,
    )
    if outcome is TransferOutcome.INSUFFICIENT_FUNDS:
        raise AppError(INSUFFICIENT_FUNDS, "the room's account holds less than this envelope: book a deposit first")


async def on_envelope_opened(work: Work, room_id: str, events: list[EnvelopeOpened]) -> None:
    """Makes the shares grabbable before viewers hear of them."""
    await inventory.open_room(work, room_id)
    for event in events:
        await _load(work.engines, work.session, event.envelope.id)


async def renew_room(work: Work, room_id: str, life: str) -> bool:
    """Compares the envelopes of a closed room, whose outbox is read to the end, with SQL. False: the engine has restarted once more."""
    engines, now_ms = work.engines, await work.engines.sales_now_ms(room_id)
    since = datetime.fromtimestamp(now_ms / 1000 - engines.settings.hot_keys_ttl_s, UTC)
    for envelope in await store.lock_remembered(work.session, room_id, since):
        if envelope.state == "open" and not envelope.remaining:  # the word that it is emptied was in what is lost
            await _settle(work, envelope, by="emptied", actor="")
        shares = await store.list_shares(work.session, envelope.id) if envelope.state == "open" else ()
        if await store.load_engine(engines, envelope, shares, now_ms, renewed=life) == "stale":
            return False
    return True


async def list_rooms_in_play(session: AsyncSession) -> Sequence[str]:
    """Rooms with an open envelope."""
    return await store.list_rooms_in_play(session)


async def _load(engines: Engines, session: AsyncSession, envelope_id: str) -> bool:
    """False when the envelope is unknown or over. Harmless when the engine has it, and when its room is closed."""
    envelope = await store.fetch_envelope(session, envelope_id)
    if envelope is None or envelope.state != "open":
        return False
    await store.load_engine(engines, envelope, await store.list_shares(session, envelope_id), await engines.sales_now_ms(envelope.room_id))
    return True


# --- grabbing -------------------------------------------------------------------------------------------------------------------------


async def grab(engines: Engines, *, envelope_id: str, viewer_id: str, key: str, is_staff: bool = False) -> EnvelopeGrabbed:
    """One viewer's attempt, through the room's group commit. Raises AppError `not_found` for an unknown envelope."""
    attempt = store.Grab(envelope_id, viewer_id, key, "staff" if is_staff else "")
    group = engines.group_commit("grab", store.grab_batch)
    room_id = room_of(envelope_id)
    if not room_id:
        raise AppError(NOT_FOUND, "no such envelope")
    grabbed = await group.submit(room_id, attempt, viewer=viewer_id)
    if grabbed.word == "missing":
        async with engines.sql.read() as session:
            known_open = await _load(engines, session, envelope_id)
        if known_open:
            grabbed = await group.submit(room_id, attempt, viewer=viewer_id)
    if grabbed.word == "missing":
        grabbed = await _grab_from_sql(engines, attempt)
    return EnvelopeGrabbed(
        outcome=GrabOutcome(grabbed.word), envelope=envelope_id, amount_minor=grabbed.amount_minor, position=grabbed.position
    )


async def _grab_from_sql(engines: Engines, attempt: store.Grab) -> store.Grabbed:
    """The answer for an envelope whose hot keys are gone: it is over, and a viewer who had a share still learns of it."""
    async with engines.sql.read() as session:
        if await store.fetch_envelope(session, attempt.envelope_id) is None:
            raise AppError(NOT_FOUND, "no such envelope")
        share = await store.fetch_share_of(session, attempt.envelope_id, attempt.viewer_id)
    if share is None:
        return store.Grabbed("closed", None, None)
    return store.Grabbed("already", share.amount_minor, share.position)


async def take_in_shares(work: Work, entries: Sequence[OutboxEntry]) -> None:
    """Intake of `share.opened`: rows, one transfer a share, the viewer's event, and the room's at most once a second."""
    wanted = [(entry.data["envelope"], int(entry.data["position"]), entry.data["viewer"]) for entry in entries]
    envelopes = await store.lock_envelopes(work.session, sorted({envelope_id for envelope_id, _, _ in wanted}))
    taken = await store.take_shares(work.session, wanted, work.now)
    if len(taken) != len(wanted):
        log.warning("shares that SQL had given before were left out", asked=len(wanted), taken=len(taken))
    outcomes = await wallet.transfer_all(work, [_share_movement(envelopes[share.envelope_id], share) for share in taken])
    if TransferOutcome.INSUFFICIENT_FUNDS in outcomes:
        raise ValueError("an envelope's escrow holds less than its shares")
    for share in taken:
        envelope = envelopes[share.envelope_id]
        envelope.remaining -= 1
        envelope.opened_minor += share.amount_minor
        opened = ShareOpened(at=work.at, envelope=envelope.id, amount_minor=share.amount_minor, currency=envelope.currency)
        work.emit(envelope.room_id, [user_channel(share.viewer_id)], opened)
    for envelope in envelopes.values():
        _show(work, envelope)


def _share_movement(envelope: Envelope, share: store.Taken) -> Movement:
    return Movement(
        transfer_id=f"share:{envelope.id}:{share.viewer_id}",
        from_account=account_of(envelope.id),
        to_account=f"viewer:{share.viewer_id}",
        amount_minor=share.amount_minor,
        currency=envelope.currency,
        kind="envelope.share",
        reference=envelope.id,
    )


def _show(work: Work, envelope: Envelope) -> None:
    """Tells the room what is left, unless it was told less than a second ago; the sweep tells the last of it."""
    if envelope.remaining == envelope.shown_remaining or (work.now - envelope.shown_at).total_seconds() * 1000 < SHOWN_EVERY_MS:
        return
    _emit_update(work, envelope, envelope.state)


def _emit_update(work: Work, envelope: Envelope, state: str) -> None:
    envelope.shown_remaining, envelope.shown_at = envelope.remaining, work.now
    view = envelope_view(envelope, state)
    work.emit(envelope.room_id, [room_channel(envelope.room_id)], EnvelopeUpdated(at=work.at, envelope=view))


# --- ending ---------------------------------------------------------------------------------------------------------------------------


async def take_in_closed(work: Work, entries: Sequence[OutboxEntry]) -> None:
    """Intake of `envelope.closed`, which comes behind every share: returns the rest, settles, publishes the split."""
    envelopes = await store.lock_envelopes(work.session, sorted({entry.data["envelope"] for entry in entries}))
    for entry in entries:
        envelope = envelopes[entry.data["envelope"]]
        if envelope.state == "open":
            await _settle(work, envelope, by=entry.data["by"], actor=entry.data["actor"])


async def _settle(work: Work, envelope: Envelope, *, by: str, actor: str) -> None:
    rest = envelope.total_minor - envelope.opened_minor
    if rest:
        await wallet.transfer(
            work,
            transfer_id=f"refund:{envelope.id}",
            from_account=account_of(envelope.id),
            to_account=f"room:{envelope.room_id}",
            amount_minor=rest,
            currency=envelope.currency,
            kind="envelope.refunded",
            reference=envelope.id,
        )
    envelope.refunded_minor = rest
    envelope.state, envelope.ended_by, envelope.settled_at = "settled", by, work.now
    _emit_update(work, envelope, "emptied" if by == "emptied" else "expired")
    _emit_update(work, envelope, "settled")
    await work.audit(
        envelope.room_id,
        actor or "system",
        "envelope.settled",
        envelope.id,
        ended_by=by,
        opened_minor=envelope.opened_minor,
        refunded_minor=rest,
    )


async def end_envelope(engines: Engines, envelope_id: str, *, by: str) -> Envelope:
    """Ends an envelope now and settles it. Ending one that is over changes nothing. Raises AppError while its room is renewed."""
    if await close_envelope(engines, envelope_id, actor=by) == "frozen":
        async with engines.sql.read() as session:
            envelope = await fetch_envelope(session, envelope_id)
        if envelope.state != "settled":
            raise being_renewed()
        return envelope  # what is over in SQL stays so, whatever the engine knows
    is_read = await catch_up(engines, room_of(envelope_id))
    async with engines.sql.read() as session:
        envelope = await fetch_envelope(session, envelope_id)
    if envelope.state != "settled" and not is_read:
        raise being_written()
    return envelope


async def close_envelope(engines: Engines, envelope_id: str, *, actor: str = "") -> str:
    """Closes it in the engine; settlement follows by intake. Without an actor only if its time is up. A word of close.lua."""
    word = await store.close_engine(engines, envelope_id, actor)
    if word == "missing":
        async with engines.sql.read() as session:
            known_open = await _load(engines, session, envelope_id)
        if known_open:
            word = await store.close_engine(engines, envelope_id, actor)
    return word


async def end_due_envelopes(engines: Engines) -> None:
    """A loop of the worker: closes what has run out, and tells rooms what the once-a-second rule kept back."""
    async with engines.sql.read() as session:
        due = await store.list_due(session, datetime.fromtimestamp(await engines.sales_now_ms() / 1000, UTC), SWEEP_MAX)
        unshown = await store.list_unshown(session, engines.runtime.now(), SWEEP_MAX)

    async def show(envelope_id: str) -> None:
        async with engines.work() as work:
            envelope = (await store.lock_envelopes(work.session, [envelope_id]))[envelope_id]
            if envelope.state == "open":
                _show(work, envelope)

    ended, shown = await gather_each(due, partial(close_envelope, engines)), await gather_each(unshown, show)
    raise_first([*ended, *shown])


# --- reading --------------------------------------------------------------------------------------------------------------------------


async def fetch_envelope(session: AsyncSession, envelope_id: str) -> Envelope:
    """Raises AppError `not_found`."""
    envelope = await store.fetch_envelope(session, envelope_id)
    if envelope is None:
        raise AppError(NOT_FOUND, "no such envelope")
    return envelope


async def list_shares(session: AsyncSession, envelope: Envelope) -> Sequence[EnvelopeShare]:
    """The whole split with its salts; nothing before it is settled."""
    return await store.list_shares(session, envelope.id) if envelope.state == "settled" else []


async def list_envelopes(
    session: AsyncSession, session_id: str, *, limit: int, before: tuple[datetime, str] | None = None
) -> Sequence[Envelope]:
    return await store.list_of_session(session, session_id, limit=limit, before=before)


async def snapshot_envelopes(engines: Engines, room_id: str) -> list[EnvelopeView]:
    """Envelopes that are open now. An `envelope.updated` with the state `settled` takes one out again."""
    async with engines.sql.read() as session:
        return [envelope_view(envelope) for envelope in await store.list_open(session, room_id)]
