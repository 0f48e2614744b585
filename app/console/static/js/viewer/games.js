/** Draws and red envelopes: a chip for each on the stage, a sheet to take part, and the news when one is won. */

import { explain } from "../api.js";
import { byId, el, field, fields, icon, show } from "../dom.js";
import { countdownTo, money, serverNow, whole } from "../format.js";
import { t } from "../i18n.js";
import { newKey } from "../live-client.js";
import { busy, openSheet, shout, toast } from "../sheets.js";

const DONE_SHOWN_MS = 90_000;
const ASK_AGAIN_MS_MAX = 3000; // a whole room hears of a loss at once
const DONE = new Set(["drawn", "cancelled", "emptied", "expired", "settled"]);

export function gamesPart(context) {
  const mine = {
    entered: new Map(), // draw -> what was sent
    shares: new Map(),
    booked: new Set(), // envelopes whose share is in the wallet: nothing can take it back
    keys: new Map(),
    doneAt: new Map(),
    seen: new Set(),
    open: null,
  };
  const draw = () => drawChips(context, mine);
  setInterval(draw, 15_000); // what is over leaves the stage after a while
  return {
    update(changed) {
      if (changed.has("draws") || changed.has("envelopes")) {
        draw();
        mine.open?.refresh();
      }
    },
    event(event) {
      if (event.type === "draw.drawn") announceWinners(context, mine, event);
      if (event.type === "draw.won") shout(t("draw.you_won", { prize: event.prize.name }));
      if (event.type === "draw.won") mine.won = event;
      if (event.type === "share.opened") {
        mine.shares.set(event.envelope, event.amount_minor);
        mine.booked.add(event.envelope);
      }
      if (event.type === "sales.reopened" && event.lost)
        setTimeout(() => askAgain(context, mine), Math.random() * ASK_AGAIN_MS_MAX);
    },
  };
}

/** The engine lost its last moment: the same wishes with the same keys, since what was answered then may be void. */
async function askAgain(context, mine) {
  const { draws, envelopes } = context.state;
  for (const [id, wish] of mine.entered) {
    if (draws.get(id)?.state !== "open") continue;
    const reply = await context.client.rpc("draw.enter", wish).catch(() => null);
    if (!reply || reply.outcome === "entered" || reply.outcome === "again") continue;
    mine.entered.delete(id);
    toast(t("draw.void", { title: draws.get(id).title }), "bad");
  }
  for (const id of mine.shares.keys()) {
    if (mine.booked.has(id) || !envelopes.has(id)) continue;
    const reply = await context.client.rpc("envelope.grab", { envelope: id, key: keyFor(mine, id) }).catch(() => null);
    if (!reply || reply.amount_minor === mine.shares.get(id)) continue;
    if (reply.amount_minor) mine.shares.set(id, reply.amount_minor);
    else mine.shares.delete(id);
    toast(t("envelope.void"), "bad");
  }
  mine.open?.refresh();
}

/** One key a game: pressing again is the same wish. */
function keyFor(mine, id) {
  if (!mine.keys.has(id)) mine.keys.set(id, newKey());
  return mine.keys.get(id);
}

function drawChips(context, mine) {
  const box = byId("games");
  const visible = (game) => {
    if (!DONE.has(game.state)) return true;
    if (!mine.doneAt.has(game.id)) mine.doneAt.set(game.id, Date.now());
    return Date.now() - mine.doneAt.get(game.id) < DONE_SHOWN_MS && game.state !== "cancelled";
  };
  const chips = [
    ...[...context.state.draws.values()].filter(visible).map((draw) => drawChip(context, mine, draw)),
    ...[...context.state.envelopes.values()].filter(visible).map((envelope) => envelopeChip(context, mine, envelope)),
  ];
  const focused = document.activeElement?.dataset?.game;
  box.replaceChildren(...chips);
  show(box, chips.length > 0);
  if (focused) box.querySelector(`[data-game="${CSS.escape(focused)}"]`)?.focus();
}

