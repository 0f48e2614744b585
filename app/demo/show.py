"""The acts of the demo show, in order, and what happens when the demo itself is killed in the middle.

The show's place (room, session, act) is kept in one small file: a demo that is started again goes on with the act after the last one
finished, in the same session. A show is over when its session has ended; the next one starts after a pause, so the page is always alive.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any

import msgspec

from app.core.money import format_minor
from app.demo import voices
from app.demo.goods import GOODS, HONEY, ORANGE, RICE, TEA
from app.demo.team import Refused, Team
from app.demo.viewers import Tally, Viewer, viewer_name

TITLE = "秋收集市 · Autumn harvest market"
PRIZE_KEYWORD = "丰收"
FLASH_PRICE_MINOR = 1990


class Place(msgspec.Struct):
    """Where the show is. `act` counts the acts that are finished."""

    room: str = ""
    session: str = ""
    act: int = 0
    offers: dict[str, str] = {}


class Show:
    def __init__(
        self,
        *,
        host: Team,
        sister: Team,
        crowd_size: int,
        pace: float,
        make_viewer: Callable[[str, str, random.Random, Tally], Viewer],
        place_file: Path,
        rng: random.Random,
    ) -> None:
        self.host = host
        self.sister = sister
        self.crowd: list[Viewer] = []
        self.tally = Tally()
        self.place = Place()
        self.rng = rng
        self._crowd_size = crowd_size
        self.pace = pace  # 1: a show of about four minutes; smaller is faster
        self._make_viewer = make_viewer
        self._place_file = place_file
        self._began = time.monotonic()
        self._aside: set[asyncio.Task[Any]] = set()

    # --- how a show is told ---------------------------------------------------------------------------------------------------------

    def tell(self, text: str) -> None:
        """One progress line: where the show is, and what the crowd has done so far."""
        elapsed_s = int(time.monotonic() - self._began)
        crowd = f"{len(self.crowd)} viewers, {self.tally.said} lines said, {self.tally.heard} events heard"
        print(f"show {elapsed_s // 60:02d}:{elapsed_s % 60:02d}  {text}  ({crowd})", flush=True)  # noqa: T201 - the demo's own terminal line

    async def pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.pace)

    def aside(self, doing: Coroutine[Any, Any, Any]) -> None:
        """Something that goes on beside the act, such as a payment that is awaited."""
        task = asyncio.create_task(doing)
        self._aside.add(task)
        task.add_done_callback(self._aside.discard)

    async def together(self, doings: Iterable[Awaitable[Any]]) -> list[Any]:
        return await asyncio.gather(*doings)

    def some(self, count: int) -> list[Viewer]:
        return self.rng.sample(self.crowd, min(count, len(self.crowd)))

    def remember(self) -> None:
        """Replaces the file in one step: a kill leaves the old place or the new one."""
        fresh = self._place_file.with_suffix(".new")
        fresh.write_bytes(msgspec.json.encode(self.place))
        fresh.replace(self._place_file)

    def recall(self) -> None:
        if self._place_file.exists():
            self.place = msgspec.json.decode(self._place_file.read_bytes(), type=Place)

    async def play(self) -> None:
        """One show from its next act to its end."""
        await self._gather_crowd()
        while self.place.act < len(ACTS):
            act = ACTS[self.place.act]
            try:
                await act(self)
            except Refused as refused:
                # The show goes on: one refused step is a line in the terminal, as it would be a shrug of the host.
                self.tell(f"{act.__name__}: refused - {refused}")
            self.place.act += 1
            self.remember()
        await self._send_home()

    async def _gather_crowd(self) -> None:
        wave = max(1, self._crowd_size // 10)
        while len(self.crowd) < self._crowd_size:
            start = len(self.crowd)
            newcomers = [
                self._make_viewer(f"demo-{number:04d}", viewer_name(self.rng), self.rng, self.tally)
                for number in range(start, min(start + wave, self._crowd_size))
            ]
            await self.together(viewer.arrive(self.place.room) for viewer in newcomers)
            self.crowd += newcomers
            await self.pause(0.7)
        self.tell("the crowd is in")

    async def _send_home(self) -> None:
        for task in self._aside:
            task.cancel()
        await self.together(viewer.leave() for viewer in self.crowd)
        self.crowd = []

    # --- small habits of a crowd ----------------------------------------------------------------------------------------------------

    async def chatter(self, lines: Iterable[str], *, voices_count: int, seconds: float) -> None:
        """Some viewers say something, spread over the time; others like."""
        pool = list(lines)
        speakers = self.some(voices_count)
        for speaker in speakers:
            self.aside(speaker.say(self.place.room, self.rng.choice(pool)))
            if self.rng.random() < 0.5:
                self.aside(self.rng.choice(self.crowd).like(self.place.room, self.rng.randrange(1, 20)))
            await self.pause(seconds / max(1, len(speakers)))

    async def shop(self, word: str, buyers: int, *, seconds: float) -> None:
        """Some viewers buy, one after the other; payments are awaited beside the act."""
        for buyer in self.some(buyers):
            self.aside(buyer.buy(self.place.offers[word], self.rng.choice((1, 1, 1, 2))))
            await self.pause(seconds / buyers)

    async def host_says(self, text: str) -> None:
        await self.host.post("/chat/send", {"room": self.place.room, "text": text, "key": f"host-{self.rng.randrange(10**12)}"})

    async def sister_says(self, text: str) -> None:
        await self.sister.post("/chat/send", {"room": self.place.room, "text": text, "key": f"sister-{self.rng.randrange(10**12)}"})

    async def pin(self, word: str) -> None:
        await self.host.put(f"/rooms/{self.place.room}/pin", {"offer": self.place.offers[word]})


# --- the acts ---------------------------------------------------------------------------------------------------------------------------


async def go_live(show: Show) -> None:
    session = show.place.session
    checklist = await show.host.get(f"/sessions/{session}/checklist")
    show.tell(f"checklist: {sum(item['ok'] for item in checklist['items'])} of {len(checklist['items'])} in order")
    await show.host.post(f"/sessions/{session}/go-live")
    await show.sister.post(
        "/chat/pin_notice",
        {"room": show.place.room, "text": "产地直发，坏果包赔 · From the village, spoiled fruit replaced", "key": session},
    )
    show.tell("live")
    await show.host_says("乡亲们好，我是梅子，今天咱们赶集！ Welcome to the harvest market!")
    await show.chatter(voices.GREETINGS, voices_count=30, seconds=14)


async def tea(show: Show) -> None:
    await show.pin(TEA.word)
    show.tell("pinned: tea")
    await show.chatter(voices.ABOUT[TEA.word], voices_count=14, seconds=8)
    await show.sister_says(voices.ANSWERS[TEA.word][0])
    await show.shop(TEA.word, 18, seconds=8)
    await show.host.post(f"/offers/{show.place.offers[TEA.word]}/price", {"price_minor": 14800})
    show.tell(f"tea down to {format_minor(14800, 'CNY')}")
    await show.shop(TEA.word, 24, seconds=7)
    await show.sister_says(voices.ANSWERS[TEA.word][1])


async def oranges(show: Show) -> None:
    await show.pin(ORANGE.word)
    show.tell("pinned: navel oranges")
    await show.chatter(voices.ABOUT[ORANGE.word], voices_count=12, seconds=6)
    await show.shop(ORANGE.word, 30, seconds=9)
    await show.host.post(f"/offers/{show.place.offers[ORANGE.word]}/stock", {"add": 40})
    show.tell("forty more boxes from the neighbour's orchard")
    await show.sister_says(voices.ANSWERS[ORANGE.word][0])
    await show.shop(ORANGE.word, 12, seconds=5)


async def draw(show: Show) -> None:
    rules = {
        "title": "丰收抽奖 · Harvest draw",
        "condition": "keyword",
        "keyword": PRIZE_KEYWORD,
        "duration_s": max(5, int(20 * show.pace)),
        "prizes": [
            {"kind": "money", "name": "红包 20 元", "count": 5, "amount_minor": 2000},
            {"kind": "product", "name": TEA.name, "count": 1, "offer": show.place.offers[TEA.word]},
        ],
    }
    opened = await show.host.post(f"/sessions/{show.place.session}/draws", rules)
    show.tell("draw open: say the word to enter")
    entrants = show.some(int(len(show.crowd) * 0.7))
    for viewer in entrants:
        show.aside(viewer.call("draw.enter", {"draw": opened["id"], "keyword": PRIZE_KEYWORD, "key": viewer.new_key()}))
        if show.rng.random() < 0.2:
            show.aside(viewer.say(show.place.room, PRIZE_KEYWORD))
        await show.pause(14 / len(entrants))
    for _ in range(60):
        state = await show.host.get(f"/draws/{opened['id']}")
        if state["state"] in {"drawn", "cancelled"}:
            show.tell(f"draw: {len(state.get('winners', []))} winners of {show.tally.outcomes['draw.enter:entered']} entrants")
            break
        await asyncio.sleep(0.5)
    await show.chatter(voices.MOOD, voices_count=10, seconds=4)


async def flash_sale(show: Show) -> None:
    await show.pin(HONEY.word)
    await show.host_says("椴树蜜六十罐，一人一罐，三、二、一…… Sixty jars, one each. Three, two, one…")
    await show.chatter(voices.ABOUT[HONEY.word], voices_count=20, seconds=6)
    await show.host.post(f"/offers/{show.place.offers[HONEY.word]}/price", {"price_minor": FLASH_PRICE_MINOR})
    show.tell(f"flash sale: {HONEY.stock} jars at {format_minor(FLASH_PRICE_MINOR, 'CNY')}")
    replies = await show.together(_tap(viewer, show.place.offers[HONEY.word], show.rng) for viewer in show.crowd)
    held = [(viewer, hold) for viewer, hold in zip(show.crowd, replies, strict=True) if hold]
    show.tell(f"flash sale: {len(held)} of {len(show.crowd)} got a jar")
    for viewer, hold in held:
        show.aside(_order_and_pay(viewer, hold))
    await show.chatter(voices.HURRY, voices_count=25, seconds=8)


async def _tap(viewer: Viewer, offer_id: str, rng: random.Random) -> str:
    """A hold's id, or nothing. One in six taps twice; both taps carry the same key, so it is one jar."""
    await asyncio.sleep(rng.random() * 0.4)
    key = viewer.new_key()
    taps = [viewer.reserve(offer_id, key=key) for _ in range(2 if rng.random() < 1 / 6 else 1)]
    replies = await asyncio.gather(*taps)
    holds = {reply["hold"] for reply in replies if reply.get("outcome") == "held"}
    return holds.pop() if holds else ""


