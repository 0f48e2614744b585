"""One run from the start of the product to the verdict."""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import jwt
import uvloop

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.storage.work import Engines
from loadtests.torture.book import Book, OfferBook
from loadtests.torture.crowd import Stage, Viewer
from loadtests.torture.host import Host
from loadtests.torture.line import Line, Refused, Tally, post
from loadtests.torture.product import Tortured, deck, tortured_product
from loadtests.torture.report import progress, table
from loadtests.torture.verdict import Verdict, judge

# name, price, stock, limit a viewer: hot ones that are gone at once, limited ones, deep ones
OFFERS = (("Flash", 300, 40, 0), ("Limited", 500, 400, 3), ("Tea", 700, 300, 0), ("Oranges", 200, 150, 0))
# name, price, stock, limit, selling policy: what the command line cannot list
MORE_OFFERS = (("First come", 400, 80, 0, "first_paid"), ("Line", 600, 40, 30, "waitlist"))
TOKEN_S = 24 * 3600
BROKEN_SHOWN_MAX = 50  # at once, while the run goes on
SELL_OUT_UNITS = 999  # of one hold


@dataclass(frozen=True, slots=True)
class Plan:
    operations: int
    seed: int
    kill_every_s: float  # 0: nothing is killed
    seconds_max: float
    viewers: int = 160
    rooms: int = 4
    hold_s: int = 6
    payment_s: int = 10
    data_dir: Path | None = None
    progress_every_s: float = 5.0
    say: Callable[[str], None] = print
    enough: Event = field(default_factory=Event)  # set it, and what was done until then is judged


def run(plan: Plan) -> Verdict:
    with tortured_product(plan.data_dir, hold_s=plan.hold_s, payment_s=plan.payment_s) as product:
        return uvloop.run(_run(plan, product))


async def _run(plan: Plan, product: Tortured) -> Verdict:
    places = [await asyncio.to_thread(_open_room, product, number) for number in range(plan.rooms)]
    offers = {offer["id"]: OfferBook(OFFERS[i][2], OFFERS[i][3]) for place in places for i, offer in enumerate(place["offers"])}
    book, tally = Book(offers=offers), Tally()
    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=16)
    async with httpx2.AsyncClient(timeout=6, trust_env=False, limits=limits) as http:
        for place in places:
            await _list_more(http, product.url, place, book)
        lines = [name for name, offer in offers.items() if offer.selling == "waitlist"]
        stage = Stage(book, tally, http, list(offers), lines, plan.operations, [])
        began = time.monotonic()
        async with _crowd(plan, product, stage) as viewers:
            await _torture(plan, product, stage, viewers, places, began)
            seconds = time.monotonic() - began
            plan.say(progress(seconds, tally, book, product.kills))
            await asyncio.to_thread(product.wait_all)
            verdict = await _judge(plan, product, stage, viewers[0], [place["room"] for place in places])
    plan.say(table(seed=plan.seed, seconds=seconds, tally=tally, book=book, kills=product.kills, verdict=verdict))
    return verdict


def _open_room(product: Tortured, number: int) -> dict[str, Any]:
    listed = [f"{name}:{price}:{stock}" + (f":{limit}" if limit else "") for name, price, stock, limit in OFFERS]
    return product.face.open_room(f"Torture {number}", listed)


async def _list_more(http: httpx2.AsyncClient, url: str, place: dict[str, Any], book: Book) -> None:
    for name, price, stock, limit, selling in MORE_OFFERS:
        listed = {"name": name, "price_minor": price, "total": stock, "limit_per_viewer": limit, "selling_policy": selling}
        answer = await post(http, f"{url}/api/v1/sessions/{place['session']}/offers", place["host_token"], listed)
        book.offers[answer["id"]] = OfferBook(stock, limit, selling)


@asynccontextmanager
async def _crowd(plan: Plan, product: Tortured, stage: Stage) -> AsyncGenerator[list[Viewer]]:
    secret = product.face.secret
    viewers: list[Viewer] = []
    try:
        for number in range(plan.viewers):
            name = f"viewer{number}"
            token = jwt.encode({"sub": name, "exp": int(time.time()) + TOKEN_S}, secret, algorithm="HS256")
            rng = random.Random(f"{plan.seed} {name}")
            viewers.append(_viewer(name, product, token, stage, rng))
        yield viewers
    finally:
        await asyncio.gather(*(viewer.line.close() for viewer in viewers))


def _viewer(name: str, product: Tortured, token: str, stage: Stage, rng: random.Random) -> Viewer:
    return Viewer(name, Line(product.url, token, stage.tally, rng, stage.hear), stage, rng)


