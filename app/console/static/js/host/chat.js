/** The team's chat: what is said, deleting, muting, banning, what waits for review, slow mode, the notice, speaking as the host. */

import { explain } from "../api.js";
import { chatList, readHistory } from "../chat-list.js";
import { byId, el, icon, setText, show } from "../dom.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { newKey } from "../live-client.js";
import { busy, confirmSheet, toast } from "../sheets.js";

const MUTES = [60, 600, 3600, 86400];
const SLOW = [0, 3, 5, 10, 30, 60];

export function chatPanel(context) {
  const parts = frame(context);
  const list = chatList({ lines: parts.lines, more: parts.more, lineOf: (message) => lineOf(context, message) });
  const reviews = reviewQueue(context, parts.reviews);
  context.client.subscribe(`chat:${context.roomId}`, {
    onSubscribed: ({ recovered }) => {
      if (!recovered) list.restart(() => readHistory(context));
    },
    onEvent: (event) => event.type === "chat.sent" && list.add(event.message),
  });
  return {
    load: reviews.load,
    event(event) {
      if (event.type === "chat.deleted") list.remove(event);
      if (event.type === "review.requested") reviews.add(event);
      if (event.type === "review.resolved") reviews.remove(event.message);
    },
    update(changed) {
      if (changed.has("slowMode")) parts.slow.value = String(context.state.slowModeS);
      if (changed.has("notice")) setText(parts.notice, context.state.notice || t("moderation.no_notice"));
    },
  };
}

function act(context, method, body) {
  return context.client.rpc(method, { room: context.roomId, key: newKey(), ...body });
}

function frame(context) {
  const lines = el("ol", {
    class: "lines",
    role: "log",
    "aria-live": "off",
    tabindex: "0",
    "aria-label": t("viewer.chat_lines"),
  });
  const more = el("button", { type: "button", class: "chip-button more-lines", hidden: true });
  const reviews = el("section", { class: "reviews", "aria-label": t("moderation.reviews"), hidden: true });
  const notice = el("span", { class: "grow" }, t("moderation.no_notice"));
  const slow = el(
    "select",
    { id: "slow-mode" },
    SLOW.map((seconds) =>
      el(
        "option",
        { value: seconds },
        seconds === 0 ? t("moderation.slow_off") : t("moderation.slow_s", { n: seconds }),
      ),
    ),
  );
  slow.addEventListener("change", () =>
    busy(slow, () => act(context, "chat.set_slow_mode", { interval_s: Number(slow.value) }), explain),
  );
  const moderate = context.may("chat.moderate");
  const tools = el(
    "div",
    { class: "stack tight chat-tools" },
    el(
      "p",
      { class: "row small-text" },
      icon("pin"),
      notice,
      el(
        "button",
        {
          type: "button",
          class: "button quiet small",
          dataset: { act: "notice" },
          onclick: () => noticeSheet(context),
        },
        t("moderation.notice"),
      ),
    ),
    el("p", { class: "row small-text" }, el("label", { for: "slow-mode" }, t("moderation.slow")), slow),
  );
  byId("panel-chat").replaceChildren(
    el("h2", {}, t("host.chat")),
    ...(moderate ? [tools] : []),
    reviews,
    el("div", { class: "lines-box" }, lines, more),
    ...(context.may("chat.send") ? [speakForm(context)] : []),
  );
  return { lines, more, reviews, notice, slow };
}

function noticeSheet(context) {
  formSheet({
    title: t("moderation.notice"),
    controls: [
      {
        name: "text",
        label: t("moderation.notice_text"),
        type: "textarea",
        maxlength: 300,
        value: context.state.notice,
        hint: t("moderation.notice_hint"),
      },
    ],
    submit: ({ text }) => act(context, "chat.pin_notice", { text: text.replace(/\s+/g, " ") }),
  });
}

function speakForm(context) {
  const input = el("input", { id: "speak", name: "text", maxlength: 300, autocomplete: "off", enterkeyhint: "send" });
  const send = async (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (!text) return;
    const reply = await busy(event.submitter, () => act(context, "chat.send", { text }), explain);
    if (reply?.outcome === "sent") {
      if (input.value.trim() === text) input.value = ""; // else the next line is being written
    } else if (reply) toast(t(`chat_outcome.${reply.outcome}`, { seconds: Math.ceil(reply.wait_ms / 1000) }), "bad");
  };
  return el(
    "form",
    { class: "speak", onsubmit: send },
    el("label", { class: "unseen", for: "speak" }, t("viewer.chat_label")),
    input,
    el("button", { type: "submit", class: "button primary" }, t("viewer.send")),
  );
}

