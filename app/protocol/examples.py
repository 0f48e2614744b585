"""One example of every event and of every reply, for the documents. They tell one show: a flash sale of honey in a tea grower's room.

Each is made from its class, so an example cannot have a field that the wire does not have; a test keeps the tables complete.
Requests have theirs beside the command that they belong to (`Command.example`).
"""

from app.protocol import commands, events, order_commands, return_commands
from app.protocol.commands import ChatLine, Reply
from app.protocol.events import Event
from app.protocol.views import DrawView, EnvelopeView, OfferView, PrizeView, RoomState, RoomView, SessionView, UpcomingView, Winner

_AT = "2026-10-02T12:00:05.120Z"
_ROOM = "k7qz0m4w2a"
_SESSION = "k7qz0m4w2a-7f3q8z1m2n"
_OFFER = "k7qz0m4w2a-8c1v5n3b7z"
_HOLD = "k7qz0m4w2a-0f3a9c51d2e87b6a4c10"
_DRAW = "k7qz0m4w2a-9d2w6r1ybn"
_ENVELOPE = "k7qz0m4w2a-3v8n1c5xtd"
_MESSAGE = "k7qz0m4w2a-5c1f0b7a9d3e4f60a1b2"
_VIEWER = "user-42"
_REQUEST = "k7qz0m4w2a-61b8d0f3a7c29e5b4d12"
_HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

_room = RoomView(id=_ROOM, title="安溪茶山", host="staff-lin", description="Tea and honey from the mountain")
_session = SessionView(id=_SESSION, title="Autumn flash sale", state="live", went_live_at="2026-10-02T12:00:00.000Z")
_offer = OfferView(
    id=_OFFER,
    name="Flash honey 500 g",
    price_minor=1990,
    list_price_minor=3990,
    currency="CNY",
    total=60,
    limit_per_viewer=1,
    state="listed",
    village="Anxi",
    unit="jar",
)
_line = ChatLine(id=_MESSAGE, viewer=_VIEWER, name="王小雨", text="这个蜂蜜甜吗？", at=_AT, level=3)
_prize = PrizeView(kind="money", name="10 yuan", count=3, amount_minor=1000)
_draw = DrawView(
    id=_DRAW,
    title="Spring tea draw",
    state="open",
    prizes=[_prize],
    condition="keyword",
    keyword="spring tea",
    commitment=_HASH,
    entrants=128,
)
_envelope = EnvelopeView(
    id=_ENVELOPE,
    title="Thank you",
    state="open",
    mode="lucky",
    total_minor=8800,
    currency="CNY",
    count=20,
    remaining=20,
    commitment=_HASH,
)
_closed = DrawView(id=_DRAW, title="Spring tea draw", state="closed", prizes=[_prize], condition="everyone", entrants=128)
_drawn = DrawView(id=_DRAW, title="Spring tea draw", state="drawn", prizes=[_prize], condition="everyone", entrants=128)

