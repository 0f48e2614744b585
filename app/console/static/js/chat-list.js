/** The list of chat lines, for viewers and for the team. */

import { el, setText, show } from "./dom.js";
import { t } from "./i18n.js";
import { say } from "./sheets.js";

const LINES_MAX = 200;
const SUMMARY_MS = 12_000;
const NEAR_END_PX = 40;

/** The last lines of the room's chat, for `restart`; nothing when they cannot be had. */
export async function readHistory(context) {
  const history = await context.client.rpc("chat.history", { room: context.roomId, limit: 50 }).catch(() => null);
  return history?.messages;
}

/**
 * A bounded chat list: never more than LINES_MAX lines in the page, drawn once a frame whatever the pace, kept at its end unless the
 * reader scrolled up. `lineOf(message)` makes a line's element; `welcome` is the first line.
 */
export function chatList({ lines, more, lineOf, welcome = "" }) {
  const seen = new Map(); // message id -> element
  let waiting = [];
  let unread = 0;
  let unheard = [];
  let frame = 0;
  let reading = null; // what comes while a history is on its way, which may have been read before it
  let following = true; // the reader is at the end; what resizes the list does not change that, only scrolling does

  const atEnd = () => lines.scrollHeight - lines.scrollTop - lines.clientHeight < NEAR_END_PX;
  const toEnd = () => {
    following = true;
    lines.scrollTop = lines.scrollHeight;
    unread = 0;
    show(more, false);
  };
  const flush = () => {
    frame = 0;
    const fresh = waiting.splice(0).slice(-LINES_MAX);
    for (const message of fresh) {
      const node = lineOf(message);
      node.dataset.id = message.id;
      node.dataset.viewer = message.viewer;
      seen.set(message.id, node);
      lines.append(node);
    }
    while (lines.children.length > LINES_MAX) {
      seen.delete(lines.firstElementChild.dataset.id);
      lines.firstElementChild.remove();
    }
    if (following) {
      toEnd();
    } else {
      unread += fresh.length;
      setText(more, t("chat.more", { n: unread }));
      show(more, true);
    }
  };
  more.addEventListener("click", toEnd);
  lines.addEventListener(
    "scroll",
    () => {
      following = atEnd();
      if (following && unread > 0) toEnd();
    },
    { passive: true },
  );
  new ResizeObserver(() => following && toEnd()).observe(lines);
  // A screen reader is not read every line: it gets a summary now and then, and can walk the list itself.
  setInterval(() => {
    if (unheard.length > 0)
      say(t("chat.summary", { n: unheard.length, name: unheard.at(-1).name, text: unheard.at(-1).text }));
    unheard = [];
  }, SUMMARY_MS);

  const list = {
    add(message) {
      reading?.messages.push(message);
      if (seen.has(message.id) || waiting.some((other) => other.id === message.id)) return;
      waiting.push(message);
      unheard.push(message);
      // A page in the background gets no frames; the list must stay bounded there too.
      if (waiting.length > LINES_MAX) waiting.splice(0, waiting.length - LINES_MAX);
      frame ||= requestAnimationFrame(flush);
    },
    remove({ message, viewer }) {
      reading?.removals.push({ message, viewer });
      waiting = waiting.filter((other) => other.id !== message);
      seen.get(message)?.remove();
      if (!message && viewer) for (const node of seen.values()) if (node.dataset.viewer === viewer) node.remove();
    },
    /** Begins anew with what `read()` promises, and what came meanwhile. Nothing read: the list stays. */
    async restart(read) {
      const mine = (reading = { messages: [], removals: [] });
      const messages = await read();
      if (reading !== mine) return;
      reading = null;
      if (!messages) return;
      lines.replaceChildren(...(welcome ? [el("li", { class: "line system" }, welcome)] : []));
      seen.clear();
      waiting = [];
      for (const message of [...messages, ...mine.messages])
        if (waiting.every((other) => other.id !== message.id)) waiting.push(message);
      flush();
      mine.removals.forEach(list.remove);
      toEnd();
    },
  };
  return list;
}
