"""The page's own client of the protocol: what it sends and what it does, against a scripted socket; and its state against the server's."""

from typing import Any

import httpx2
import pytest
from playwright.sync_api import Page

from tests.browser.conftest import OpenPage

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]

# A socket that a test plays the server of. `sockets.at(-1).say({...})` sends a frame, `.sent` holds what the client sent.
SCRIPTED = """async () => {
  const { LiveClient, mayReconnect, reconnectDelayMs } = await import('/static/js/live-client.js');
  window.sockets = [];
  window.WebSocket = class {
    static OPEN = 1;
    constructor(url, protocol) { Object.assign(this, { url, protocol, sent: [], readyState: 0 }); window.sockets.push(this); }
    open() { this.readyState = 1; this.onopen(); }
    send(frame) { this.sent.push(frame.split('\\n').map((line) => JSON.parse(line))); }
    say(...messages) { this.onmessage({ data: messages.map((one) => JSON.stringify(one)).join('\\n') }); }
    close() {}
    end(code, reason) { this.readyState = 3; this.onclose({ code, reason }); }
  };
  const log = [];
  const client = new LiveClient({ url: 'ws://test', token: 'tok' });
  client.on('state', ({ state }) => log.push(state));
  client.on('event', ({ channel, event }) => log.push([channel, event]));
  client.subscribe('room:1', {
    onSubscribed: ({ snapshot, recovered }) => log.push(['subscribed', snapshot, recovered]), onEvent: (event) => log.push(event),
  });
  client.connect();
  Object.assign(window, { client, log, mayReconnect, reconnectDelayMs });
}"""

WELCOME = {
    "id": 1,
    "connect": {"client": "c", "ping": 25, "pong": True, "subs": {"user:me": {"recoverable": True, "epoch": "u", "offset": 4}}},
}
SUBSCRIBED = {"id": 2, "subscribe": {"recoverable": True, "positioned": True, "epoch": "e1", "offset": 7, "data": {"pin": None}}}


def scripted(open_page: OpenPage) -> Page:
    page = open_page("/host")
    page.evaluate(SCRIPTED)
    return page


def say(page: Page, *messages: dict[str, Any]) -> None:
    page.evaluate("messages => sockets.at(-1).say(...messages)", list(messages))


def reconnect(page: Page, code: int) -> list[Any]:
    """Closes the socket and returns the first frame that the client sends on the next one."""
    count = page.evaluate("sockets.length")
    page.evaluate("code => sockets.at(-1).end(code, 'words')", code)
    page.evaluate("dispatchEvent(new Event('online'))")  # does not sit out the back-off
    assert page.evaluate("sockets.length") == count + 1
    page.evaluate("sockets.at(-1).open()")
    return page.evaluate("sockets.at(-1).sent[0]")


CHAT_LIST = """async () => {
  const { chatList } = await import('/static/js/chat-list.js');
  const lines = document.body.appendChild(document.createElement('ol'));
  const lineOf = ({ text }) => Object.assign(document.createElement('li'), { textContent: text });
  const list = chatList({ lines, more: document.createElement('button'), lineOf });
  const line = (id) => ({ id, viewer: 'v', text: id });
  const answers = [];
  const read = () => new Promise((resolve) => answers.push(resolve));
  const first = list.restart(read);
  const second = list.restart(read);  // a cut while the first was under way
  list.add(line('b'));
  list.add(line('c'));
  list.remove({ message: 'a' });
  answers[1]([line('a'), line('b')]);
  answers[0]([line('old')]);
  await Promise.all([first, second]);
  return [...lines.children].map((node) => node.textContent);
}"""


def test_a_chat_loses_no_line_that_comes_while_its_history_is_read(open_page: OpenPage) -> None:
    """The history was read before `c` was said and `a` deleted, and came after: drawn as it was, it took `c` away again."""
    assert open_page("/host").evaluate(CHAT_LIST) == ["b", "c"]


