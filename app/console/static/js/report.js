/** The post-show report: the same figures as live, told in one page that can be printed. */

import { Api, explain } from "./api.js";
import { barList } from "./charts.js";
import { byId, el, show } from "./dom.js";
import { dateTime, duration, money, percent, whole } from "./format.js";
import { minuteCharts, offerBars } from "./host/figures.js";
import { bindLanguageSwitch, t, word } from "./i18n.js";
import { forgetToken } from "./identity.js";
import { askAtDoor, staffToken } from "./signin.js";

const sessionId = document.body.dataset.session;

bindLanguageSwitch(byId("language"));
byId("print").addEventListener("click", () => window.print());

async function load(token) {
  try {
    draw(await new Api(token).get(`/sessions/${sessionId}/report`));
  } catch (error) {
    if (error.status === 401) {
      forgetToken("staff");
      await load(await askAtDoor(byId("door")));
    } else {
      byId("report").replaceChildren(el("p", { class: "empty card" }, explain(error)));
    }
  }
}

function draw(report) {
  const amount = (value) => money(value ?? 0, report.currency);
  show(byId("print"), true);
  byId("report").replaceChildren(
    head(report),
    headline(report, amount),
    el("div", { class: "charts minutes" }, minuteCharts(report).map(card)),
    el("div", { class: "charts" }, card(funnelBars(report)), card(offerBars(report))),
    card(offerTable(report, amount)),
    el(
      "div",
      { class: "charts" },
      card(facts("report.chat", chatRows(report.chat))),
      card(facts("report.payments", paymentRows(report.payments, amount))),
      card(facts("report.envelopes", envelopeRows(report.envelopes, amount))),
    ),
    ...(report.draws?.length > 0 ? [card(drawList(report.draws))] : []),
    el("p", { class: "muted small-text" }, t("report.computed", { at: dateTime(report.computed_at) })),
  );
}

const card = (content) => el("section", { class: "card" }, content);

function head(report) {
  const times = report.started_at
    ? [dateTime(report.started_at), report.ended_at && dateTime(report.ended_at)].filter(Boolean).join(" – ")
    : t("report.never_live");
  return el(
    "header",
    { class: "report-head" },
    el("h1", {}, report.title),
    el(
      "p",
      { class: "row muted" },
      el("span", {}, times),
      report.duration_s > 0 && el("span", {}, t("report.lasted", { time: duration(report.duration_s * 1000) })),
      el("span", { class: "badge" }, word("session_state", report.state)),
    ),
  );
}

function headline(report, amount) {
  const { summary } = report;
  const items = [
    ["gmv", amount(summary.gmv_minor)],
    ["paid", whole(summary.paid_orders)],
    ["units", whole(summary.units_sold)],
    ["average", amount(summary.average_order_minor)],
    ["peak", whole(summary.peak_viewers)],
    ["unique", whole(summary.unique_viewers)],
    ["conversion", percent(summary.conversion)],
    ["likes", whole(summary.likes)],
  ];
  return el(
    "dl",
    { class: "headline" },
    items.map(([name, value]) =>
      el("div", {}, el("dt", {}, t(`figures.${name}`)), el("dd", { class: "number" }, value)),
    ),
  );
}

function funnelBars(report) {
  const rows = (report.funnel ?? []).map((step) => ({
    label: word("funnel", step.step),
    value: step.count,
    note: percent(step.of_viewers),
  }));
  return barList({ title: t("report.funnel"), rows, format: whole, series: 2 });
}

function offerTable(report, amount) {
  const columns = ["holds", "orders", "paid_orders", "sold", "total"];
  const row = (offer) =>
    el(
      "tr",
      {},
      el("th", { scope: "row" }, offer.name),
      columns.map((name) => el("td", {}, whole(offer[name]))),
      el("td", {}, amount(offer.gmv_minor)),
    );
  const headRow = el(
    "tr",
    {},
    el("th", { scope: "col" }, t("report.offer")),
    columns.map((name) => el("th", { scope: "col" }, t(`report.${name}`))),
    el("th", { scope: "col" }, t("figures.gmv")),
  );
  return el(
    "div",
    {},
    el("h2", {}, t("report.offers")),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": t("report.offers") },
      el("table", {}, el("thead", {}, headRow), el("tbody", {}, report.offers.map(row))),
    ),
  );
}

function facts(title, rows) {
  return el(
    "div",
    {},
    el("h2", {}, t(title)),
    el(
      "dl",
      { class: "fact-rows" },
      rows.flatMap(([key, value]) => [el("dt", {}, t(key)), el("dd", { class: "number" }, value)]),
    ),
  );
}

const chatRows = (chat) =>
  ["sent", "chatters", "deleted", "waiting", "rejected", "mutes", "bans"].map((name) => [
    `report.chat_${name}`,
    whole(chat[name]),
  ]);

const paymentRows = (payments, amount) => [
  ...["waiting", "paid", "cancelled", "expired", "refunded"].map((name) => [
    `report.pay_${name}`,
    whole(payments[name]),
  ]),
  ["report.pay_refunded_amount", amount(payments.refunded_minor)],
];

const envelopeRows = (envelopes, amount) => [
  ["report.env_count", whole(envelopes.envelopes)],
  ["report.env_opened", `${whole(envelopes.opened)} / ${whole(envelopes.shares)}`],
  ["report.env_funded", amount(envelopes.funded_minor)],
  ["report.env_given", amount(envelopes.opened_minor)],
  ["report.env_returned", amount(envelopes.refunded_minor)],
];

function drawList(draws) {
  const winners = (draw) => draw.winners.map((winner) => `${winner.name} – ${winner.prize}`).join(", ");
  return el(
    "div",
    {},
    el("h2", {}, t("report.draws")),
    el(
      "ul",
      { class: "stack tight" },
      draws.map((draw) =>
        el(
          "li",
          {},
          el("b", {}, draw.title),
          ` · ${t(`draw_state.${draw.state}`)} · ${t("draw.entrants", { n: whole(draw.entrants) })}`,
          draw.winners.length > 0 && el("p", { class: "small-text muted" }, winners(draw)),
        ),
      ),
    ),
  );
}

await load(await staffToken(byId("door")));
