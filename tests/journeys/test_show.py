"""One show from schedule to report, through real sockets and REST: the happy path as living documentation."""

from collections.abc import Callable, Generator
from contextlib import AsyncExitStack, ExitStack
from typing import Any

import pytest
from centrifuge import Client, PublicationContext, SubscribedContext, SubscriptionEventHandler

from app.demo.__main__ import Signer, websocket_url
from app.demo.team import Refused, Team
from app.demo.viewers import Viewer
from app.storage.work import Engines
from loadtests.product import Product, running_product
from tests.journeys.conftest import ENVIRONMENT, assert_books
from tests.support.clients import RawClient, raw_client
from tests.support.cluster import running_cluster
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("product")]


@pytest.fixture(scope="module", params=["one engine", "cluster"])
def product(request: pytest.FixtureRequest) -> Generator[Product]:
    """The whole of it once more on three shards."""
    with ExitStack() as stack:
        own = {} if request.param == "one engine" else {"REDIS_URL": stack.enter_context(running_cluster()).url}
        yield stack.enter_context(running_product(web=2, environment=ENVIRONMENT | own))


class Watching(SubscriptionEventHandler):
    """Keeps the snapshot and every event of a channel."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Any] = {}
        self.events: list[dict[str, Any]] = []

    async def on_subscribed(self, ctx: SubscribedContext) -> None:
        self.snapshot = ctx.data or self.snapshot

    async def on_publication(self, ctx: PublicationContext) -> None:
        self.events.append(ctx.pub.data)

    def types(self) -> list[str]:
        return [event["type"] for event in self.events]

    def last(self, event_type: str) -> dict[str, Any] | None:
        return next((event for event in reversed(self.events) if event["type"] == event_type), None)


async def saw(watching: Watching, event_type: str) -> dict[str, Any]:
    await wait_until(lambda: watching.last(event_type) is not None, within_s=20)
    event = watching.last(event_type)
    assert event is not None
    return event


async def test_a_show_from_schedule_to_report(
    product: Product, signer: Signer, operator: Team, new_viewer: Callable[[str], Viewer], product_engines: Engines
) -> None:
    # Before: a room, a host, a scheduled session with a shelf and a purse.
    room = (await operator.post("/rooms", {"title": "Tea village", "host_name": "Mei"}))["id"]
    host = Team(product.url, signer.token("mei", "Mei", roles=(f"host@{room}",)))
    session = (await host.post(f"/rooms/{room}/sessions", {"title": "First flush"}))["id"]
    offer = await host.post(
        f"/sessions/{session}/offers",
        {"name": "Longjing", "price_minor": 16800, "total": 3, "limit_per_viewer": 2, "price_min_minor": 15000},
    )
    await host.post(f"/sessions/{session}/schedule", {"starts_at": "2030-04-02T12:00:00Z"})
    await operator.post(f"/rooms/{room}/wallet/deposits", {"amount_minor": 10_000, "reference": "committee"})

    # A viewer waits at the door, with the room's snapshot.
    watching = Watching()
    watcher = Client(websocket_url(product.url), token=signer.token("watcher", "Watcher"), proxy=None)
    await watcher.connect()
    await watcher.new_subscription(f"room:{room}", events=watching, recoverable=True).subscribe()
    await wait_until(lambda: bool(watching.snapshot))
    assert [show["session"] for show in watching.snapshot["upcoming"]] == [session]
    assert watching.snapshot["offers"] == []  # the shelf is the team's until the show begins

    # During: live, pinned, cheaper within the delegated limits and never below them.
    checklist = await host.get(f"/sessions/{session}/checklist")
    assert all(item["ok"] for item in checklist["items"]), checklist
    await host.post(f"/sessions/{session}/go-live")
    assert (await saw(watching, "offer.listed"))["offer"]["id"] == offer["id"]
    await host.put(f"/rooms/{room}/pin", {"offer": offer["id"]})
    await host.post(f"/offers/{offer['id']}/price", {"price_minor": 15800})
    with pytest.raises(Refused, match="over_limit"):
        await host.post(f"/offers/{offer['id']}/price", {"price_minor": 100})
    assert (await saw(watching, "offer.pinned"))["offer"] == offer["id"]
    assert (await saw(watching, "offer.updated"))["offer"]["price_minor"] == 15800

    # Chat reaches everybody; the host's line is marked as hers.
    listening = Watching()
    await watcher.new_subscription(f"chat:{room}", events=listening, recoverable=True).subscribe()
    buyer, late = new_viewer("buyer"), new_viewer("late")
    await buyer.arrive(room)
    await late.arrive(room)
    assert (await buyer.say(room, "今年的新茶吗？"))["outcome"] == "sent"
    await host.post("/chat/send", {"room": room, "text": "是的", "key": "answer"})
    await wait_until(lambda: [event["message"]["text"] for event in listening.events] == ["今年的新茶吗？", "是的"])
    assert [event["message"]["role"] for event in listening.events] == ["", "host"]

    # Two buy all there is; a double tap is one hold; the third comes too late.
    hold = await buyer.reserve(offer["id"], 2, key="tap")
    assert (await buyer.reserve(offer["id"], 2, key="tap")) == {**hold, "repeated": True}
    assert (await buyer.reserve(offer["id"], 1))["outcome"] == "limit"
    placed = await buyer.order(hold["hold"])
    assert (placed["outcome"], placed["amount_minor"]) == ("placed", 2 * 15800)
    assert await buyer.pay(placed["order"]) == "order.paid"
    assert await late.buy(offer["id"]) == "order.paid"
    assert (await late.reserve(offer["id"]))["outcome"] == "exhausted"
    assert (await saw(watching, "offer.sold_out"))["offer"] == offer["id"]

    # A draw and an envelope.
    draw = await host.post(
        f"/sessions/{session}/draws",
        {
            "title": "Harvest",
            "condition": "everyone",
            "duration_s": 60,
            "prizes": [{"kind": "money", "name": "20", "count": 1, "amount_minor": 2000}],
        },
    )
    for viewer in (buyer, late):
        assert (await viewer.call("draw.enter", {"draw": draw["id"], "key": "enter"}))["outcome"] == "entered"
    await host.post(f"/draws/{draw['id']}/close")
    drawn = await saw(watching, "draw.drawn")
    assert len(drawn["winners"]) == 1
    envelope = await host.post(
        f"/sessions/{session}/envelopes", {"title": "Thanks", "mode": "lucky", "total_minor": 1000, "count": 2, "ttl_s": 600}
    )
    grabs = [await viewer.call("envelope.grab", {"envelope": envelope["id"], "key": "grab"}) for viewer in (buyer, late)]
    assert [grab["outcome"] for grab in grabs] == ["opened", "opened"]
    assert sum(grab["amount_minor"] for grab in grabs) == 1000

    # After: ended, reported, shipped, and the books are right.
    await host.post(f"/sessions/{session}/end")
    await saw(watching, "session.ended")
    await host.post(f"/orders/{placed['order']}/ship", {"carrier": "SF", "tracking": "SF1"})
    shown = await buyer.call("order.get", {"order": placed["order"]})
    assert (shown["state"], shown["tracking"]) == ("shipped", "SF1")
    report = await host.get(f"/sessions/{session}/report")
    assert report["summary"]["paid_orders"] == 2
    assert report["summary"]["gmv_minor"] == 3 * 15800
    await assert_books(product_engines)
    await watcher.disconnect()
    await host.close()


async def test_two_web_processes_show_the_same_room(product: Product, signer: Signer, operator: Team) -> None:
    """Connections land on either process; whoever speaks, all hear, in one order."""
    room = await live_room(operator)
    async with AsyncExitStack() as stack:
        by_node: dict[str, RawClient] = {}
        for number in range(64):
            client = await stack.enter_async_context(raw_client(product.url, signer.token(f"door-{number}", "Door")))
            by_node.setdefault(client.node, client)
            if len(by_node) == 2:
                break
        assert len(by_node) == 2, "all of 64 connections landed on one web process"
        clients = list(by_node.values())
        for client in clients:
            await client.subscribe(f"chat:{room}")
        for number in range(6):
            reply = await clients[number % 2].rpc("chat.send", {"room": room, "text": f"line {number}", "key": f"k{number}"})
            assert reply["outcome"] == "sent"
        for client in clients:
            await wait_until(lambda client=client: len(client.publications(f"chat:{room}")) == 6, within_s=15)
        heard = [[pub["data"]["message"]["text"] for pub in client.publications(f"chat:{room}")] for client in clients]
        assert heard == [[f"line {number}" for number in range(6)]] * 2


async def live_room(operator: Team) -> str:
    room: str = (await operator.post("/rooms", {"title": "Two doors", "host_name": "Mei"}))["id"]
    session = (await operator.post(f"/rooms/{room}/sessions", {"title": "Two doors"}))["id"]
    await operator.post(f"/sessions/{session}/offers", {"name": "Rice", "price_minor": 100, "total": 1})
    await operator.post(f"/sessions/{session}/go-live")
    return room
