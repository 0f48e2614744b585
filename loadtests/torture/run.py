"""One run from the start of the product to the verdict."""

import asyncio
import json
import random
import resource
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

import httpx2
import jwt
import psutil
import uvloop
from sqlalchemy import text

from app.composition import build_registry
from app.core.runtime import Runtime
from app.core.settings import Settings
from app.storage.work import Engines
from loadtests.torture.book import Book, OfferBook
from loadtests.torture.crowd import Stage, Viewer
from loadtests.torture.host import Host
from loadtests.torture.journal import SCOPED, Journal
from loadtests.torture.line import Line, Refused, Tally, post
from loadtests.torture.plays import PlayBook
from loadtests.torture.product import SLEEP_S_MAX, SLEEP_S_MIN, Tortured, deck, tortured_product, wake
from loadtests.torture.report import Teller, progress, table
from loadtests.torture.showman import Showman
from loadtests.torture.side_books import compare_plays, compare_side_books
from loadtests.torture.verdict import Verdict, judge, records_of

# name, price, stock, limit a viewer: hot ones that are gone at once, limited ones, deep ones
OFFERS = (("Flash", 300, 40, 0), ("Limited", 500, 400, 3), ("Tea", 700, 300, 0), ("Oranges", 200, 150, 0))
# name, price, stock, limit, selling policy, keyword: what the command line cannot list
MORE_OFFERS = (
    ("First come", 400, 80, 0, "first_paid", ""),
    ("Line", 600, 40, 30, "waitlist", ""),
    ("Honey", 350, 120, 0, "hold", "honey"),
)
PRIZES = (2, 3)  # those of OFFERS that draws give away too
TOKEN_S = 24 * 3600
SELL_OUT_UNITS = 999  # of one hold
LOOK_S = 0.5


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
    report_dir: Path = Path("build")
    progress_every_s: float = 5.0
    say: Callable[[str], None] = print
    enough: Event = field(default_factory=Event)  # set it, and what was done until then is judged


@dataclass(slots=True)
class Team:
    """Who works in the rooms, and the way that they have for themselves."""

    hosts: list[Host]
    showmen: list[Showman]
    http: httpx2.AsyncClient


def run(plan: Plan) -> Verdict:
    with (
        tortured_product(plan.data_dir, hold_s=plan.hold_s, payment_s=plan.payment_s) as product,
        closing(Journal(product.data_dir / "torture.jsonl")) as journal,
    ):
        return uvloop.run(_run(plan, product, journal))


async def _run(plan: Plan, product: Tortured, journal: Journal) -> Verdict:
    places = [await asyncio.to_thread(_open_room, product, number) for number in range(plan.rooms)]
    offers = {
        offer["id"]: OfferBook(OFFERS[i][2], OFFERS[i][3], {OFFERS[i][1]}) for place in places for i, offer in enumerate(place["offers"])
    }
    book, tally = Book(offers=offers), Tally()
    path = plan.report_dir / f"torture-{plan.seed}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    teller = Teller(plan.say, journal, path, {"seed": plan.seed, "kill_every_s": plan.kill_every_s, "viewers": plan.viewers})
    async with _http() as http, _http() as hosts_http:
        for place in places:
            await _list_more(http, product.url, place, book)
        lines = [name for name, offer in offers.items() if offer.selling == "waitlist"]
        words = [name for name, offer in offers.items() if offer.keyword]
        plays = PlayBook(lost=book.lost, duplicates=book.duplicates)
        stage = Stage(book, tally, http, list(offers), lines, words, plan.operations, plays)
        team = _team(plan, product, stage, journal, hosts_http, places)
        began, cpu_s = time.monotonic(), time.process_time()
        async with _crowd(plan, product, stage, journal) as viewers:
            await _torture(plan, product, stage, journal, teller, viewers, team, began)
            seconds, cpu_s = time.monotonic() - began, time.process_time() - cpu_s
            plan.say(progress(seconds, tally.answered, tally, book, product.kills))
            teller.tell(book, seconds)  # whatever becomes of the verdict
            await asyncio.to_thread(product.wait_all)
            verdict = await _judge(plan, product, stage, teller, viewers[0], team, [place["room"] for place in places], began)
    plan.say(table(facts=_facts(plan, tally, seconds, cpu_s), tally=tally, book=book, plays=plays, kills=product.kills, verdict=verdict))
    return verdict


