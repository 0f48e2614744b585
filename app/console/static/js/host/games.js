/** Draws and red envelopes: open them, close them, see what became of them; and the room's wallet they are funded from. */

import { explain } from "../api.js";
import { byId, el, icon, show } from "../dom.js";
import { countdownTo, dateTime, money, whole } from "../format.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { newKey } from "../live-client.js";
import { busy, confirmSheet, toast } from "../sheets.js";

export function gamesPanel(context) {
  const panel = byId("panel-games");
  const data = { draws: [], envelopes: [], wallet: null };
  const read = (right, path, empty) =>
    context.session && context.may(right) ? context.api.get(path).catch(() => empty) : empty;
  const load = async () => {
    const id = context.session?.id;
    const [draws, envelopes, wallet] = await Promise.all([
      read("draw.run", `/sessions/${id}/draws`, { items: [] }),
      read("envelope.run", `/sessions/${id}/envelopes`, { items: [] }),
      read("wallet.room", `/rooms/${context.roomId}/wallet`, null),
    ]);
    Object.assign(data, { draws: draws.items, envelopes: envelopes.items, wallet });
    panel.replaceChildren(
      ...[
        walletCard(context, data.wallet),
        drawsCard(context, data.draws),
        envelopesCard(context, data.envelopes),
      ].filter(Boolean),
    );
  };
  let pending = 0;
  const soon = () => (pending ||= setTimeout(() => ((pending = 0), load().catch(() => {})), 400));
  context.reloadGames = load;
  return { load, event: (event) => /^(draw|envelope)\./.test(event.type) && soon() };
}

const onAir = (context) => context.session?.state === "live";

function walletCard(context, wallet) {
  if (!wallet) return null;
  const deposit = () =>
    formSheet({
      title: t("wallet.deposit"),
      currency: wallet.currency,
      intro: t("wallet.deposit_intro"),
      controls: [
        {
          name: "amount_minor",
          label: t("wallet.amount", { currency: wallet.currency }),
          type: "money",
          required: true,
        },
        {
          name: "reference",
          label: t("wallet.reference"),
          required: true,
          maxlength: 100,
          value: `manual-${newKey().slice(0, 8)}`,
        },
      ],
      submit: async (values) => {
        await context.api.post(`/rooms/${context.roomId}/wallet/deposits`, values);
        await context.reloadGames();
      },
    });
  return el(
    "article",
    { class: "card row between" },
    el(
      "div",
      { class: "row" },
      icon("wallet"),
      el(
        "div",
        {},
        el("h2", { class: "legend" }, t("wallet.title")),
        el("b", { class: "number big" }, money(wallet.available_minor, wallet.currency)),
        wallet.reserved_minor > 0 &&
          el(
            "small",
            { class: "muted" },
            ` ${t("wallet.reserved", { amount: money(wallet.reserved_minor, wallet.currency) })}`,
          ),
      ),
    ),
    context.may("wallet.deposit") &&
      el("button", { type: "button", class: "button quiet small", onclick: deposit }, t("wallet.deposit")),
  );
}

// --- draws -------------------------------------------------------------------------------------------------------------------------

function drawsCard(context, draws) {
  const may = context.may("draw.run");
  return el(
    "article",
    { class: "card stack" },
    el(
      "div",
      { class: "row between" },
      el("h2", {}, t("games.draws")),
      may &&
        onAir(context) &&
        el(
          "button",
          {
            type: "button",
            class: "button primary small",
            dataset: { act: "open-draw" },
            onclick: () => drawSheet(context),
          },
          icon("gift"),
          t("games.open_draw"),
        ),
    ),
    draws.length > 0
      ? el(
          "ul",
          { class: "stack" },
          draws.map((draw) => drawRow(context, draw)),
        )
      : el("p", { class: "muted" }, onAir(context) ? t("games.no_draws") : t("games.not_live")),
  );
}

