/** The stage: who is on, whether the show runs, how many watch, the notice, likes and their hearts. */

import { byId, el, icon, setText, show } from "../dom.js";
import { compact, countdownTo } from "../format.js";
import { t, word } from "../i18n.js";
import { phaseOf } from "../room-state.js";
import { toast } from "../sheets.js";

const LIKES_PER_CALL_MAX = 50;
const HEARTS_MAX = 24;
const HEARTS_PER_PULSE_MAX = 5;
const BOUGHT_MS = 3500;

export function stagePart(context) {
  const likes = likeButton(context);
  const bought = boughtLine(context);
  return {
    update(changed) {
      const { state } = context;
      if (changed.has("room") || changed.has("session")) drawSession(state);
      if (changed.has("viewers")) setText(byId("viewers"), compact(state.viewers));
      if (changed.has("likes")) likes.update();
      if (changed.has("notice")) drawNotice(state.notice);
    },
    event(event) {
      if (event.type === "purchase.announced") bought(event);
      if (event.type === "sales.frozen") toast(t("viewer.sales_frozen"), "info");
      if (event.type === "sales.reopened") toast(t("viewer.sales_reopened"), "info");
    },
  };
}

function drawSession(state) {
  const { room, session } = state;
  const phase = phaseOf(state);
  const title = session?.title || room?.title || t("viewer.room");
  setText(byId("room-title"), title);
  document.title = `${title} – ${t("common.product")}`;
  setText(byId("host-name"), room?.host || room?.title || "");
  const badge = byId("session-badge");
  badge.className = phase === "live" ? "badge live" : "badge";
  setText(badge, word("session_state", phase));
  byId("stage").classList.toggle("dimmed", phase === "interrupted" || phase === "ended");
  const curtain = byId("curtain");
  show(curtain, phase !== "live");
  if (phase !== "live") curtain.replaceChildren(...curtainOf(phase, state));
}

function curtainOf(phase, state) {
  const next = state.upcoming[0];
  const title = el("h2", {}, t(`curtain.${phase}`));
  if (phase === "interrupted") return [title, el("p", {}, state.session.reason || t("curtain.interrupted_text"))];
  if (phase !== "scheduled") return [title, el("p", {}, t(`curtain.${phase}_text`))];
  return [title, el("p", {}, next.title), countdownTo(next.starts_at), el("p", {}, t("curtain.scheduled_text"))];
}

function drawNotice(text) {
  const notice = byId("notice");
  show(notice, Boolean(text));
  setText(notice, text);
}

/** Taps are gathered and sent once a second; what others like arrives with the pulse. */
function likeButton(context) {
  let taps = 0;
  let shown = context.state.likes;
  let timer = 0;
  const flush = () => {
    timer = 0;
    const count = Math.min(taps, LIKES_PER_CALL_MAX);
    taps = 0;
    // A like that is lost is no harm: it is a mood, not a vote.
    context.client.rpc("room.like", { room: context.roomId, count }).catch(() => {});
  };
  byId("like").addEventListener("click", () => {
    if (!context.client) return;
    taps += 1;
    shown += 1;
    setText(byId("likes"), compact(shown));
    floatHeart();
    timer ||= setTimeout(flush, 1000);
  });
  return {
    update() {
      const others = Math.min(HEARTS_PER_PULSE_MAX, context.state.likes - shown);
      if (shown > 0) for (let heart = 0; heart < others; heart += 1) setTimeout(floatHeart, heart * 180);
      shown = Math.max(shown, context.state.likes);
      setText(byId("likes"), compact(shown));
    },
  };
}

function floatHeart() {
  const hearts = byId("hearts");
  if (hearts.children.length >= HEARTS_MAX || document.hidden) return;
  const heart = el("span", { class: "heart", onanimationend: () => heart.remove() }, icon("heart"));
  heart.style.setProperty("--drift", `${Math.round(Math.random() * 44 - 26)}px`);
  heart.style.setProperty("--turn", `${Math.round(Math.random() * 50 - 25)}deg`);
  hearts.append(heart);
}

function boughtLine(context) {
  let timer = 0;
  return ({ offer, name, quantity }) => {
    const line = byId("bought");
    setText(line, t("viewer.bought", { name, n: quantity, offer: context.state.offers.get(offer)?.name ?? "" }));
    line.classList.add("on");
    clearTimeout(timer);
    timer = setTimeout(() => line.classList.remove("on"), BOUGHT_MS);
  };
}