def _facts(plan: Plan, tally: Tally, seconds: float, cpu_s: float) -> dict[str, str]:
    answered = max(tally.answered, 1)
    memory_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return {
        "seed": str(plan.seed),
        "operations": f"{tally.answered:,}",
        "time": f"{seconds:,.0f} s, {answered / max(seconds, 0.001):,.0f} a second",
        "the tester itself": f"{cpu_s / answered * 1_000_000:,.0f} us an operation, {memory_mb:,} MB at most",
    }


def _http() -> httpx2.AsyncClient:
    limits = httpx2.Limits(max_connections=64, max_keepalive_connections=16)
    return httpx2.AsyncClient(timeout=6, trust_env=False, limits=limits)


def _open_room(product: Tortured, number: int) -> dict[str, Any]:
    listed = [f"{name}:{price}:{stock}" + (f":{limit}" if limit else "") for name, price, stock, limit in OFFERS]
    return product.face.open_room(f"Torture {number}", listed)


async def _list_more(http: httpx2.AsyncClient, url: str, place: dict[str, Any], book: Book) -> None:
    for name, price, stock, limit, selling, keyword in MORE_OFFERS:
        listed = {
            "name": name,
            "price_minor": price,
            "total": stock,
            "limit_per_viewer": limit,
            "selling_policy": selling,
            "keyword": keyword,
        }
        answer = await post(http, f"{url}/api/v1/sessions/{place['session']}/offers", place["host_token"], listed)
        book.offers[answer["id"]] = OfferBook(stock, limit, {price}, selling, keyword)


def _team(plan: Plan, product: Tortured, stage: Stage, journal: Journal, http: httpx2.AsyncClient, places: list[dict[str, Any]]) -> Team:
    """A host and a showman for each room."""
    operator = _token(product, "operator", roles=["operator"])
    hosts: list[Host] = []
    showmen: list[Showman] = []
    for number, place in enumerate(places):
        where = (place["room"], place["session"], place["host_token"], product.url, stage, http, journal)
        offers = [offer for offer in stage.shelf if offer.startswith(f"{place['room']}-")]
        prizes = [place["offers"][at]["id"] for at in PRIZES]
        kept = {*stage.lines, *stage.words, *prizes}
        hosts.append(Host(f"host{number}", *where, random.Random(f"{plan.seed} host {number}"), offers=offers, kept=kept))
        rng = random.Random(f"{plan.seed} showman {number}")
        showmen.append(Showman(f"showman{number}", *where, rng, operator=operator, prizes=prizes))
    return Team(hosts, showmen, http)


def _token(product: Tortured, subject: str, **claims: Any) -> str:
    return jwt.encode({"sub": subject, "exp": int(time.time()) + TOKEN_S, **claims}, product.face.secret, algorithm="HS256")


@asynccontextmanager
async def _crowd(plan: Plan, product: Tortured, stage: Stage, journal: Journal) -> AsyncGenerator[list[Viewer]]:
    viewers: list[Viewer] = []
    try:
        for number in range(plan.viewers):
            name = f"viewer{number}"
            rng = random.Random(f"{plan.seed} {name}")
            line = Line(product.url, name, _token(product, name), stage.tally, journal, rng, stage.hear)
            viewers.append(Viewer(name, line, stage, rng))
        yield viewers
    finally:
        await asyncio.gather(*(viewer.line.close() for viewer in viewers))


async def _torture(
    plan: Plan, product: Tortured, stage: Stage, journal: Journal, teller: Teller, viewers: list[Viewer], team: Team, began: float
) -> None:
    over = asyncio.Event()
    lives = [asyncio.create_task(one.live()) for one in (*viewers, *team.hosts, *team.showmen)]
    beside = [
        asyncio.create_task(_kill(plan, product, stage, journal, over)),
        asyncio.create_task(_watch(plan, product, stage, teller, over, began)),
    ]
    try:
        await asyncio.gather(*lives)
        over.set()
        await asyncio.gather(*beside)
    finally:
        for task in (*beside, *lives):
            task.cancel()
        await asyncio.gather(*beside, *lives, return_exceptions=True)


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    with suppress(TimeoutError):
        await asyncio.wait_for(event.wait(), within_s)
    return event.is_set()