def test_connect_and_subscribe_go_out_in_one_frame(open_page: OpenPage) -> None:
    page = scripted(open_page)
    page.evaluate("sockets[0].open()")
    assert page.evaluate("sockets[0].protocol") == "centrifuge-json"
    assert page.evaluate("sockets[0].sent") == [
        [{"id": 1, "connect": {"token": "tok", "name": "web"}}, {"id": 2, "subscribe": {"channel": "room:1"}}]
    ]


def test_a_ping_is_answered_by_a_pong(open_page: OpenPage) -> None:
    page = scripted(open_page)
    page.evaluate("sockets[0].open()")
    say(page, WELCOME, SUBSCRIBED)
    say(page, {})
    assert page.evaluate("sockets[0].sent.slice(1)") == [[{}]]


def test_after_a_cut_it_asks_from_where_it_stood_and_takes_what_it_missed(open_page: OpenPage) -> None:
    page = scripted(open_page)
    page.evaluate("sockets[0].open()")
    say(page, WELCOME, SUBSCRIBED)
    say(
        page,
        {"push": {"channel": "room:1", "pub": {"data": {"n": 8}, "offset": 8}}},
        {"push": {"channel": "room:1", "pub": {"data": "pulse"}}},
    )
    say(page, {"push": {"channel": "user:me", "pub": {"data": {"won": 1}, "offset": 5}}})
    hello, subscribe = reconnect(page, 3001)
    assert hello["connect"]["subs"] == {"user:me": {"recover": True, "epoch": "u", "offset": 5}}
    assert subscribe["subscribe"] == {"channel": "room:1", "recover": True, "epoch": "e1", "offset": 8}
    page.evaluate("log.length = 0")
    missed = [{"data": {"n": 9}, "offset": 9}, {"data": {"n": 10}, "offset": 10}]
    answer = {"recoverable": True, "epoch": "e1", "offset": 8, "was_recovering": True, "recovered": True, "publications": missed}
    say(page, {"id": hello["id"], "connect": {"client": "c", "ping": 25}}, {"id": subscribe["id"], "subscribe": answer})
    assert page.evaluate("log") == ["connected", ["subscribed", None, True], {"n": 9}, {"n": 10}]
    hello, subscribe = reconnect(page, 1006)
    assert "subs" not in hello["connect"]  # the server did not subscribe `user:me` again: it is over
    assert subscribe["subscribe"]["offset"] == 10


def test_what_cannot_be_recovered_comes_as_a_fresh_snapshot(open_page: OpenPage) -> None:
    page = scripted(open_page)
    page.evaluate("sockets[0].open()")
    say(page, WELCOME, SUBSCRIBED)
    hello, subscribe = reconnect(page, 3008)
    page.evaluate("log.length = 0")
    fresh = {"recoverable": True, "epoch": "e2", "offset": 30, "was_recovering": True, "recovered": False, "data": {"pin": "o1"}}
    say(page, {"id": hello["id"], "connect": {"client": "c", "ping": 25}}, {"id": subscribe["id"], "subscribe": fresh})
    assert page.evaluate("log") == ["connected", ["subscribed", {"pin": "o1"}, False]]
    _, subscribe = reconnect(page, 4000)
    assert subscribe["subscribe"] == {"channel": "room:1", "recover": True, "epoch": "e2", "offset": 30}


def test_close_codes_and_the_disconnect_push_decide_what_follows(open_page: OpenPage) -> None:
    page = scripted(open_page)
    codes = [1006, 3000, 3499, 3500, 3999, 4000, 4499, 4500, 4999, 5000]
    assert page.evaluate("codes => codes.map(mayReconnect)", codes) == [True, True, True, False, False, True, True, False, False, True]
    page.evaluate("sockets[0].open()")
    say(page, WELCOME, SUBSCRIBED)
    say(page, {"push": {"disconnect": {"code": 3503, "reason": "force disconnect"}}})
    page.evaluate("sockets[0].end(1006, '')")  # a proxy lost the code; the push had it
    assert page.evaluate("client.state") == "closed"
    assert page.evaluate("client.rpc('chat.send', {}).catch((error) => error.message)") == "not connected"