_EVENTS: tuple[Event, ...] = (
    events.RoomUpdated(at=_AT, room=_room),
    events.SessionScheduled(at=_AT, room=_ROOM, session=_SESSION, title="Autumn flash sale", starts_at="2026-10-02T12:00:00.000Z"),
    events.SessionWentLive(at=_AT, room=_ROOM, session=_SESSION, title="Autumn flash sale"),
    events.SessionInterrupted(at=_AT, room=_ROOM, session=_SESSION, reason="the picture froze"),
    events.SessionResumed(at=_AT, room=_ROOM, session=_SESSION),
    events.SessionEnded(at=_AT, room=_ROOM, session=_SESSION),
    events.SessionArchived(at=_AT, room=_ROOM, session=_SESSION),
    events.OfferListed(at=_AT, offer=_offer),
    events.OfferUpdated(at=_AT, offer=_offer, reason="for the first hour"),
    events.OfferSoldOut(at=_AT, offer=_OFFER),
    events.OfferRestocked(at=_AT, offer=_OFFER),
    events.OfferWithdrawn(at=_AT, offer=_OFFER, reason="broken jars"),
    events.OfferPinned(at=_AT, offer=_OFFER),
    events.NoticePinned(at=_AT, text="全场包邮"),
    events.SlowModeSet(at=_AT, interval_s=10),
    events.ChatDeleted(at=_AT, message=_MESSAGE, viewer=_VIEWER),
    events.PurchaseAnnounced(at=_AT, offer=_OFFER, name="王**", quantity=1),
    events.SalesFrozen(at=_AT, room=_ROOM),
    events.SalesReopened(at=_AT, room=_ROOM, epoch=0, lost=False),
    events.DrawOpened(at=_AT, draw=_draw),
    events.DrawClosed(at=_AT, draw=_closed, entrants_digest=_HASH),
    events.DrawDrawn(at=_AT, draw=_drawn, winners=[Winner(viewer=_VIEWER, name="王**", prize="10 yuan")], seed=_HASH),
    events.DrawCancelled(at=_AT, draw=_closed, reason="the rules were wrong"),
    events.EnvelopeOpened(at=_AT, envelope=_envelope),
    events.EnvelopeUpdated(at=_AT, envelope=_envelope),
    events.Pulse(at=_AT, room=_ROOM, viewers=1840, likes=52310, stock={_OFFER: 17}, peak_viewers=2012, said=140, shown=20),
    events.ChatMessage(at=_AT, message=_line),
    events.HoldPlaced(at=_AT, hold=_HOLD, offer=_OFFER, quantity=1, expires_at="2026-10-02T12:05:05.120Z"),
    events.HoldEnded(at=_AT, hold=_HOLD, offer=_OFFER, outcome="expired"),
    events.WaitEnded(at=_AT, wait=_HOLD, offer=_OFFER, outcome="closed"),
    events.OrderChanged(
        at=_AT, order=_HOLD, session=_SESSION, offer=_OFFER, state="shipped", carrier="SF Express", tracking="SF1234567890"
    ),
    events.OrderPlacedEvent(
        at=_AT,
        order=_HOLD,
        session=_SESSION,
        offer=_OFFER,
        viewer=_VIEWER,
        quantity=1,
        amount_minor=1990,
        currency="CNY",
        pay_by="2026-10-02T12:20:05.120Z",
    ),
    events.OrderPaid(at=_AT, order=_HOLD, session=_SESSION, offer=_OFFER, viewer=_VIEWER, quantity=1, amount_minor=1990, currency="CNY"),
    events.PaymentStarted(at=_AT, order=_HOLD, payment="pay-1", provider="stripe", client_secret="pi_3Q_secret_a1b2"),  # noqa: S106 - not a secret of anybody
    events.PaymentDeclined(at=_AT, order=_HOLD, payment="pay-1", reason="insufficient funds"),
    events.RefundSettled(at=_AT, refund="refund-1", order=_HOLD, state="succeeded", amount_minor=1990, currency="CNY"),
    events.ReturnRequestedEvent(
        at=_AT,
        request=_REQUEST,
        order=_HOLD,
        viewer=_VIEWER,
        kind="return_goods",
        reason="damaged",
        quantity=1,
        amount_minor=1990,
        currency="CNY",
        due_at="2026-10-05T12:00:05.120Z",
    ),
    events.ReturnChanged(at=_AT, request=_REQUEST, order=_HOLD, state="approved", due_at="2026-10-12T12:00:05.120Z"),
    events.DisputeOpened(at=_AT, dispute="dispute-1", order=_HOLD, amount_minor=1990, currency="CNY", reason="not_received"),
    events.DisputeClosed(at=_AT, dispute="dispute-1", order=_HOLD, outcome="won", amount_minor=1990),
    events.DrawWon(at=_AT, draw=_DRAW, prize=_prize),
    events.ShareOpened(at=_AT, envelope=_ENVELOPE, amount_minor=366, currency="CNY"),
    events.ChatMuted(at=_AT, room=_ROOM, viewer=_VIEWER, until="2026-10-02T12:10:05.120Z", reason="insults"),
    events.ViewerBanned(at=_AT, room=_ROOM, viewer=_VIEWER, reason="fraud"),
    events.ReviewRequested(at=_AT, message=_line, words=["最甜"]),
    events.ReviewResolved(at=_AT, message=_MESSAGE, approved=True, by="staff-mei"),
    events.WordsChanged(at=_AT, room=_ROOM),
    events.FiguresUpdated(at=_AT, session=_SESSION, figures={"orders": 43, "paid_minor": 85570}),
    events.CueAdvanced(at=_AT, session=_SESSION, cue="k7qz0m4w2a-2b6t9x4c1v", title="Honey"),
    events.AlertRaised(at=_AT, word="payment_mismatch", text="a payment of 19.80 for an order of 19.90"),
)

