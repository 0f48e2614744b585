"""What the people of a load test do. Weights follow a real evening: most only watch, some buy, few grab with both hands, one is the host.

The product's address, room, offers and the signing secret come in environment variables set by run.py; a secret is never on a command line.
"""

import json
import os
import random
import time
import uuid
from typing import Any

import gevent
import jwt
from locust import HttpUser, User, between, constant, task

from loadtests.client import Connection
from loadtests.shapes import Evening

BASE_URL = os.environ.get("JISHI_URL", "http://127.0.0.1:8000")
PLACE: dict[str, Any] = json.loads(os.environ.get("JISHI_LOAD_PLACE", '{"room": "", "offers": [], "host_token": ""}'))
ADDRESS = {"name": "Load Tester", "phone": "13900000000", "region": "浙江省", "line": "1 Test Street"}


def make_token(viewer_id: str) -> str:
    claims = {"sub": viewer_id, "info": {"name": viewer_id}, "exp": int(time.time()) + 3600}
    return jwt.encode(claims, os.environ["JISHI_TOKEN_SECRET"], algorithm="HS256")


def new_key() -> str:
    return uuid.uuid4().hex


class Watcher(User):
    """Base of all viewers: a connection with the room's channels, and the habit of coming back when it breaks."""

    abstract = True

    def on_start(self) -> None:
        self.viewer_id = f"load-{uuid.uuid4().hex[:12]}"
        self.connection = Connection(
            self.environment, BASE_URL.replace("http", "ws", 1) + "/connection/websocket", make_token(self.viewer_id)
        )
        self.stormed = False
        self.join()

    def on_stop(self) -> None:
        self.connection.close()

    def join(self) -> None:
        while not self.connection.open([f"room:{PLACE['room']}", f"chat:{PLACE['room']}"]):
            gevent.sleep(0.5 + random.random())

    @task(1)
    def ride_out_the_storm(self) -> None:
        """Once a storm, everybody's line is cut in the same two seconds."""
        if Evening.phase == "reconnect storm" and not self.stormed:
            self.stormed = True
            gevent.sleep(random.random() * 2)
            self.connection.close()
            self.join()
        elif Evening.phase != "reconnect storm":
            self.stormed = False


class Viewer(Watcher):
    """Watches, says something now and then, likes."""

    weight = 12
    wait_time = between(2, 6)

    @task(2)
    def say(self) -> None:
        self.connection.call(
            "chat.send", {"room": PLACE["room"], "text": random.choice(["好看", "支持", "Nice!", "666"]), "key": new_key()}
        )

    @task(4)
    def like(self) -> None:
        self.connection.call("room.like", {"room": PLACE["room"], "count": random.randrange(1, 20)})


class Buyer(Watcher):
    """Holds, orders, pays; sometimes lets go, sometimes sends the same command again as a poor network makes phones do."""

    weight = 6
    wait_time = between(1, 4)

    @task(6)
    def buy(self) -> None:
        request = {"offer": random.choice(PLACE["offers"])["id"], "quantity": random.choice([1, 1, 2]), "key": new_key()}
        held = self.connection.call("inventory.reserve", request)
        if random.random() < 0.2:
            again = self.connection.call("inventory.reserve", request)
            if held and again and held.get("hold") != again.get("hold"):
                raise AssertionError(f"one key, two holds: {held} {again}")
        if held.get("outcome") != "held":
            return
        if random.random() < 0.1:
            self.connection.call("inventory.release", {"hold": held["hold"], "key": new_key()})
            return
        placed = self.connection.call("order.place", {"hold": held["hold"], "address": ADDRESS, "policy_accepted": True, "key": new_key()})
        if placed.get("outcome") == "placed" and random.random() < 0.8:
            self.connection.call("order.pay", {"order": placed["order"], "key": new_key()})


class Grabber(Watcher):
    """Waits for the flash sale, then taps as fast as answers come."""

    weight = 4
    wait_time = constant(0.2)

    @task(6)
    def grab(self) -> None:
        if Evening.phase == "flash sale":
            self.connection.call("inventory.reserve", {"offer": PLACE["offers"][0]["id"], "quantity": 1, "key": new_key()})


class Host(HttpUser):
    """Pins, changes a price, looks at the figures."""

    fixed_count = 1
    host = BASE_URL
    wait_time = between(2, 4)

    def on_start(self) -> None:
        self.client.headers["Authorization"] = f"Bearer {PLACE['host_token']}"

    @task(3)
    def pin(self) -> None:
        self.client.put(f"/api/v1/rooms/{PLACE['room']}/pin", json={"offer": random.choice(PLACE["offers"])["id"]}, name="PUT pin")

    @task(2)
    def figures(self) -> None:
        self.client.get(f"/api/v1/sessions/{PLACE['session']}/figures", name="GET figures")

    @task(1)
    def top_up(self) -> None:
        offer = PLACE["offers"][-1]["id"]
        self.client.post(f"/api/v1/offers/{offer}/stock", json={"add": 5}, headers={"Idempotency-Key": new_key()}, name="POST stock")