/** A chip hops when it is new, and only then. */
function chip(mine, game, { kind, iconName, title, note, onclick }) {
  const state = DONE.has(game.state) ? "done" : mine.seen.has(game.id) ? "" : "fresh";
  mine.seen.add(game.id);
  return el(
    "button",
    { type: "button", class: `game ${kind} ${state}`, dataset: { game: game.id }, onclick },
    icon(iconName),
    el("span", {}, title, el("small", {}, note)),
  );
}

// --- draws -------------------------------------------------------------------------------------------------------------------------

function drawChip(context, mine, draw) {
  const left = draw.state === "open" && draw.closes_at && Date.parse(draw.closes_at) > serverNow();
  const note = left ? [t("draw.closes_in"), " ", countdownTo(draw.closes_at)] : t(`draw_state.${draw.state}`);
  return chip(mine, draw, {
    kind: "draw",
    iconName: "gift",
    title: draw.title,
    note,
    onclick: () => openDraw(context, mine, draw.id),
  });
}

function prizeText(context, prize) {
  const what =
    prize.kind === "money" && prize.amount_minor ? money(prize.amount_minor, currencyOf(context)) : prize.name;
  return `${what} × ${whole(prize.count)}`;
}

const currencyOf = (context) => context.state.room?.currency ?? "CNY";

function openDraw(context, mine, id) {
  const sheet = openSheet(context.state.draws.get(id).title, { onClose: () => (mine.open = null) });
  const refresh = () => {
    const draw = context.state.draws.get(id);
    if (!draw) return;
    const winners = context.state.winners.get(id);
    const typed = sheet.body.querySelector("[name=keyword]")?.value ?? "";
    sheet.body.replaceChildren(
      el(
        "div",
        { class: "stack" },
        el(
          "ul",
          { class: "prizes", "aria-label": t("draw.prizes") },
          draw.prizes.map((prize) => el("li", { class: "prize" }, icon("gift"), prizeText(context, prize))),
        ),
        el(
          "p",
          { class: "row between" },
          el("span", { class: "muted" }, t("draw.entrants", { n: whole(draw.entrants) })),
          draw.state === "open" &&
            draw.closes_at &&
            el("span", { class: "countdown" }, icon("clock"), t("draw.closes_in"), countdownTo(draw.closes_at)),
        ),
        winners ? winnerList(winners, context.me.id) : entryForm(context, mine, draw, typed, refresh),
        proof(draw),
      ),
    );
  };
  mine.open = { refresh };
  refresh();
}

function entryForm(context, mine, draw, typed, refresh) {
  if (mine.entered.has(draw.id)) return el("p", { class: "badge good" }, icon("check"), t("draw.entered"));
  if (draw.state !== "open") return el("p", { class: "muted" }, t(`draw_state.${draw.state}`));
  const needsWord = draw.condition === "keyword";
  const submit = el("button", { type: "submit", class: "button primary wide" }, t("draw.enter"));
  const send = async (event) => {
    event.preventDefault();
    const keyword = fields(event.target).keyword ?? "";
    const wish = { draw: draw.id, keyword, key: keyFor(mine, `${draw.id}/${keyword}`) };
    const reply = await busy(submit, () => context.client.rpc("draw.enter", wish), explainGame);
    if (!reply) return;
    if (reply.outcome === "entered" || reply.outcome === "again") mine.entered.set(draw.id, wish);
    toast(t(`enter_outcome.${reply.outcome}`), mine.entered.has(draw.id) ? "good" : "bad");
    refresh();
  };
  const word =
    needsWord &&
    field(
      t("draw.keyword"),
      el("input", { name: "keyword", maxlength: 60, required: true, autocomplete: "off", value: typed }),
      { hint: draw.keyword ? t("draw.keyword_hint", { word: draw.keyword }) : "" },
    );
  return el("form", { class: "stack", onsubmit: send }, word, submit);
}

/** Guests may be kept out of draws and envelopes: the refusal then says whom to ask. */
function explainGame(error) {
  return error.code === 103 ? t("draw.members_only") : explain(error);
}

function winnerList(winners, myId) {
  const items = winners.map((winner) =>
    el(
      "li",
      { class: `winner ${winner.viewer === myId ? "me" : ""}` },
      el("span", {}, winner.viewer === myId ? t("draw.me", { name: winner.name }) : winner.name),
      el("span", {}, winner.prize),
    ),
  );
  return el("div", { class: "stack tight" }, el("h3", {}, t("draw.winners")), el("ul", { class: "winners" }, items));
}

