"""What a client does with stage events: the few lines that every client of the protocol has to write."""

import copy
from typing import Any

READINGS = ("now", "stock", "likes", "viewers")  # renewed by the pulse, not by events


def apply_event(stage: dict[str, Any], event: dict[str, Any]) -> dict[str, Any]:
    """The snapshot after an event; parts that are not of rooms stay as they are."""
    stage = copy.deepcopy(stage)
    match event["type"]:
        case "room.updated":
            stage["room"] = event["room"]
        case "session.scheduled":
            _drop(stage["upcoming"], "session", event["session"])
            stage["upcoming"].append({name: event[name] for name in ("session", "title", "starts_at")})
            stage["upcoming"].sort(key=lambda row: (row["starts_at"], row["session"]))
        case "session.went_live":
            _drop(stage["upcoming"], "session", event["session"])
            stage["session"] = {"id": event["session"], "title": event["title"], "state": "live", "went_live_at": event["at"], "reason": ""}
            stage |= {"offers": [], "pin": None}
        case "session.interrupted" | "session.resumed":
            if _is_on_air(stage, event):  # else the snapshot is already past its end
                interrupted = event["type"] == "session.interrupted"
                stage["session"] |= {"state": "interrupted" if interrupted else "live", "reason": event.get("reason", "")}
        case "session.ended":
            _drop(stage["upcoming"], "session", event["session"])
            if _is_on_air(stage, event):
                stage |= {"session": None, "offers": [], "pin": None}
        case "offer.listed" | "offer.updated":
            _drop(stage["offers"], "id", event["offer"]["id"])
            stage["offers"].append(event["offer"])
            stage["offers"].sort(key=lambda offer: (offer["position"], offer["id"]))
        case "offer.withdrawn":
            _drop(stage["offers"], "id", event["offer"])
        case "offer.pinned":
            stage["pin"] = event["offer"]
        case _:
            pass
    return stage


def _is_on_air(stage: dict[str, Any], event: dict[str, Any]) -> bool:
    return stage["session"] is not None and stage["session"]["id"] == event["session"]


def _drop(rows: list[dict[str, Any]], name: str, value: str) -> None:
    rows[:] = [row for row in rows if row[name] != value]