async def _order_and_pay(viewer: Viewer, hold_id: str) -> None:
    order = await viewer.order(hold_id)
    if order.get("outcome") == "placed":
        await viewer.pay(order["order"])


async def envelope(show: Show) -> None:
    body = {"title": "村里请客 · The village treats you", "mode": "lucky", "total_minor": 10000, "count": 40, "ttl_s": 300}
    opened = await show.host.post(f"/sessions/{show.place.session}/envelopes", body)
    show.tell("red envelope: 100 yuan in 40 shares")
    grabs = await show.together(
        viewer.call("envelope.grab", {"envelope": opened["id"], "key": viewer.new_key()})
        for viewer in show.some(int(len(show.crowd) * 0.8))
    )
    shares = [reply["amount_minor"] for reply in grabs if reply.get("outcome") == "opened"]
    if shares:
        show.tell(f"envelope: {len(shares)} shares, luckiest {format_minor(max(shares), 'CNY')}")
    await show.chatter(voices.MOOD, voices_count=14, seconds=6)


async def mistakes(show: Show) -> None:
    """What goes wrong in every show: a rude line, a declined card, a payment that comes too late, a cut line at the host's."""
    rude, declined, late = show.some(3)
    reply = await rude.say(show.place.room, voices.RUDE)
    show.tell(f"a rude line: {reply.get('outcome')}")
    if reply.get("message") and reply.get("outcome") == "held_for_review":
        review = {"room": show.place.room, "message": reply["message"], "approve": False, "key": rude.new_key()}
        await show.sister.post("/chat/review", review)
        mute = {"room": show.place.room, "viewer": rude.id, "seconds": 60, "reason": "rude", "key": rude.new_key()}
        await show.sister.post("/chat/mute", mute)
    hold = await declined.reserve(show.place.offers[RICE.word])
    if hold.get("outcome") == "held":
        order = await declined.order(hold["hold"])
        first = await declined.pay(order["order"], "sandbox_decline")
        second = await declined.pay(order["order"], "sandbox_duplicate")
        show.tell(f"a card is declined, then pays: {first}, {second}")
    show.aside(late.buy(show.place.offers[RICE.word], method="sandbox_late"))
    await show.host.post(f"/sessions/{show.place.session}/interrupt", {"reason": "the village network is down"})
    show.tell("interrupted: the host's line is cut")
    await show.chatter(("卡了？", "黑屏了", "Frozen for you too?", "等等主播"), voices_count=8, seconds=5)
    await show.host.post(f"/sessions/{show.place.session}/resume")
    show.tell("back again")
    await show.host_says("村里断网了，回来了！ Back again, sorry!")


async def the_rest(show: Show) -> None:
    for good in GOODS[3:]:
        await show.pin(good.word)
        show.tell(f"pinned: {good.word}")
        await show.chatter((*voices.ABOUT[good.word], *voices.MOOD), voices_count=10, seconds=5)
        await show.sister_says(show.rng.choice(voices.ANSWERS[good.word]))
        await show.shop(good.word, 20, seconds=7)


async def goodbye(show: Show) -> None:
    await show.host_says("今天就到这里，谢谢大家，下周同一时间！ Thank you all, same time next week!")
    await show.chatter(voices.THANKS, voices_count=20, seconds=8)
    await show.host.post(f"/sessions/{show.place.session}/end")
    show.tell("ended")


ACTS: tuple[Callable[[Show], Coroutine[Any, Any, None]], ...] = (
    go_live,
    tea,
    oranges,
    draw,
    flash_sale,
    envelope,
    mistakes,
    the_rest,
    goodbye,
)