function drawRow(context, draw) {
  const close = (event) =>
    busy(
      event.currentTarget,
      async () => (await context.api.post(`/draws/${draw.id}/close`), await context.reloadGames()),
      explain,
    );
  const cancel = async (event) => {
    const button = event.currentTarget;
    const answer = await confirmSheet(t("games.cancel_question", { title: draw.title }), {
      action: t("games.cancel"),
      ask: t("show.reason"),
    });
    if (answer)
      await busy(
        button,
        async () => (
          await context.api.post(`/draws/${draw.id}/cancel`, { reason: answer.text || t("games.cancelled_by_host") }),
          await context.reloadGames()
        ),
        explain,
      );
  };
  const winners = context.state.winners.get(draw.id) ?? []; // as the room was told; the report has them for good
  const entrants =
    draw.state === "open" ? (context.state.draws.get(draw.id)?.entrants ?? draw.entrants) : draw.entrants;
  return el(
    "li",
    { class: "game-row stack tight", dataset: { draw: draw.id, state: draw.state } },
    el(
      "div",
      { class: "row between" },
      el("h3", {}, draw.title),
      el("span", { class: `badge ${draw.state === "open" ? "good" : ""}` }, t(`draw_state.${draw.state}`)),
    ),
    el(
      "p",
      { class: "muted small-text" },
      [
        t("draw.entrants", { n: whole(entrants) }),
        draw.keyword && `“${draw.keyword}”`,
        ...(draw.prizes ?? []).map((prize) => `${prize.name} × ${prize.count}`),
      ]
        .filter(Boolean)
        .join(" · "),
      draw.state === "open" &&
        draw.closes_at &&
        el("span", {}, " · ", t("draw.closes_in"), " ", countdownTo(draw.closes_at)),
    ),
    winners.length > 0 &&
      el("p", { class: "small-text" }, `${t("draw.winners")}: ${winners.map((winner) => winner.name).join(", ")}`),
    draw.state === "open" &&
      context.may("draw.run") &&
      el(
        "div",
        { class: "row tight" },
        el(
          "button",
          { type: "button", class: "button primary small", dataset: { act: "close-draw" }, onclick: close },
          t("games.close"),
        ),
        el("button", { type: "button", class: "button quiet small", onclick: cancel }, t("games.cancel")),
      ),
  );
}

function drawSheet(context) {
  const currency = context.currency();
  const offers = context.offers().filter((offer) => offer.state === "listed");
  const kinds = [
    ["money", t("games.prize_money")],
    ...(offers.length > 0 ? [["product", t("games.prize_product")]] : []),
  ];
  const form = formSheet({
    title: t("games.open_draw"),
    action: t("games.open_draw"),
    currency,
    intro: t("games.draw_intro"),
    controls: [
      { name: "title", label: t("games.title"), required: true, maxlength: 80 },
      { name: "keyword", label: t("games.keyword"), maxlength: 60, hint: t("games.keyword_hint") },
      { name: "kind", label: t("games.prize"), type: "select", options: kinds },
      { name: "amount", label: t("games.prize_amount", { currency }), type: "money" },
      {
        name: "offer",
        label: t("games.prize_offer"),
        type: "select",
        options: offers.map((offer) => [offer.id, offer.name]),
      },
      { name: "count", label: t("games.prize_count"), type: "number", min: 1, max: 1000, value: 1, required: true },
      {
        name: "duration_s",
        label: t("games.duration"),
        type: "number",
        min: 1,
        max: 86400,
        value: 60,
        hint: t("games.duration_hint"),
      },
    ],
    submit: async (values) => {
      await context.api.post(`/sessions/${context.session.id}/draws`, drawBody(values, offers, currency));
      toast(t("games.draw_opened"), "good");
      await context.reloadGames();
    },
  });
  const fit = () => {
    const money = form.nodes.get("kind").value === "money";
    show(form.nodes.get("amount").parentElement, money);
    form.nodes.get("amount").required = money;
    show(form.nodes.get("offer").parentElement, !money);
  };
  form.nodes.get("kind").addEventListener("change", fit);
  fit();
}