// --- a line and what can be done with it -------------------------------------------------------------------------------------------

function lineOf(context, message) {
  const tool = (name, iconName, run) =>
    el(
      "button",
      {
        type: "button",
        class: "icon-button",
        title: t(`moderation.${name}`),
        "aria-label": `${t(`moderation.${name}`)}: ${message.name}`,
        dataset: { act: name },
        onclick: run,
      },
      icon(iconName),
    );
  const other = message.viewer !== context.me.id && !message.role;
  return el(
    "li",
    { class: `line ${message.role ? "team" : ""}` },
    el(
      "span",
      { class: "grow" },
      message.role && el("span", { class: "badge warn" }, word("role", message.role)),
      " ",
      el("b", {}, message.name || t("chat.somebody")),
      ` ${message.text}`,
    ),
    context.may("chat.moderate") &&
      el(
        "span",
        { class: "line-tools" },
        tool("delete", "trash", (event) => remove(context, message, event.currentTarget)),
        other && tool("mute", "mute", () => muteSheet(context, message)),
        other && tool("ban", "ban", (event) => ban(context, message, event.currentTarget)),
      ),
  );
}

function remove(context, message, button) {
  return busy(button, () => act(context, "chat.delete", { message: message.id }), explain);
}

function muteSheet(context, message) {
  formSheet({
    title: t("moderation.mute_of", { name: message.name }),
    action: t("moderation.mute"),
    intro: message.text,
    controls: [
      {
        name: "seconds",
        label: t("moderation.how_long"),
        type: "select",
        options: MUTES.map((seconds) => [seconds, t(`moderation.mute_${seconds}`)]),
        value: 600,
      },
      { name: "reason", label: t("show.reason"), maxlength: 200 },
    ],
    submit: async ({ seconds, reason }) => {
      await act(context, "chat.mute", { viewer: message.viewer, seconds: Number(seconds), reason });
      toast(t("moderation.muted", { name: message.name }), "good");
    },
  });
}

async function ban(context, message, button) {
  const answer = await confirmSheet(t("moderation.ban_question", { name: message.name }), {
    action: t("moderation.ban"),
    ask: t("show.reason"),
  });
  if (!answer) return;
  const reply = await busy(
    button,
    () => act(context, "chat.ban", { viewer: message.viewer, reason: answer.text }),
    explain,
  );
  if (reply) toast(t("moderation.banned", { name: message.name }), "good");
}

// --- what waits for a decision -----------------------------------------------------------------------------------------------------

function reviewQueue(context, box) {
  const waiting = new Map(); // message id -> { message, words }
  const draw = () => {
    show(box, waiting.size > 0);
    box.replaceChildren(
      el("h3", {}, t("moderation.waiting", { n: waiting.size })),
      el(
        "ul",
        { class: "stack tight" },
        [...waiting.values()].map((review) => reviewRow(context, review, forget)),
      ),
    );
  };
  const forget = (id) => waiting.delete(id) && draw();
  return {
    async load() {
      if (!context.may("chat.moderate")) return;
      const before = [...waiting.keys()];
      const page = await context.api.get(`/rooms/${context.roomId}/chat/reviews`);
      for (const id of before) waiting.delete(id); // what came meanwhile stays
      for (const review of page.items) waiting.set(review.message.id, review);
      draw();
    },
    add(review) {
      waiting.set(review.message.id, review);
      draw();
    },
    remove: forget,
  };
}

function reviewRow(context, { message, words }, forget) {
  const decide = (approve) => async (event) => {
    const reply = await busy(
      event.currentTarget,
      () => act(context, "chat.review", { message: message.id, approve }),
      explain,
    );
    if (reply) forget(message.id);
  };
  return el(
    "li",
    { class: "review", dataset: { review: message.id } },
    el("p", {}, el("b", {}, message.name), ` ${message.text}`),
    el(
      "p",
      { class: "row tight" },
      (words ?? []).map((listed) => el("span", { class: "badge bad" }, listed)),
      el(
        "button",
        { type: "button", class: "button good small", dataset: { act: "approve" }, onclick: decide(true) },
        t("moderation.approve"),
      ),
      el(
        "button",
        { type: "button", class: "button quiet small", dataset: { act: "reject" }, onclick: decide(false) },
        t("moderation.reject"),
      ),
    ),
  );
}
