"""RPC methods and REST routes of rooms."""

from app.core.registry import Domain
from app.domains.rooms import audience

DOMAIN = Domain(
    name="rooms",
    snapshot={
        "room": audience.room_part,
        "session": audience.session_part,
        "upcoming": audience.upcoming_part,
        "offers": audience.offers_part,
        "pin": audience.pin_part,
        "likes": audience.read_likes,
        "viewers": audience.presence.viewers,
    },
    pulse={"viewers": audience.presence.viewers, "likes": audience.read_likes, "peak_viewers": audience.read_peak},
    reactions={
        "session.went_live": audience.on_went_live,
        "session.interrupted": audience.on_air_changed,
        "session.resumed": audience.on_air_changed,
        "session.ended": audience.on_ended,
        "session.archived": audience.on_archived,
    },
    admission=(audience.admit,),
)