EVENT_EXAMPLES: dict[type[Event], Event] = {type(event): event for event in _EVENTS}

_order = order_commands.OrderView(
    id=_HOLD,
    room=_ROOM,
    session=_SESSION,
    offer=_OFFER,
    name="Flash honey 500 g",
    quantity=1,
    price_minor=1990,
    amount_minor=1990,
    currency="CNY",
    state="paid",
    placed_at=_AT,
    paid_at="2026-10-02T12:01:10.000Z",
)

_return = return_commands.ReturnView(
    id=_REQUEST,
    order=_HOLD,
    room=_ROOM,
    kind="return_goods",
    reason="damaged",
    quantity=1,
    amount_minor=1990,
    currency="CNY",
    state="requested",
    text="The jar was broken",
    evidence=[return_commands.Evidence(url="https://shop.example/photos/1.jpg", sha256=_HASH)],
    requested_at=_AT,
    due_at="2026-10-05T12:00:05.120Z",
)

_REPLIES: tuple[Reply | RoomState, ...] = (
    commands.Done(),
    commands.ChatSent(outcome=commands.ChatOutcome.SENT, message=_MESSAGE),
    commands.ChatLines(messages=[_line]),
    RoomState(
        now=_AT,
        room=_room,
        session=_session,
        upcoming=[UpcomingView(session="k7qz0m4w2a-1q2w3e4r5t", title="Winter oranges", starts_at="2026-12-01T12:00:00.000Z")],
        offers=[_offer],
        pin=_OFFER,
        likes=52310,
        viewers=1840,
        stock={_OFFER: 17},
        notice="全场包邮",
        slow_mode_s=0,
        draws=[_draw],
        envelopes=[_envelope],
    ),
    commands.Reserved(
        outcome=commands.ReserveOutcome.HELD,
        offer=_OFFER,
        quantity=1,
        hold=_HOLD,
        expires_at="2026-10-02T12:05:05.120Z",
        price_minor=1990,
    ),
    commands.Released(outcome=commands.ReleaseOutcome.RELEASED, hold=_HOLD),
    commands.Waiting(outcome=commands.WaitOutcome.WAITING, offer=_OFFER, quantity=1, wait=_HOLD, ahead=4),
    commands.Left(outcome=commands.LeaveOutcome.LEFT, wait=_HOLD),
    order_commands.OrderPlaced(
        outcome=order_commands.PlaceOutcome.PLACED, order=_HOLD, amount_minor=1990, currency="CNY", pay_by="2026-10-02T12:20:05.120Z"
    ),
    order_commands.OrderCancelled(outcome=order_commands.CancelOutcome.CANCELLED, order=_HOLD),
    order_commands.OrderPaying(outcome=order_commands.PayOutcome.PENDING, order=_HOLD, payment="pay-1", provider="sandbox"),
    order_commands.OrderAddressed(outcome=order_commands.SetAddressOutcome.SET, order=_HOLD),
    _order,
    order_commands.OrderPage(orders=[_order]),
    return_commands.ReceiptConfirmed(outcome=return_commands.ReceiptOutcome.CONFIRMED, order=_HOLD),
    return_commands.ReturnRequested(
        outcome=return_commands.ReturnOutcome.REQUESTED,
        order=_HOLD,
        request=_REQUEST,
        amount_minor=1990,
        currency="CNY",
        due_at="2026-10-05T12:00:05.120Z",
    ),
    return_commands.ReturnStepped(outcome=return_commands.ReturnStepOutcome.DONE, request=_REQUEST, state="shipped_back"),
    _return,
    return_commands.ReturnPage(requests=[_return]),
    commands.WalletBalance(currency="CNY", available_minor=1366),
    commands.EnvelopeGrabbed(outcome=commands.GrabOutcome.OPENED, envelope=_ENVELOPE, amount_minor=366, position=7),
    commands.DrawEntered(outcome=commands.EnterOutcome.ENTERED, draw=_DRAW, entrants=128),
)

REPLY_EXAMPLES: dict[type, Reply | RoomState] = {type(reply): reply for reply in _REPLIES}
