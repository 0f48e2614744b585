/** Chat: a bounded list of lines, drawn once a frame, that stays at its end unless the reader scrolled up; and sending. */

import { explain } from "../api.js";
import { byId, el, setText, show } from "../dom.js";
import { syncClock } from "../format.js";
import { t, word } from "../i18n.js";
import { newKey } from "../live-client.js";
import { say } from "../sheets.js";

const LINES_MAX = 200;
const SUMMARY_MS = 12000;
const NEAR_END_PX = 40;

export function chatPart(context) {
  const list = chatList(context);
  sendForm(context);
  context.client.subscribe(`chat:${context.roomId}`, {
    onSubscribed: async ({ recovered }) => {
      if (recovered) return;
      const history = await context.client.rpc("chat.history", { room: context.roomId, limit: 50 }).catch(() => null);
      if (history) list.reset(history.messages);
    },
    onEvent: (event) => {
      if (event.at) syncClock(event.at);
      if (event.type === "chat.sent") list.add(event.message);
    },
  });
  return {
    update(changed) {
      if (changed.has("slowMode")) drawSlowMode(context.state.slowModeS);
    },
    event(event) {
      if (event.type === "chat.deleted") list.remove(event);
      if (event.type === "chat.muted" && event.room === context.roomId) hint(event.until ? t("chat.you_are_muted", { reason: event.reason }) : t("chat.you_may_speak"));
    },
  };
}

function chatList(context) {
  const lines = byId("lines");
  const more = byId("more-lines");
  const seen = new Map(); // message id -> element
  let waiting = [];
  let unread = 0;
  let unheard = [];
  let frame = 0;

  const atEnd = () => lines.scrollHeight - lines.scrollTop - lines.clientHeight < NEAR_END_PX;
  const toEnd = () => {
    lines.scrollTop = lines.scrollHeight;
    unread = 0;
    show(more, false);
  };
  const flush = () => {
    frame = 0;
    const follow = atEnd();
    const fresh = waiting.splice(0).slice(-LINES_MAX);
    for (const message of fresh) {
      const node = lineOf(message, context.me.id);
      seen.set(message.id, node);
      lines.append(node);
    }
    while (lines.children.length > LINES_MAX) {
      seen.delete(lines.firstElementChild.dataset.id);
      lines.firstElementChild.remove();
    }
    if (follow) {
      toEnd();
    } else {
      unread += fresh.length;
      setText(more, t("chat.more", { n: unread }));
      show(more, true);
    }
  };
  more.addEventListener("click", toEnd);
  lines.addEventListener("scroll", () => atEnd() && unread > 0 && toEnd(), { passive: true });
  // A screen reader is not read every line: it gets a summary now and then, and can walk the list itself.
  setInterval(() => {
    if (unheard.length > 0) say(t("chat.summary", { n: unheard.length, name: unheard.at(-1).name, text: unheard.at(-1).text }));
    unheard = [];
  }, SUMMARY_MS);

  return {
    add(message) {
      if (seen.has(message.id) || waiting.some((other) => other.id === message.id)) return;
      waiting.push(message);
      unheard.push(message);
      // A page in the background gets no frames; the list must stay bounded there too.
      if (waiting.length > LINES_MAX) waiting.splice(0, waiting.length - LINES_MAX);
      frame ||= requestAnimationFrame(flush);
    },
    remove({ message, viewer }) {
      waiting = waiting.filter((other) => other.id !== message);
      seen.get(message)?.remove();
      if (!message && viewer) for (const node of seen.values()) if (node.dataset.viewer === viewer) node.remove();
    },
    reset(messages) {
      lines.replaceChildren(el("li", { class: "line system" }, t("chat.welcome")));
      seen.clear();
      waiting = [...messages];
      flush();
      toEnd();
    },
  };
}

function lineOf(message, myId) {
  const kind = message.role ? "team" : message.viewer === myId ? "mine" : "";
  return el(
    "li",
    { class: `line ${kind}`, dataset: { id: message.id, viewer: message.viewer } },
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
      if (reply.outcome === "sent" || reply.outcome === "held_for_review") input.value = "";
      hint(reply.outcome === "sent" ? "" : outcomeText(reply));
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
  byId("chat-text").setAttribute("placeholder", seconds > 0 ? t("chat.slow_placeholder", { seconds }) : t("viewer.chat_placeholder"));
}