async def _kill(plan: Plan, product: Tortured, stage: Stage, journal: Journal, over: asyncio.Event) -> None:
    """After a kill of the supervisor, with which everything goes down, it waits until the product serves again: a start that is killed over
    and over serves nobody, and proves nothing. Who sleeps goes on doing so while others die."""
    if not plan.kill_every_s:
        return
    rng, naps = random.Random(f"{plan.seed} kills"), set[asyncio.Task[None]]()
    for fate in deck(rng):
        if await _is_set(over, plan.kill_every_s * (0.5 + rng.random())) or stage.is_over:
            break
        if fate == "sleep":
            stopped = await asyncio.to_thread(product.stop_one, rng)
            naps.add(asyncio.create_task(_nap(stopped, journal, rng.uniform(SLEEP_S_MIN, SLEEP_S_MAX))))
            continue
        if fate == "supervisor":
            await asyncio.gather(*naps)  # who sleeps would keep the port
        journal.note(kill=fate)
        await asyncio.to_thread(product.kill, fate, rng)
        if fate == "supervisor":
            product.start()
            await asyncio.to_thread(product.wait_ready)
    await asyncio.gather(*naps)


async def _nap(stopped: list[psutil.Process], journal: Journal, seconds: float) -> None:
    journal.note(kill=f"sleep of {[process.pid for process in stopped]} for {seconds:.1f} s")
    try:
        await asyncio.sleep(seconds)
    finally:
        wake(stopped)


async def _watch(plan: Plan, product: Tortured, stage: Stage, teller: Teller, over: asyncio.Event, began: float) -> None:
    said = began
    while not await _is_set(over, LOOK_S):
        now = time.monotonic()
        await asyncio.to_thread(teller.tell, stage.book, now - began)
        if now - began > plan.seconds_max or plan.enough.is_set():
            stage.operations = 0  # everybody finishes what is under way
        if now - said >= plan.progress_every_s:
            said = now
            plan.say(progress(now - began, plan.operations, stage.tally, stage.book, product.kills))


async def _judge(
    plan: Plan, product: Tortured, stage: Stage, teller: Teller, viewer: Viewer, team: Team, rooms: list[str], began: float
) -> Verdict:
    found = json.loads((product.data_dir / "run.json").read_text())
    settings = Settings(redis_url=found["redis_url"], database_url=found["database_url"], data_dir=product.data_dir)
    engines = Engines.connect(settings, Runtime(), build_registry())
    try:
        await _end_draws(engines, team)
        verdict = await judge(engines, stage.book, rooms, plan.say)
        plan.say(f"converged within {verdict.converged_s:.0f} s; comparing the books")
        deposits = [deposit for showman in team.showmen for deposit in showman.deposits]
        await compare_side_books(engines, stage.book, deposits, verdict)
        await compare_plays(engines, team.http, product.url, stage.plays, verdict)
        verdict.undersold = await _sell_out(engines, stage, viewer, rooms)
        said = await asyncio.to_thread(product.face.jishi, "reconcile")
        if said != "both engines agree\n":
            verdict.problems += said.splitlines()
        await asyncio.to_thread(teller.tell, stage.book, time.monotonic() - began)
        teller.complete({sentence: await records_of(engines, SCOPED.findall(sentence)) for sentence in teller.sentences})
    finally:
        await engines.close()
    return verdict


async def _end_draws(engines: Engines, team: Team) -> None:
    """Those that nobody would close any more: their opening may have had no answer."""
    async with engines.sql.read() as session:
        rows = (await session.execute(text("select id, room_id from draws where state = 'open' and closes_at is null"))).all()
    for row in rows:
        showman = next(one for one in team.showmen if one.room == row.room_id)
        await showman.ask("host.close_draw", f"draws/{row.id}/close", {})


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
                left = record["total"] - record["sold"]
                held = await _hold_all(viewer, offer, left)
                missing += abs(left - held)
                if held != left:
                    stage.book.problems.append(f"offer {offer} has {left} units that nobody has, and {held} can be held")
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
