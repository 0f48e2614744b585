/** The lobby: which rooms are on air. Looks again now and then, quietly, while the page is in view. */

import { Api, explain } from "./api.js";
import { byId, el, icon, setText } from "./dom.js";
import { compact } from "./format.js";
import { bindLanguageSwitch, t, word } from "./i18n.js";

const LOOK_AGAIN_MS = 10_000;
const ROOMS_MAX = 100;

bindLanguageSwitch(byId("language"));
await refresh();
setInterval(() => !document.hidden && refresh(), LOOK_AGAIN_MS);

async function refresh() {
  try {
    draw(await new Api().all("/rooms", {}, ROOMS_MAX));
  } catch (error) {
    setText(byId("rooms-state"), explain(error));
  }
}

function draw(rooms) {
  const live = rooms.filter((room) => room.live_session).sort((a, b) => b.viewers - a.viewers);
  const quiet = rooms.filter((room) => !room.live_session);
  const one = live.length === 1 ? live[0] : null;
  const focused = document.activeElement?.dataset?.room;
  setText(
    byId("rooms-state"),
    rooms.length === 0 ? t("lobby.no_rooms") : t("lobby.count", { live: live.length, all: rooms.length }),
  );
  byId("featured").replaceChildren(...(one ? [featured(one)] : []));
  byId("room-list").replaceChildren(...[...(one ? [] : live), ...quiet].map(card));
  if (rooms.length === 0) byId("featured").replaceChildren(howToOpen());
  if (focused) document.querySelector(`[data-room="${CSS.escape(focused)}"]`)?.focus();
}

function facts(room) {
  const live = room.live_session;
  return el(
    "p",
    { class: "row tight" },
    el(
      "span",
      { class: live?.state === "live" ? "badge live" : "badge" },
      word("session_state", live?.state ?? "none"),
    ),
    live && el("span", { class: "badge" }, icon("people"), t("lobby.viewers", { n: compact(room.viewers) })),
  );
}

function featured(room) {
  return el(
    "a",
    { class: "featured", href: `/r/${encodeURIComponent(room.id)}`, dataset: { room: room.id } },
    el(
      "div",
      {},
      facts(room),
      el("h3", { class: "display" }, room.live_session.title || room.title),
      el("p", {}, hostLine(room)),
    ),
    el("span", { class: "button primary" }, icon("play"), t("lobby.watch")),
  );
}

function card(room) {
  return el(
    "li",
    {},
    el(
      "a",
      { class: "room-card", href: `/r/${encodeURIComponent(room.id)}`, dataset: { room: room.id } },
      facts(room),
      el("h3", {}, room.live_session?.title || room.title),
      el("p", { class: "muted" }, hostLine(room)),
    ),
  );
}

function hostLine(room) {
  return [room.host_name, room.description]
    .filter(Boolean)
    .filter((text) => text !== room.live_session?.title)
    .join(" · ");
}

function howToOpen() {
  const command = 'jishi room open --title "Spring tea" --offer "Tea:6800:200"';
  return el("div", { class: "empty" }, el("p", {}, t("lobby.how_to_open")), el("p", {}, el("code", {}, command)));
}
