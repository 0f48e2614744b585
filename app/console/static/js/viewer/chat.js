/** Chat: what the room says, and sending, with every outcome explained. */

import { explain } from "../api.js";
import { chatList, readHistory } from "../chat-list.js";
import { byId, el, setText } from "../dom.js";
import { t, word } from "../i18n.js";
import { newKey } from "../live-client.js";

export function chatPart(context) {
  const lineOf = (message) => chatLine(message, context.me.id);
  const list = chatList({ lines: byId("lines"), more: byId("more-lines"), lineOf, welcome: t("chat.welcome") });
  sendForm(context);
  context.client.subscribe(`chat:${context.roomId}`, {
    onSubscribed: ({ recovered }) => {
      if (!recovered) list.restart(() => readHistory(context));
    },
    onEvent: (event) => {
      if (event.type === "chat.sent") list.add(event.message);
    },
  });
  return {
    update(changed) {
      if (changed.has("slowMode")) drawSlowMode(context.state.slowModeS);
    },
    event(event) {
      if (event.type === "chat.deleted") list.remove(event);
      if (event.type === "chat.muted" && event.room === context.roomId)
        hint(event.until ? t("chat.you_are_muted", { reason: event.reason }) : t("chat.you_may_speak"));
    },
  };
}

function chatLine(message, myId) {
  const kind = message.role ? "team" : message.viewer === myId ? "mine" : "";
  return el(
    "li",
    { class: `line ${kind}` },
    message.role && el("span", { class: "role" }, word("role", message.role)),
    el("b", {}, message.name || t("chat.somebody")),
    ` ${message.text}`,
  );
}

function sendForm(context) {
  const input = byId("chat-text");
  let pending = null; // the same text sent again keeps its key: a lost answer must not become a second line
  byId("chat-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text || !context.client) return;
    if (pending?.text !== text) pending = { text, key: newKey() };
    try {
      const reply = await context.client.rpc("chat.send", { room: context.roomId, text, key: pending.key });
      pending = null;
      const isTaken = reply.outcome === "sent" || reply.outcome === "held_for_review";
      if (isTaken && input.value.trim() === text) input.value = ""; // else the next line is being written
      hint(reply.outcome === "sent" ? "" : outcomeText(reply));
      if (reply.reservation) context.checkout.reserved(reply.reservation); // the line was an offer's keyword
    } catch (error) {
      hint(explain(error));
    }
  });
  input.addEventListener("input", () => hint(""));
}

function outcomeText(reply) {
  return t(`chat_outcome.${reply.outcome}`, { seconds: Math.max(1, Math.ceil((reply.wait_ms ?? 0) / 1000)) });
}

function hint(text) {
  setText(byId("chat-hint"), text);
}

function drawSlowMode(seconds) {
  byId("chat-text").setAttribute(
    "placeholder",
    seconds > 0 ? t("chat.slow_placeholder", { seconds }) : t("viewer.chat_placeholder"),
  );
}