def test_a_refused_token_is_final_and_a_temporary_error_is_not(open_page: OpenPage) -> None:
    page = scripted(open_page)
    page.evaluate("sockets[0].open()")
    say(page, {"id": 1, "error": {"code": 111, "message": "too many requests", "temporary": True}})
    assert page.evaluate("client.state") == "connecting"
    hello, _ = reconnect(page, 1006)
    say(page, {"id": hello["id"], "error": {"code": 109, "message": "token expired"}})
    assert page.evaluate("client.state") == "closed"


def test_back_off_grows_with_jitter_and_has_a_ceiling(open_page: OpenPage) -> None:
    page = scripted(open_page)
    delays = page.evaluate(
        "[0, 1, 5, 50].flatMap((attempt) => [0, 0.999].map((random) => Math.round(reconnectDelayMs(attempt, () => random))))"
    )
    assert delays == [300, 600, 300, 899, 300, 9890, 300, 15285]


FOLLOW = """async ([room, token]) => {
  const { LiveClient } = await import('/static/js/live-client.js');
  const { applyEvent, fromSnapshot } = await import('/static/js/room-state.js');
  const url = `ws://${location.host}/connection/websocket`;
  window.seen = [];
  await new Promise((resolve) => {
    const client = new LiveClient({ url, token });
    client.subscribe(`room:${room}`, {
      onSubscribed: ({ snapshot }) => { window.state = fromSnapshot(snapshot); resolve(); },
      onEvent: (event) => { window.seen.push(event.type); applyEvent(window.state, event); },
    });
    client.connect();
  });
}"""

# Readings (stock, likes, viewers) are excepted; a Map becomes a list.
COMPARE = """async (room) => {
  const { fromSnapshot } = await import('/static/js/room-state.js');
  const fresh = fromSnapshot(await (await fetch(`/api/v1/rooms/${room}/snapshot`)).json());
  const parts = ['room', 'session', 'upcoming', 'offers', 'pin', 'notice', 'slowModeS', 'draws', 'envelopes'];
  const plain = (state) => parts.map((part) => state[part] instanceof Map ? [...state[part].values()] : state[part]);
  return [plain(window.state), plain(fresh)];
}"""


def test_snapshot_and_events_give_a_fresh_snapshot(open_page: OpenPage, product: Any, rest: httpx2.Client, signer: Any) -> None:
    place = product.open_room("A fresh start", ["Tea:16800:50", "Rice:4990:10"])
    room, session = place["room"], place["session"]
    tea, rice = (offer["id"] for offer in place["offers"])
    page = open_page("/host")
    page.evaluate(FOLLOW, [room, signer.token("follower", "Follower")])
    rest.put(f"/rooms/{room}/pin", json={"offer": tea})
    rest.post(f"/offers/{tea}/price", json={"price_minor": 14800})
    rest.post(f"/offers/{rice}/pause")
    rest.post(f"/sessions/{session}/offers", json={"name": "Honey", "price_minor": 5900, "total": 3})
    rest.post("/chat/pin_notice", json={"room": room, "text": "Hello", "key": "n"})
    rest.post("/chat/set_slow_mode", json={"room": room, "interval_s": 5, "key": "s"})
    rest.post(f"/rooms/{room}/wallet/deposits", json={"amount_minor": 5000, "reference": room})
    prize = {"kind": "money", "name": "10 yuan", "count": 1, "amount_minor": 1000}
    rest.post(f"/sessions/{session}/draws", json={"title": "Draw", "prizes": [prize], "duration_s": 600})
    rest.post(f"/sessions/{session}/envelopes", json={"title": "Thanks", "total_minor": 100, "count": 5})
    rest.post(f"/sessions/{session}/interrupt", json={"reason": "cut"})
    wait_seen(page, "session.interrupted")
    mine, fresh = page.evaluate(COMPARE, room)
    assert mine == fresh
    rest.post(f"/sessions/{session}/end")
    wait_seen(page, "session.ended")
    mine, fresh = page.evaluate(COMPARE, room)
    assert mine[1:5] == fresh[1:5]


def wait_seen(page: Page, event_type: str) -> None:
    for _ in range(100):
        if event_type in page.evaluate("window.seen"):
            return
        page.wait_for_timeout(100)
    raise AssertionError(f"{event_type} did not come; {page.evaluate('window.seen')} did")
