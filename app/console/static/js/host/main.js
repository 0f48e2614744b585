/**
 * The host console: signs in, picks a room and a session, and lets each panel draw its part of the show.
 *
 * A panel is `panel(context) -> { update(changed), event(event), load() }`: `load` reads what only REST has (at the start, and after a
 * cut that lost events), `update` redraws what changed in the room's state, `event` hears the room's, the chat's and the team's events.
 */

import { Api, explain } from "../api.js";
import { byId, el, setText, show } from "../dom.js";
import { startCountdowns, syncClock } from "../format.js";
import { bindLanguageSwitch, t, word } from "../i18n.js";
import { connectionUrl, forgetToken, loadToken } from "../identity.js";
import { LiveClient } from "../live-client.js";
import { ALL_PARTS, applyEvent, emptyState, fromSnapshot } from "../room-state.js";
import { toast } from "../sheets.js";
import { askAtDoor, staffToken } from "../signin.js";
import { chatPanel } from "./chat.js";
import { figuresPanel } from "./figures.js";
import { gamesPanel } from "./games.js";
import { ordersPanel } from "./orders.js";
import { shelfPanel } from "./shelf.js";
import { showPanel } from "./show.js";
import { bindTabs } from "./tabs.js";

const ROOM = "jishi.host_room";
const context = {
  api: null,
  client: null,
  me: null,
  roomId: "",
  room: null,
  sessions: [],
  session: null,
  state: emptyState(),
  panels: [],
};

bindLanguageSwitch(byId("language"));
startCountdowns();
byId("sign-out").addEventListener("click", () => {
  forgetToken("staff");
  location.reload();
});

async function signIn() {
  let token = await staffToken(byId("door"));
  for (;;) {
    context.api = new Api(token);
    try {
      context.me = await context.api.get("/me");
      if (context.me.rights["staff.watch"]) break;
      toast(t("signin.no_staff"), "bad");
    } catch (error) {
      toast(explain(error), "bad");
      if (error.status !== 401) return;
    }
    forgetToken("staff");
    token = await askAtDoor(byId("door"));
  }
  show(byId("sign-out"), true);
}

/** Whether the caller has a right in the room at hand: what is not allowed is not offered. (The server decides all the same.) */
context.may = (right) => {
  const rooms = context.me.rights[right] ?? [];
  return rooms.includes("*") || rooms.includes(context.roomId);
};

async function pickRoom() {
  const mine = context.me.rights["staff.watch"];
  const rooms = (await context.api.all("/rooms")).filter((room) => mine.includes("*") || mine.includes(room.id));
  if (rooms.length === 0) {
    byId("door").replaceChildren(el("p", { class: "empty" }, t("host.no_room")));
    show(byId("door"), true);
    return;
  }
  const picker = byId("room-picker");
  const known =
    rooms.find((room) => room.id === sessionStorage.getItem(ROOM)) ??
    rooms.find((room) => room.live_session) ??
    rooms[0];
  picker.replaceChildren(
    ...rooms.map((room) => el("option", { value: room.id, selected: room === known }, room.title)),
  );
  picker.addEventListener("change", () => {
    sessionStorage.setItem(ROOM, picker.value);
    location.reload(); // a room is a life of its own: nothing of one is kept for the other
  });
  show(byId("bar-room"), true);
  await openRoom(known);
}

async function openRoom(room) {
  context.roomId = room.id;
  context.room = room;
  byId("watch-link").href = `/r/${encodeURIComponent(room.id)}`;
  show(byId("watch-link"), true);
  show(byId("desk"), true);
  setText(byId("desk-title"), room.title);
  bindTabs(byId("tabs"), ["show", "shelf", "games", "orders", "figures", "chat"]);
  await context.reloadSessions();
  context.client = new LiveClient({ url: connectionUrl(), token: loadToken("staff"), name: "host-console" });
  context.panels.push(
    ...[showPanel, shelfPanel, gamesPanel, chatPanel, ordersPanel, figuresPanel].map((panel) => panel(context)),
  );
  context.client.on("state", showConnection);
  context.client.subscribe(`room:${room.id}`, { onSubscribed: start, onEvent: take });
  context.client.subscribe(`staff:${room.id}`, {
    onSubscribed: ({ recovered, wasRecovering }) => wasRecovering && !recovered && load(),
    onEvent: take,
  });
  context.client.connect();
  await load();
}

function start({ snapshot, recovered }) {
  if (!recovered && snapshot) {
    context.state = fromSnapshot(snapshot);
    syncClock(snapshot.now);
  }
  redraw(ALL_PARTS);
}

function load() {
  return Promise.all(context.panels.map((panel) => panel.load?.().catch((error) => toast(explain(error), "bad"))));
}

function take(event) {
  if (event.type === "room.pulse") syncClock(event.at);
  const changed = applyEvent(context.state, event);
  for (const panel of context.panels) panel.event?.(event);
  if (event.type.startsWith("session.")) context.reloadSessions().then(load);
  if (changed.length > 0) redraw(changed);
}

function redraw(changed) {
  const names = new Set(changed);
  for (const panel of context.panels) panel.update?.(names);
}

/** The session at hand: the one on air, else the next that can go on air, else the last. */
context.reloadSessions = async () => {
  const page = await context.api.get(`/rooms/${context.roomId}/sessions`, { limit: 30 });
  context.sessions = page.items;
  const by = (...states) => page.items.find((session) => states.includes(session.state));
  const chosen = page.items.find(
    (session) => session.id === context.session?.id && !["ended", "archived"].includes(session.state),
  );
  context.session = by("live", "interrupted") ?? chosen ?? by("scheduled", "draft") ?? page.items[0] ?? null;
  drawBadge();
};

/** Works on another session of the room, for instance to prepare the next one. */
context.chooseSession = async (id) => {
  context.session = context.sessions.find((session) => session.id === id) ?? context.session;
  drawBadge();
  await load();
};

/** After a step of the session: everything may look different. */
context.sessionChanged = async (session) => {
  if (session) context.session = session;
  await context.reloadSessions();
  await load();
};

context.offers = () => context.shelf ?? [];
context.currency = () => context.room?.currency ?? "CNY";

function drawBadge() {
  const state = context.session?.state ?? "none";
  const badge = byId("session-badge");
  badge.className = state === "live" ? "badge live" : state === "interrupted" ? "badge warn" : "badge";
  setText(badge, word("session_state", state));
}

function showConnection({ state, reason, expired }) {
  const box = byId("connection");
  show(box, state !== "connected");
  setText(box, state === "closed" ? t("viewer.disconnected") : t("viewer.reconnecting"));
  if (state !== "closed") return;
  toast(expired ? t("error.expired") : t("viewer.ended_by_server", { reason }), "bad");
}

await signIn();
await pickRoom();