async def _torture(plan: Plan, product: Tortured, stage: Stage, viewers: list[Viewer], places: list[dict[str, Any]], began: float) -> None:
    hosts = [
        Host(
            place["room"],
            place["session"],
            place["host_token"],
            product.url,
            stage,
            random.Random(f"{plan.seed} host {number}"),
            [offer for offer in stage.shelf if offer.startswith(f"{place['room']}-")],
        )
        for number, place in enumerate(places)
    ]
    lives = [asyncio.create_task(one.live()) for one in (*viewers, *hosts)]
    beside = [asyncio.create_task(_kill(plan, product, stage)), asyncio.create_task(_watch(plan, product, stage, began))]
    try:
        await asyncio.gather(*lives)
    finally:
        for task in (*beside, *lives):
            task.cancel()
        await asyncio.gather(*beside, *lives, return_exceptions=True)


async def _kill(plan: Plan, product: Tortured, stage: Stage) -> None:
    """After a kill of the supervisor, with which everything goes down, it waits until the product serves again: a start that is killed over
    and over serves nobody, and proves nothing."""
    if not plan.kill_every_s:
        return
    rng = random.Random(f"{plan.seed} kills")
    for role in deck(rng):
        await asyncio.sleep(plan.kill_every_s * (0.5 + rng.random()))
        if stage.is_over:
            return
        await asyncio.to_thread(product.kill_one, role, rng)
        if role == "supervisor":
            product.start()
            await asyncio.to_thread(product.wait_ready)


async def _watch(plan: Plan, product: Tortured, stage: Stage, began: float) -> None:
    said, broken = began, 0
    while True:
        await asyncio.sleep(0.5)
        now = time.monotonic()
        found = [*stage.book.lost, *stage.book.duplicates, *stage.problems]
        if len(found) > broken and broken < BROKEN_SHOWN_MAX:
            broken = len(found)
            plan.say(f"{now - began:6.0f} s  BROKEN: {'; '.join(found[-3:])}")
        if now - began > plan.seconds_max or plan.enough.is_set():
            stage.operations = 0  # everybody finishes what is under way
        if now - said >= plan.progress_every_s:
            said = now
            plan.say(progress(now - began, stage.tally, stage.book, product.kills))


async def _judge(plan: Plan, product: Tortured, stage: Stage, viewer: Viewer, rooms: list[str]) -> Verdict:
    found = json.loads((product.data_dir / "run.json").read_text())
    settings = Settings(redis_url=found["redis_url"], database_url=found["database_url"], data_dir=product.data_dir)
    engines = Engines.connect(settings, Runtime(), build_registry())
    try:
        verdict = await judge(engines, stage.book, rooms, stage.problems)
        verdict.undersold = await _sell_out(engines, stage, viewer, rooms)
    finally:
        await engines.close()
    said = await asyncio.to_thread(product.face.jishi, "reconcile")
    if said != "both engines agree\n":
        verdict.problems += said.splitlines()
    return verdict


async def _sell_out(engines: Engines, stage: Stage, viewer: Viewer, rooms: list[str]) -> int:
    """Units that nobody has and that one cannot hold. Tries each offer to its end, but for those with a limit, and those of
    which nothing is set aside."""
    missing = 0
    for room in rooms:
        records = {name.decode(): json.loads(raw) for name, raw in (await engines.sales.hgetall(f"{{{room}}}:offers")).items()}
        for offer, terms in stage.book.offers.items():
            record = records.get(offer, {"total": terms.total + terms.added, "sold": 0})
            for_all = not (terms.limit or terms.is_withdrawn or terms.selling == "first_paid")
            if offer.startswith(f"{room}-") and for_all:
                missing += abs(record["total"] - record["sold"] - await _hold_all(viewer, offer, record["total"] - record["sold"]))
    return missing


async def _hold_all(viewer: Viewer, offer: str, units: int) -> int:
    """How many units can be held: `units`, and not one more."""
    holds: list[str] = []
    held = 0
    try:
        for quantity in [*([SELL_OUT_UNITS] * (units // SELL_OUT_UNITS)), *([units % SELL_OUT_UNITS] if units % SELL_OUT_UNITS else []), 1]:
            answer = await viewer.line.ask("inventory.reserve", {"offer": offer, "quantity": quantity, "key": viewer.new_key()})
            if answer["outcome"] == "held":
                holds.append(answer["hold"])
                held += quantity
    except Refused:
        pass
    for hold in holds:
        await viewer.line.ask("inventory.release", {"hold": hold, "key": viewer.new_key()})
    return held
