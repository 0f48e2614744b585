"""What there is on the wire, in one place: which kind of channel carries which events, who may have it, and how SDKs take each close code.

The AsyncAPI document, the tables in the docs and the check at the point of emission are all made from these rows. A service that emits an
event on a channel that its row does not name fails at once (`Work.emit`), so no event can be missing from the documents.
Owns no behaviour: lanes and names of channels are in channels.py, the events themselves in events.py.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from app.protocol import events
from app.protocol.channels import LANE_OF, Kind, Lane, parse_channel
from app.protocol.codes import CloseCode
from app.protocol.events import Event

_STAGE_AND_TEAM = (Kind.ROOM, Kind.STAFF)
_VIEWER_AND_TEAM = (Kind.USER, Kind.STAFF)

CARRIED_BY: dict[type[Event], tuple[Kind, ...]] = {
    events.RoomUpdated: _STAGE_AND_TEAM,
    events.SessionScheduled: _STAGE_AND_TEAM,
    events.SessionWentLive: _STAGE_AND_TEAM,
    events.SessionInterrupted: _STAGE_AND_TEAM,
    events.SessionResumed: _STAGE_AND_TEAM,
    events.SessionEnded: _STAGE_AND_TEAM,
    events.SessionArchived: (Kind.STAFF,),
    events.OfferListed: _STAGE_AND_TEAM,
    events.OfferUpdated: _STAGE_AND_TEAM,
    events.OfferSoldOut: (Kind.ROOM,),
    events.OfferRestocked: (Kind.ROOM,),
    events.OfferWithdrawn: _STAGE_AND_TEAM,
    events.OfferPinned: _STAGE_AND_TEAM,
    events.NoticePinned: (Kind.ROOM,),
    events.SlowModeSet: (Kind.ROOM,),
    events.ChatDeleted: (Kind.ROOM, Kind.CHAT),  # in recovered chat it stands in the place of the line that was deleted
    events.PurchaseAnnounced: (Kind.ROOM,),
    events.SalesFrozen: (Kind.ROOM,),
    events.SalesReopened: _STAGE_AND_TEAM,
    events.DrawOpened: (Kind.ROOM,),
    events.DrawClosed: (Kind.ROOM,),
    events.DrawDrawn: (Kind.ROOM,),
    events.DrawCancelled: (Kind.ROOM,),
    events.EnvelopeOpened: (Kind.ROOM,),
    events.EnvelopeUpdated: (Kind.ROOM,),
    events.Pulse: (Kind.ROOM,),
    events.ChatMessage: (Kind.CHAT,),
    events.HoldPlaced: (Kind.USER,),
    events.HoldEnded: (Kind.USER,),
    events.WaitEnded: (Kind.USER,),
    events.OrderChanged: _VIEWER_AND_TEAM,
    events.OrderPlacedEvent: _VIEWER_AND_TEAM,
    events.OrderPaid: _VIEWER_AND_TEAM,
    events.PaymentStarted: (Kind.USER,),
    events.PaymentDeclined: (Kind.USER,),
    events.RefundSettled: _VIEWER_AND_TEAM,
    events.ReturnRequestedEvent: _VIEWER_AND_TEAM,
    events.ReturnChanged: _VIEWER_AND_TEAM,
    events.DisputeOpened: (Kind.STAFF,),
    events.DisputeClosed: (Kind.STAFF,),
    events.DrawWon: (Kind.USER,),
    events.ShareOpened: (Kind.USER,),
    events.ChatMuted: _VIEWER_AND_TEAM,
    events.ViewerBanned: _VIEWER_AND_TEAM,
    events.ReviewRequested: (Kind.STAFF,),
    events.ReviewResolved: (Kind.STAFF,),
    events.WordsChanged: (Kind.STAFF,),
    events.FiguresUpdated: (Kind.STAFF,),
    events.CueAdvanced: (Kind.STAFF,),
    events.AlertRaised: (Kind.STAFF,),
}

# Readings: published without an offset, kept in no history, of which only the newest matters.
READINGS: frozenset[type[Event]] = frozenset({events.Pulse, events.FiguresUpdated})


@dataclass(frozen=True, slots=True)
class ChannelRow:
    kind: Kind
    parameter: str
    parameter_text: str
    right: str | None  # None: nobody subscribes, the server does at connect
    snapshot: bool  # the subscribe reply's `data` is the room's state
    title: str
    text: str

    @property
    def address(self) -> str:
        return f"{self.kind.value}:{{{self.parameter}}}"

    @property
    def lane(self) -> Lane:
        return LANE_OF[self.kind]

    @property
    def events(self) -> list[type[Event]]:
        return [event for event in events.EVENTS if self.kind in CARRIED_BY[event]]


_ROOM_ID = "the room's id"

CHANNELS: tuple[ChannelRow, ...] = (
    ChannelRow(
        Kind.ROOM,
        "room",
        _ROOM_ID,
        "room.watch",
        True,
        "The stage",
        "What happens in a room, in order, never shed: session, shelf, pin, stock, draws, envelopes, notices, moderation. The reply to "
        "subscribe carries the room's whole state in `data`; that state and the events after it are always the state of now. Once a second "
        "`room.pulse` brings the counters: a reading, without an offset.",
    ),
    ChannelRow(
        Kind.CHAT,
        "room",
        _ROOM_ID,
        "room.watch",
        False,
        "Chat",
        "What viewers say. When a room says more than a screen can show, each viewer gets a fair sample, always with the own lines and the "
        "team's; the pulse tells how many were said and shown. Recovers the last lines only.",
    ),
    ChannelRow(
        Kind.USER,
        "viewer",
        "the viewer's id, `sub` of the token",
        None,
        False,
        "The viewer's own",
        "What is the viewer's own business: holds, orders, payments, wins, shares, a mute. The server subscribes at connect; "
        "a client never subscribes, it listens to the client's publications.",
    ),
    ChannelRow(
        Kind.STAFF,
        "room",
        _ROOM_ID,
        "staff.watch",
        False,
        "The team's",
        "For host and moderators: the review queue, live figures, the run-of-show, orders and alerts of the room. Recoverable.",
    ),
)

SUBSCRIBE_RIGHT: dict[Kind, str] = {row.kind: row.right for row in CHANNELS if row.right is not None}


def may_carry(channels: Iterable[str], event: Event) -> bool:
    """Whether the event's row names each of these channels' kinds."""
    kinds = CARRIED_BY[type(event)]
    return all((parsed := parse_channel(channel)) is not None and parsed[0] in kinds for channel in channels)


def what_sdks_do(code: CloseCode) -> str:
    """In words, for the tables: what a client library does by itself, and what is left to the app."""
    if code.reconnect:
        return "comes again by itself, with growing pauses, and recovers"
    return "stops: the app must deal with the reason before it connects again"
