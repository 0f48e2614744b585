"""Every error and close code a client can meet. Numbers are never reused.

100-112 are the client protocol's own; 400 and above are Jishi's. REST answers the same rows as problem details (RFC 9457).
"""

from dataclasses import dataclass

from app.core.errors import ErrorCode

INTERNAL = ErrorCode(100, "internal", 500, True, "internal error", "something failed that should not; the server log has the cause")
UNAUTHORIZED = ErrorCode(101, "unauthorized", 401, False, "unauthorized", "no token, or the sign-in was wrong")
UNKNOWN_CHANNEL = ErrorCode(102, "unknown_channel", 404, False, "unknown channel", "no such room, or a malformed name")
PERMISSION_DENIED = ErrorCode(103, "permission_denied", 403, False, "permission denied", "the caller lacks the right for this room")
METHOD_NOT_FOUND = ErrorCode(104, "method_not_found", 404, False, "method not found", "no RPC method or protocol command of that name")
ALREADY_SUBSCRIBED = ErrorCode(105, "already_subscribed", 409, False, "already subscribed", "a second subscribe to a channel")
LIMIT_EXCEEDED = ErrorCode(106, "limit_exceeded", 413, False, "limit exceeded", "a message, name or list is longer than its limit")
BAD_REQUEST = ErrorCode(107, "bad_request", 400, False, "bad request", "malformed, wrong type, missing or unknown field")
NOT_AVAILABLE = ErrorCode(108, "not_available", 404, False, "not available", "the feature is off for this channel or product")
TOKEN_EXPIRED = ErrorCode(109, "token_expired", 401, False, "token expired", "the token's `exp` has passed; get a fresh one")
TOO_MANY_REQUESTS = ErrorCode(111, "too_many_requests", 429, True, "too many requests", "a rate limit or a full queue; try again later")
UNRECOVERABLE_POSITION = ErrorCode(
    112, "unrecoverable_position", 409, False, "unrecoverable position", "history was asked for from a position that is gone"
)

NOT_FOUND = ErrorCode(400, "not_found", 404, False, "not found", "no such room, session, offer, order, draw or envelope")
CONFLICT = ErrorCode(401, "conflict", 409, False, "conflict", "the state does not allow this step, or another change came first")
KEY_REUSED = ErrorCode(409, "key_reused", 409, False, "key reused with another body", "an idempotency key came again with other content")
INSUFFICIENT_FUNDS = ErrorCode(410, "insufficient_funds", 409, False, "insufficient funds", "the wallet account holds less than needed")
OVER_LIMIT = ErrorCode(
    411, "over_limit", 403, False, "outside the delegated limits", "a price or amount that was not delegated to the host"
)
BANNED = ErrorCode(412, "banned", 403, False, "banned", "the viewer is banned from the room")
SERVICE_UNAVAILABLE = ErrorCode(413, "service_unavailable", 503, True, "temporarily unavailable", "an engine is out of reach, or draining")
ALREADY_DONE = ErrorCode(
    420,
    "already_done",
    409,
    False,
    "done before, the answer was lost",
    "the process died that did a call with this `Idempotency-Key`",
)

ERRORS: tuple[ErrorCode, ...] = (
    INTERNAL,
    UNAUTHORIZED,
    UNKNOWN_CHANNEL,
    PERMISSION_DENIED,
    METHOD_NOT_FOUND,
    ALREADY_SUBSCRIBED,
    LIMIT_EXCEEDED,
    BAD_REQUEST,
    NOT_AVAILABLE,
    TOKEN_EXPIRED,
    TOO_MANY_REQUESTS,
    UNRECOVERABLE_POSITION,
    NOT_FOUND,
    CONFLICT,
    KEY_REUSED,
    INSUFFICIENT_FUNDS,
    OVER_LIMIT,
    BANNED,
    SERVICE_UNAVAILABLE,
    ALREADY_DONE,
)


@dataclass(frozen=True, slots=True)
class CloseCode:
    """A websocket close code. SDKs reconnect below 3500, from 4000 to 4499 and from 5000; the rest is final.

    `reason` is plain words of at most 123 bytes, never empty and never JSON: centrifuge-js ignores a final code otherwise.
    """

    number: int
    reason: str
    issued_when: str

    @property
    def reconnect(self) -> bool:
        return self.number < 3500 or 4000 <= self.number < 4500 or self.number >= 5000


CLOSED = CloseCode(3000, "connection closed", "the server ended the connection in good order")
SHUTDOWN = CloseCode(3001, "shutdown", "the node is draining; connect again, to another node")
INTERNAL_ERROR = CloseCode(3004, "internal server error", "the connection's state was lost by a fault")
EXPIRED = CloseCode(3005, "connection expired", "the token's `exp` passed and no refresh came")
SUBSCRIPTION_EXPIRED = CloseCode(3006, "subscription expired", "a subscription token's `exp` passed")
SLOW = CloseCode(3008, "slow", "the client did not read for too long; it recovers what it missed")
INSUFFICIENT_STATE = CloseCode(3010, "insufficient state", "a gap was found in a recoverable channel")
FORCE_RECONNECT = CloseCode(3011, "force reconnect", "the node was cut off from its engine for long; another may not be")
NO_PONG = CloseCode(3012, "no pong", "a ping was not answered in time")
CONNECTION_RATE = CloseCode(3013, "too many requests", "the connection sent far more than its rate limit")
INVALID_TOKEN = CloseCode(3500, "invalid token", "the token's signature, algorithm or claims are wrong")
CLOSE_BAD_REQUEST = CloseCode(3501, "bad request", "a command before connect, or bytes that are no message of the protocol")
STALE = CloseCode(3502, "stale", "no connect command in time")
FORCE_DISCONNECT = CloseCode(3503, "force disconnect", "an operator or a ban ended the connection")
CONNECTION_LIMIT = CloseCode(3504, "connection limit", "too many connections of one viewer")
CHANNEL_LIMIT = CloseCode(3505, "channel limit", "too many channels on one connection")
CLOSE_PERMISSION_DENIED = CloseCode(3507, "permission denied", "the viewer was banned, or a right was taken away")
CLOSE_NOT_AVAILABLE = CloseCode(3508, "not available", "the endpoint does not serve this")
TOO_MANY_ERRORS = CloseCode(3509, "too many errors", "the client kept sending commands that failed")

CLOSES: tuple[CloseCode, ...] = (
    CLOSED,
    SHUTDOWN,
    INTERNAL_ERROR,
    EXPIRED,
    SUBSCRIPTION_EXPIRED,
    SLOW,
    INSUFFICIENT_STATE,
    FORCE_RECONNECT,
    NO_PONG,
    CONNECTION_RATE,
    INVALID_TOKEN,
    CLOSE_BAD_REQUEST,
    STALE,
    FORCE_DISCONNECT,
    CONNECTION_LIMIT,
    CHANNEL_LIMIT,
    CLOSE_PERMISSION_DENIED,
    CLOSE_NOT_AVAILABLE,
    TOO_MANY_ERRORS,
)

# Codes of the unsubscribe push; at 2500 and above the SDK subscribes again by itself.
UNSUBSCRIBED_BY_SERVER = 2000
UNSUBSCRIBED_INSUFFICIENT_STATE = 2500