function drawBody(values, offers, currency) {
  const product = values.kind === "product";
  const offer = offers.find((one) => one.id === values.offer);
  const prize = product
    ? { kind: "product", name: offer.name, count: Number(values.count), offer: offer.id }
    : { kind: "money", name: money(values.amount, currency), count: Number(values.count), amount_minor: values.amount };
  return {
    title: values.title,
    condition: values.keyword ? "keyword" : "everyone",
    keyword: values.keyword,
    prizes: [prize],
    duration_s: Number(values.duration_s) || null,
  };
}

// --- envelopes ---------------------------------------------------------------------------------------------------------------------

function envelopesCard(context, envelopes) {
  const may = context.may("envelope.run");
  return el(
    "article",
    { class: "card stack" },
    el(
      "div",
      { class: "row between" },
      el("h2", {}, t("games.envelopes")),
      may &&
        onAir(context) &&
        el(
          "button",
          {
            type: "button",
            class: "button primary small",
            dataset: { act: "open-envelope" },
            onclick: () => envelopeSheet(context),
          },
          icon("envelope"),
          t("games.open_envelope"),
        ),
    ),
    envelopes.length > 0
      ? el(
          "ul",
          { class: "stack" },
          envelopes.map((envelope) => envelopeRow(context, envelope)),
        )
      : el("p", { class: "muted" }, onAir(context) ? t("games.no_envelopes") : t("games.not_live")),
  );
}

function envelopeRow(context, envelope) {
  const live = context.state.envelopes.get(envelope.id);
  const remaining = envelope.state === "open" ? (live?.remaining ?? envelope.remaining) : envelope.remaining;
  const end = async (event) => {
    const button = event.currentTarget;
    if (!(await confirmSheet(t("games.end_envelope_question"), { action: t("games.end_envelope") }))) return;
    await busy(
      button,
      async () => (await context.api.post(`/envelopes/${envelope.id}/end`), await context.reloadGames()),
      explain,
    );
  };
  return el(
    "li",
    { class: "game-row stack tight", dataset: { envelope: envelope.id, state: envelope.state } },
    el(
      "div",
      { class: "row between" },
      el("h3", {}, envelope.title),
      el("span", { class: `badge ${envelope.state === "open" ? "good" : ""}` }, word("envelope_state", envelope.state)),
    ),
    el(
      "p",
      { class: "muted small-text" },
      [
        t("envelope.total", { amount: money(envelope.total_minor, envelope.currency), n: whole(envelope.count) }),
        t("envelope.remaining", { n: whole(remaining), total: whole(envelope.count) }),
        envelope.refunded_minor > 0 &&
          t("games.returned", { amount: money(envelope.refunded_minor, envelope.currency) }),
        dateTime(envelope.opened_at),
      ]
        .filter(Boolean)
        .join(" · "),
    ),
    envelope.state === "open" &&
      context.may("envelope.run") &&
      el(
        "div",
        {},
        el("button", { type: "button", class: "button quiet small", onclick: end }, t("games.end_envelope")),
      ),
  );
}

function envelopeSheet(context) {
  const currency = context.currency();
  formSheet({
    title: t("games.open_envelope"),
    action: t("games.fund_and_open"),
    currency,
    intro: t("games.envelope_intro"),
    controls: [
      { name: "title", label: t("games.title"), required: true, maxlength: 80, value: t("games.envelope_title") },
      {
        name: "mode",
        label: t("games.mode"),
        type: "select",
        options: [
          ["lucky", t("games.mode_lucky")],
          ["equal", t("games.mode_equal")],
        ],
      },
      { name: "total_minor", label: t("wallet.amount", { currency }), type: "money", required: true, value: "20" },
      { name: "count", label: t("games.shares"), type: "number", min: 1, max: 100000, value: 20, required: true },
    ],
    submit: async (values) => {
      await context.api.post(`/sessions/${context.session.id}/envelopes`, { ...values, count: Number(values.count) });
      toast(t("games.envelope_opened"), "good");
      await context.reloadGames();
    },
  });
}
