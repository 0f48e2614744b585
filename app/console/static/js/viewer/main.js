/**
 * The viewer page: joins a room, keeps its state, and lets each part of the page draw what changed.
 *
 * A part is `part(context) -> { update(changed), event(event) }`. It reads `context.state`, calls `context.client.rpc`, and owns its
 * own elements; parts do not know each other, except by the few functions in the context.
 */

import { Api } from "../api.js";
import { byId, el, icon, setText, show } from "../dom.js";
import { startCountdowns, syncClock } from "../format.js";
import { bindLanguageSwitch, t } from "../i18n.js";
import { connectionUrl, forgetToken, loadToken, readClaims } from "../identity.js";
import { LiveClient } from "../live-client.js";
import { ALL_PARTS, applyEvent, emptyState, fromSnapshot } from "../room-state.js";
import { toast } from "../sheets.js";
import { chatPart } from "./chat.js";
import { checkoutPart } from "./checkout.js";
import { gamesPart } from "./games.js";
import { join } from "./join.js";
import { ordersPart } from "./orders.js";
import { shelfPart } from "./shelf.js";
import { stagePart } from "./stage.js";

const roomId = document.body.dataset.room;
const context = { roomId, state: emptyState(), me: { id: "", name: "" }, client: null, parts: [] };

bindLanguageSwitch(byId("language"));
startCountdowns();
if (await preview()) await enter();

/** What anybody may see, before joining: the page is never an empty frame behind a form. False when there is nothing to join. */
async function preview() {
  try {
    context.state = fromSnapshot(await new Api().get(`/rooms/${roomId}/snapshot`));
  } catch (error) {
    if (error.status === 404) {
      setText(byId("room-title"), t("viewer.no_such_room"));
      return false;
    }
  }
  context.parts.push(stagePart(context));
  redraw(ALL_PARTS);
  return true;
}

async function enter() {
  const token = await tokenFor();
  context.me = readClaims(token);
  context.client = new LiveClient({ url: connectionUrl(), token, name: "viewer-page" });
  context.orders = ordersPart(context);
  context.checkout = checkoutPart(context);
  context.parts.push(shelfPart(context), chatPart(context), gamesPart(context), context.orders, context.checkout);
  context.client.on("state", showConnection);
  context.client.on("event", ({ event }) => take(event)); // the viewer's own channel: the server subscribes it
  context.client.on("server-subscribed", ({ channel, recovered }) => {
    if (recovered) return;
    context.orders.refresh();
    context.checkout.recall(channel).catch(() => {}); // the holds run out by themselves
  });
  context.client.subscribe(`room:${roomId}`, {
    onSubscribed: ({ snapshot, recovered }) => {
      if (!recovered && snapshot) {
        context.state = fromSnapshot(snapshot);
        syncClock(snapshot.now);
      }
      redraw(ALL_PARTS);
    },
    onEvent: take,
    onEnded: (error) => leave(error),
  });
  context.client.connect();
}

async function tokenFor() {
  const stored = loadToken("viewer");
  const claims = readClaims(stored);
  return claims && claims.expiresAt > Date.now() + 30_000 ? stored : join(context);
}

/** An event of the room, of its chat (the chat part listens itself) or of the viewer. */
function take(event) {
  if (event.type === "room.pulse") syncClock(event.at);
  const changed = applyEvent(context.state, event);
  for (const part of context.parts) part.event?.(event);
  if (changed.length > 0) redraw(changed);
}

function redraw(changed) {
  const names = new Set(changed);
  for (const part of context.parts) part.update?.(names);
}

function showConnection({ state, reason, expired, code }) {
  const box = byId("connection");
  const texts = {
    connecting: t("viewer.connecting"),
    waiting: t("viewer.reconnecting"),
    closed: t("viewer.disconnected"),
  };
  show(box, state !== "connected");
  box.classList.toggle("lost", state === "closed");
  box.replaceChildren(icon("clock"), el("span", {}, texts[state] ?? ""));
  document.body.dataset.connection = state;
  if (state === "closed" && code !== 3000)
    expired || code === 3500 ? joinAgain() : toast(t("viewer.ended_by_server", { reason }), "bad");
}

/** The token is used up: what was bought belongs to it, so a new one is asked for openly and never taken in silence. */
function joinAgain() {
  forgetToken("viewer");
  toast(t("viewer.token_expired"), "bad");
  join(context).then(() => location.reload());
}

function leave(error) {
  context.client.close();
  toast(error.code === 412 ? t("error.banned") : t("viewer.no_such_room"), "bad");
  setText(byId("room-title"), error.code === 412 ? t("error.banned") : t("viewer.no_such_room"));
}
