"""The first afternoon of docs/connect.md, as it stands on the page: tokens, then a phone that enters a show and buys."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jwt
import pytest

from loadtests.product import Product
from tests.sdk.viewers import NODE
from tests.support.pages import blocks

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("product")]

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "connect.md").read_text()
JS_PACKAGES = ROOT / "tests" / "sdk" / "js" / "node_modules"
PHONE_S_MAX = 120

# What the page leaves to the app: where things are drawn, and what is asked.
DRIVER = """
import { enterShow } from "./show.mjs";
const [url, room, token] = process.argv.slice(2);
let drawn, paid;
const first = new Promise((resolve) => (drawn = resolve));
const isPaid = new Promise((resolve) => (paid = resolve));
const seen = [];
const notice = (kind, what) => {
  seen.push([kind, what.type ?? what.code ?? what.text]);
  if (what.type === "order.paid") paid(what.order);
};
const show = enterShow({ url, room, getToken: async () => token, draw: drawn, notice });
const state = await first;
const said = await show.call("chat.send", { room, text: "hello" });
const hold = await show.call("inventory.reserve", { offer: state.offers[0].id, quantity: 1 });
const address = { name: "Lin", phone: "13800000000", line: "8 Tea Street" };
const order = await show.call("order.place", { hold: hold.hold, address });
const paying = await show.call("order.pay", { order: order.order });
const wrong = await show.call("inventory.reserve", { offer: "x" }).catch((error) => error.code);
const isMine = (await isPaid) === order.order;
show.leave();
const outcomes = [said, hold, order, paying].map((one) => one.outcome);
console.log(JSON.stringify({ title: state.room.title, outcomes, isMine, wrong, seen }));
"""


@pytest.fixture
def room(product: Product) -> str:
    return str(product.open_room("Tea village", ["Honey:1990:60:1"])["room"])


@pytest.fixture
def token_for(product: Product) -> Any:
    shared, _ = blocks(PAGE, "Tokens", "python")
    made: dict[str, Any] = {}
    exec(shared, made)  # noqa: S102 - the page's own code
    return lambda viewer, name: made["token_for"](product.secret, viewer, name, level=3)


def run(command: list[str], **environment: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PHONE_S_MAX, check=False, env={**os.environ, **environment})
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def websocket(product: Product) -> str:
    return product.url.replace("http", "ws", 1)


def test_the_python_phone_buys(product: Product, room: str, token_for: Any, tmp_path: Path) -> None:
    [code] = blocks(PAGE, "Python", "python")
    (tmp_path / "phone.py").write_text(code)
    told = run([sys.executable, str(tmp_path / "phone.py"), websocket(product), room], TOKEN=token_for("user-42", "王小雨")).splitlines()
    assert told[0] == "on stage: Tea village"
    assert {"chat: 王小雨 大家好", "user:user-42 hold.placed", "user:user-42 order.placed", "user:user-42 order.paid"} <= set(told)
    asked = [line for line in told if line.startswith(("chat.send", "inventory.", "order.", "paid"))]
    assert asked == ["chat.send: sent", "inventory.reserve: held", "order.place: placed 1990", "order.pay: pending", "paid: True"]


def test_the_web_phone_buys(product: Product, room: str, token_for: Any, tmp_path: Path) -> None:
    [code] = blocks(PAGE, "Web", "js")
    (tmp_path / "show.mjs").write_text(code)
    (tmp_path / "driver.mjs").write_text(DRIVER)
    (tmp_path / "node_modules").symlink_to(JS_PACKAGES)
    told = json.loads(run([str(NODE), str(tmp_path / "driver.mjs"), websocket(product), room, token_for("user-43", "Lin")]))
    assert told["title"] == "Tea village"
    assert told["outcomes"] == ["sent", "held", "placed", "pending"]
    assert told["isMine"] is True
    assert told["wrong"] == 107
    assert ["chat", "hello"] in told["seen"]
    assert [what for kind, what in told["seen"] if kind == "own"] == ["hold.placed", "order.placed", "order.paid"]


def test_a_key_of_the_companys_own(product: Product) -> None:
    """The second way to make tokens: the key set on the page verifies what the page signs, by the key that the header names."""
    _, own = blocks(PAGE, "Tokens", "python")
    made: dict[str, Any] = {}
    exec(own, made)  # noqa: S102 - the page's own code
    token = made["token_for"]("user-42", "王小雨", level=3)
    keys = jwt.PyJWKSet.from_dict(json.loads(json.dumps(made["key_set"]())))
    claims = jwt.decode(token, keys[jwt.get_unverified_header(token)["kid"]], algorithms=["ES256"])
    assert (claims["sub"], claims["info"]) == ("user-42", {"name": "王小雨", "level": 3})
