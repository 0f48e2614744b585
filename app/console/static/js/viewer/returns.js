/** Receipt and return requests of one's own orders: ask, see how it stands, say how the goods travel back, take it back. */

import { explain } from "../api.js";
import { el } from "../dom.js";
import { dateTime, money } from "../format.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { newKey } from "../live-client.js";
import { busy, confirmSheet, toast } from "../sheets.js";

const REASONS = ["no_reason", "damaged", "wrong_item", "not_as_described", "not_received", "other"];
const OPEN = new Set(["requested", "approved", "shipped_back", "received"]);

/** What can be done with an order that was paid, and its return requests. */
export function afterSale(context, order, requests) {
  const left = order.amount_minor > order.refunded_minor && ["paid", "shipped", "delivered"].includes(order.state);
  const open = requests.some((request) => OPEN.has(request.state));
  const button = (name, act) =>
    el(
      "button",
      { type: "button", class: "button quiet small", dataset: { act: name }, onclick: act },
      t(`returns_own.${name}`),
    );
  const actions = [
    order.state === "shipped" && button("arrived", (event) => arrived(context, order, event.currentTarget)),
    left && !open && button("ask", () => askSheet(context, order)),
  ].filter(Boolean);
  return [
    ...requests.map((request) => requestLine(context, request)),
    actions.length > 0 && el("div", { class: "row tight" }, actions),
  ];
}

async function arrived(context, order, button) {
  const reply = await busy(
    button,
    () => context.client.rpc("order.confirm_receipt", { order: order.id, key: newKey() }),
    explain,
  );
  if (reply) context.orders.refresh();
}

function askSheet(context, order) {
  const key = newKey(); // one a sheet: an answer that was lost is asked for again
  const fresh = order.return_policy === "fresh_no_return";
  const kinds = order.state === "paid" ? ["refund_only"] : ["return_goods", "refund_only"];
  formSheet({
    title: t("returns_own.ask"),
    action: t("returns_own.send"),
    intro: t(fresh ? "returns_own.policy_fresh" : "returns_own.policy_7_days"),
    controls: [
      {
        name: "reason",
        label: t("returns_own.reason"),
        type: "select",
        options: REASONS.filter((reason) => !fresh || reason !== "no_reason").map((reason) => [
          reason,
          word("return_reason", reason),
        ]),
      },
      {
        name: "kind",
        label: t("returns_own.kind"),
        type: "select",
        options: kinds.map((kind) => [kind, word("return_kind", kind)]),
      },
      { name: "quantity", label: t("buy.quantity"), type: "number", min: 1, max: order.quantity, value: order.quantity, required: true },
      { name: "text", label: t("returns_own.text"), type: "textarea", maxlength: 500 },
      { name: "url", label: t("returns_own.link"), type: "url", maxlength: 500, pattern: "https?://.+" },
    ],
    submit: async ({ quantity, url, ...values }) => {
      const evidence = url ? [{ url }] : [];
      const body = { ...values, order: order.id, quantity: Number(quantity), evidence, key };
      const reply = await context.client.rpc("return.request", body);
      toast(t(`return_outcome.${reply.outcome}`), reply.outcome === "requested" ? "good" : "bad");
      context.orders.refresh();
    },
  });
}

function requestLine(context, request) {
  const step = (name, act) =>
    el("button", { type: "button", class: "button quiet small", dataset: { act: name }, onclick: act }, t(`returns_own.${name}`));
  return el(
    "div",
    { class: "stack tight", dataset: { request: request.id, state: request.state } },
    el(
      "p",
      { class: "row between small-text" },
      el("span", {}, `${word("return_kind", request.kind)}: ${money(request.amount_minor, request.currency)}`),
      el("span", { class: "badge" }, word("return_state", request.state)),
    ),
    request.answer && el("p", { class: "small-text muted" }, request.answer),
    request.due_at && el("p", { class: "small-text muted" }, t("returns.by_itself", { date: dateTime(request.due_at) })),
    el(
      "div",
      { class: "row tight" },
      request.state === "approved" &&
        request.kind === "return_goods" &&
        step("ship_back", () => shipSheet(context, request)),
      ["requested", "approved"].includes(request.state) &&
        step("take_back", (event) => takeBack(context, request, event.currentTarget)),
    ),
  );
}

function shipSheet(context, request) {
  formSheet({
    title: t("returns_own.ship_back"),
    controls: [
      { name: "carrier", label: t("orders_host.carrier"), required: true, maxlength: 60 },
      { name: "tracking", label: t("orders_host.tracking"), required: true, maxlength: 80 },
    ],
    submit: async (values) => {
      await context.client.rpc("return.ship_back", { ...values, request: request.id, key: newKey() });
      context.orders.refresh();
    },
  });
}

async function takeBack(context, request, button) {
  if (!(await confirmSheet(t("returns_own.take_back_question"), { action: t("returns_own.take_back") }))) return;
  await busy(button, () => context.client.rpc("return.cancel", { request: request.id, key: newKey() }), explain);
  context.orders.refresh();
}
