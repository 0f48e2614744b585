"""`python -m app.demo`: sets the village up once, then plays show after show. Started and restarted by `jishi up`."""

import argparse
import asyncio
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from app.core.settings import Settings
from app.demo import voices
from app.demo.goods import GOODS
from app.demo.show import TITLE, Place, Show
from app.demo.team import Refused, Team
from app.demo.viewers import Tally, Viewer
from app.domains.accounts.service import make_token

PAUSE_S = 20
TOKEN_TTL_S = 6 * 3600
HOST_LOGIN = "host"
SISTER_LOGIN = "sister"
ROOM = {"title": TITLE, "host_name": "梅子 Meizi", "description": "Six villages, one table. 六个村子，一张桌子。", "language": "zh"}
WALLET_MINOR = 100_000  # what the village committee gives for draws and envelopes, topped up before each show


class Signer:
    """Stands for the streaming app's backend, which knows its users and signs their tokens."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def token(self, subject: str, name: str, *, roles: tuple[str, ...] = ()) -> str:
        now_ms = int(time.time() * 1000)
        return make_token(self._settings, subject=subject, name=name, roles=roles, ttl_s=TOKEN_TTL_S, now_ms=now_ms)


def websocket_url(base_url: str) -> str:
    return base_url.replace("http", "ws", 1) + "/connection/websocket"


def viewer_maker(base_url: str, signer: Signer) -> Callable[[str, str, random.Random, Tally], Viewer]:
    def make(viewer_id: str, name: str, rng: random.Random, tally: Tally) -> Viewer:
        token = signer.token(viewer_id, name)
        return Viewer(viewer_id=viewer_id, name=name, websocket_url=websocket_url(base_url), token=token, rng=rng, tally=tally)

    return make


async def settle_in(operator: Team, password: str) -> str:
    """The room, the products and the team: found, or made the first time. Returns the room's id."""
    rooms = (await operator.get("/rooms?limit=100"))["items"]
    room = next((room for room in rooms if room["title"] == TITLE), None) or await operator.post("/rooms", ROOM)
    room_id = room["id"]
    for login, name, role in ((HOST_LOGIN, "梅子 Meizi", "host"), (SISTER_LOGIN, "小妹 Xiaomei", "moderator")):
        body = {"login": login, "name": name, "password": password, "roles": [f"{role}@{room_id}"]}
        await _unless_there(operator.post("/staff", body))
    await operator.put(f"/rooms/{room_id}/chat/words", {"words": list(voices.RUDE_WORDS)})
    return room_id


async def _unless_there(call: Any) -> None:
    try:
        await call
    except Refused as refused:
        if refused.status != 409:
            raise


async def _find_products(operator: Team) -> dict[str, str]:
    """Product ids by the script's words; missing products are made."""
    known = {product["lot"]: product["id"] for product in (await operator.get("/products?limit=200"))["items"]}
    ids: dict[str, str] = {}
    for good in GOODS:
        if good.lot not in known:
            body = {
                name: getattr(good, name)
                for name in ("name", "description", "unit", "village", "lot", "harvested_on", "image", "return_policy")
            }
            known[good.lot] = (await operator.post("/products", body))["id"]
        ids[good.word] = known[good.lot]
    return ids


async def prepare_session(operator: Team, room_id: str) -> Place:
    """A new session with its shelf, run-of-show and purse. An earlier session that still runs is ended first."""
    for session in (await operator.get(f"/rooms/{room_id}/sessions?limit=20"))["items"]:
        if session["state"] in {"live", "interrupted"}:
            await operator.post(f"/sessions/{session['id']}/end")
    products = await _find_products(operator)
    session = await operator.post(f"/rooms/{room_id}/sessions", {"title": TITLE})
    place = Place(room=room_id, session=session["id"])
    for good in GOODS:
        offer = {
            "product": products[good.word],
            "name": good.name,
            "price_minor": good.price_minor,
            "list_price_minor": good.list_price_minor,
            "total": good.stock,
            "limit_per_viewer": good.limit,
            "price_min_minor": good.price_min_minor,
        }
        place.offers[good.word] = (await operator.post(f"/sessions/{place.session}/offers", offer))["id"]
    cues = [{"title": good.name, "kind": "offer", "offer": place.offers[good.word], "minutes": 1} for good in GOODS]
    await operator.put(f"/sessions/{place.session}/run-of-show", {"cues": cues})
    await operator.post(f"/rooms/{room_id}/wallet/deposits", {"amount_minor": WALLET_MINOR, "reference": place.session})
    return place


async def play_for_ever(arguments: argparse.Namespace) -> None:
    settings = Settings(data_dir=Path(arguments.data_dir))
    signer = Signer(settings)
    operator = Team(arguments.url, signer.token("demo-committee", "Village committee", roles=("operator",)))
    room_id = await settle_in(operator, os.environ["JISHI_DEMO_PASSWORD"])
    while True:
        show = Show(
            host=Team(arguments.url, signer.token("demo-host", "梅子 Meizi", roles=(f"host@{room_id}",))),
            sister=Team(arguments.url, signer.token("demo-sister", "小妹 Xiaomei", roles=(f"moderator@{room_id}",))),
            crowd_size=arguments.viewers,
            pace=arguments.pace,
            make_viewer=viewer_maker(arguments.url, signer),
            place_file=Path(arguments.data_dir) / "demo-show.json",
            rng=random.Random(arguments.seed),  # noqa: S311 - a crowd's mood, not a secret
        )
        await _one_show(show, operator, room_id)
        if arguments.once:
            return
        await asyncio.sleep(PAUSE_S * arguments.pace)


async def _one_show(show: Show, operator: Team, room_id: str) -> None:
    show.recall()
    if not await _still_on(show.place, operator, room_id):
        show.place = await prepare_session(operator, room_id)
        show.remember()
    await show.play()
    report = await operator.get(f"/sessions/{show.place.session}/report")
    summary = report.get("summary", report)
    told = ", ".join(f"{name} {value}" for name, value in summary.items() if isinstance(value, int))
    show.tell(f"report /reports/{show.place.session}: {told}")
    await show.host.close()
    await show.sister.close()


async def _still_on(place: Place, operator: Team, room_id: str) -> bool:
    """Whether the remembered show can go on where it stopped."""
    if place.room != room_id or not place.session:
        return False
    try:
        session = await operator.get(f"/sessions/{place.session}")
    except Refused:
        return False
    return session["state"] in ({"draft", "scheduled"} if place.act == 0 else {"live", "interrupted"})


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m app.demo", description="Plays the demo show against a running Jishi.")
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="where the product answers")
    parser.add_argument("--data-dir", default=".jishi", help="where the demo remembers its place")
    parser.add_argument("--viewers", type=int, default=300, help="simulated viewers")
    parser.add_argument("--pace", type=float, default=1.0, help="below 1 is faster: 0.1 plays a show in half a minute")
    parser.add_argument("--seed", type=int, default=None, help="repeat the same crowd")
    parser.add_argument("--once", action="store_true", help="one show, then stop")
    arguments = parser.parse_args()
    if "JISHI_DEMO_PASSWORD" not in os.environ:
        sys.stderr.write("JISHI_DEMO_PASSWORD is not set: the host's sign-in needs a password; `jishi up` chooses and prints one\n")
        return 1
    try:
        asyncio.run(play_for_ever(arguments))
    except (Refused, KeyboardInterrupt) as stop:
        sys.stderr.write(f"demo stopped: {stop}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