function proof(draw) {
  const row = (term, value) => value && el("p", {}, `${term}: `, el("code", {}, value));
  return el(
    "details",
    { class: "proof" },
    el("summary", {}, t("draw.proof")),
    el("p", {}, t("draw.proof_text")),
    row(t("draw.rules_hash"), draw.rules_hash),
    row(t("draw.commitment"), draw.commitment),
    el(
      "p",
      {},
      el(
        "a",
        { href: `/api/v1/draws/${encodeURIComponent(draw.id)}`, target: "_blank", rel: "noopener" },
        t("draw.proof_link"),
      ),
    ),
  );
}

function announceWinners(context, mine, { draw, winners }) {
  const me = winners.find((winner) => winner.viewer === context.me.id);
  if (!me && !mine.entered.has(draw.id)) return; // the chip tells it to those who only watch
  if (document.querySelector("dialog.checkout")) {
    toast(me ? t("draw.you_won", { prize: me.prize }) : t("draw.not_you"), me ? "good" : "info"); // never over a purchase
    return;
  }
  document.querySelector("dialog.sheet[open]")?.close();
  const sheet = openSheet(draw.title, { className: me ? "gift" : "" });
  const text = me ? t("draw.you_won", { prize: me.prize }) : t("draw.not_you");
  shout(text);
  sheet.body.append(
    el(
      "div",
      { class: "stack" },
      el(
        "div",
        { class: "outcome" },
        el("span", { class: `mark ${me ? "" : "wait"}` }, icon("gift")),
        el("h3", { class: "display" }, text),
        me && el("p", { class: "muted" }, t("draw.won_text")),
      ),
      !me && winnerList(winners, context.me.id),
      el("button", { type: "button", class: "button wide", onclick: sheet.close }, t("buy.back_to_show")),
    ),
  );
}

// --- envelopes ---------------------------------------------------------------------------------------------------------------------

function envelopeChip(context, mine, envelope) {
  const note =
    envelope.state === "open"
      ? t("envelope.remaining", { n: whole(envelope.remaining), total: whole(envelope.count) })
      : t(`envelope_state.${envelope.state}`);
  const title = envelope.title || t("envelope.title");
  return chip(mine, envelope, {
    kind: "envelope",
    iconName: "envelope",
    title,
    note,
    onclick: () => openEnvelope(context, mine, envelope.id),
  });
}

function openEnvelope(context, mine, id) {
  const envelope = context.state.envelopes.get(id);
  const sheet = openSheet(envelope.title || t("envelope.title"), { className: "gift" });
  const total = el(
    "p",
    { class: "muted" },
    t("envelope.total", { amount: money(envelope.total_minor, envelope.currency), n: whole(envelope.count) }),
  );
  const draw = (...content) => sheet.body.replaceChildren(el("div", { class: "outcome" }, ...content));
  const opened = (amountMinor) => {
    mine.shares.set(id, amountMinor);
    shout(t("envelope.opened", { amount: money(amountMinor, envelope.currency) }));
    draw(
      el("p", {}, t("envelope.yours")),
      el("p", { class: "amount" }, money(amountMinor, envelope.currency)),
      el("p", { class: "muted" }, t("envelope.yours_text")),
      total,
    );
  };
  const grab = async (event) => {
    const reply = await busy(
      event.currentTarget,
      () => context.client.rpc("envelope.grab", { envelope: id, key: keyFor(mine, id) }),
      explainGame,
    );
    if (!reply) return;
    if (reply.outcome === "opened" || reply.outcome === "already")
      opened(reply.amount_minor ?? mine.shares.get(id) ?? 0);
    else if (reply.outcome === "frozen") toast(t("grab_outcome.frozen"), "info");
    else draw(el("h3", {}, t(`grab_outcome.${reply.outcome}`)), total);
  };
  if (mine.shares.has(id)) opened(mine.shares.get(id));
  else if (envelope.state !== "open") draw(el("h3", {}, t(`envelope_state.${envelope.state}`)), total);
  else draw(total, el("button", { type: "button", class: "open-envelope", onclick: grab }, t("envelope.open")));
}
