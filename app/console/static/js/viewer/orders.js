/** My orders: what this viewer bought, how it stands, and what can still be done with it. */

import { explain } from "../api.js";
import { byId, el } from "../dom.js";
import { countdownTo, dateTime, money } from "../format.js";
import { t, word } from "../i18n.js";
import { newKey } from "../live-client.js";
import { busy, confirmSheet, openSheet, toast } from "../sheets.js";
import { afterSale } from "./returns.js";

const STATE_BADGE = { paid: "good", shipped: "good", delivered: "good", placed: "warn", cancelled: "", expired: "", refunded: "bad" };
const CHANGES = new Set([
  "order.placed",
  "order.paid",
  "order.changed",
  "payment.declined",
  "refund.settled",
  "return.requested",
  "return.changed",
]);
const TRIES_MAX = 5;
const AGAIN_MS = 700;
const CREDITS = new Set(["share.opened", "draw.won"]);

export function ordersPart(context) {
  let list = null; // the elements, while the sheet is open
  let wallet = null;
  let isReading = false;
  let isStale = false; // something happened while it was read

  /** One reading at a time: events come in flights, and a quick hand is not told that it was too fast. */
  const refresh = async () => {
    isStale = true;
    if (isReading) return;
    isReading = true;
    for (let tries = 1; list && isStale; tries += 1) {
      isStale = false;
      try {
        const [page, returns] = await Promise.all([
          context.client.rpc("order.list", { limit: 30 }),
          context.client.rpc("return.list", { limit: 100 }),
        ]);
        if (list) drawOrders(context, list, page.orders, returns.requests);
        tries = 0;
      } catch (error) {
        isStale = error.temporary && tries < TRIES_MAX;
        if (!isStale) list?.replaceChildren(el("p", { class: "empty" }, explain(error)));
        else await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
      }
    }
    isReading = false;
  };
  byId("open-orders").addEventListener("click", () => {
    const sheet = openSheet(t("viewer.my_orders"), { onClose: () => (list = wallet = null) });
    list = el("div", { class: "stack" }, el("p", { class: "empty" }, t("common.loading")));
    wallet = el("div");
    sheet.body.append(el("div", { class: "stack" }, wallet, list));
    context.closeOrders = sheet.close;
    refresh();
    drawWallet(context, wallet);
  });
  return {
    refresh,
    event(event) {
      if (CREDITS.has(event.type) && wallet) drawWallet(context, wallet);
      if (!CHANGES.has(event.type)) return;
      refresh();
      if (event.type === "order.changed")
        toast(t("orders.changed", { state: word("order_state", event.state) }), "info");
      if (event.type === "return.changed")
        toast(t("returns_own.changed", { state: word("return_state", event.state) }), "info");
    },
  };
}

/** Credit from envelopes and prizes; a guest has no wallet, and is shown none. */
async function drawWallet(context, box) {
  const wallet = await context.client.rpc("wallet.balance").catch(() => null);
  if (wallet)
    box.replaceChildren(
      el(
        "p",
        { class: "wallet-line" },
        el("span", {}, t("orders.credit")),
        el("span", { class: "number" }, money(wallet.available_minor, wallet.currency)),
      ),
    );
}

function drawOrders(context, list, orders, returns) {
  list.replaceChildren(
    ...(orders.length > 0
      ? orders.map((order) => orderCard(context, order, returns.filter((request) => request.order === order.id)))
      : [el("p", { class: "empty" }, t("orders.none"))]),
  );
}

function orderCard(context, order, returns) {
  const rows = [
    [t("orders.placed_at"), dateTime(order.placed_at)],
    order.tracking && [t("orders.tracking"), `${order.carrier ?? ""} ${order.tracking}`],
    order.refunded_minor > 0 && [t("orders.refunded"), money(order.refunded_minor, order.currency)],
    order.reason && [t("orders.reason"), order.reason],
    [t("orders.number"), el("code", {}, order.id)],
  ].filter(Boolean);
  return el(
    "article",
    { class: "order", dataset: { order: order.id, state: order.state } },
    el(
      "div",
      { class: "row between" },
      el("h3", {}, `${order.name} × ${order.quantity}`),
      el("span", { class: `badge ${STATE_BADGE[order.state] ?? ""}` }, word("order_state", order.state)),
    ),
    el("p", { class: "price" }, money(order.amount_minor, order.currency)),
    el(
      "dl",
      {},
      rows.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]),
    ),
    order.state === "placed" && openOrderActions(context, order),
    ...afterSale(context, order, returns),
  );
}

function openOrderActions(context, order) {
  const pay = () => {
    context.closeOrders?.();
    context.checkout.resume(order);
  };
  const cancel = async (event) => {
    const button = event.currentTarget;
    if (!(await confirmSheet(t("orders.cancel_question"), { action: t("orders.cancel") }))) return;
    const reply = await busy(
      button,
      () => context.client.rpc("order.cancel", { order: order.id, key: newKey() }),
      explain,
    );
    if (reply) toast(t(`cancel_outcome.${reply.outcome}`), reply.outcome === "cancelled" ? "good" : "info");
  };
  return el(
    "div",
    { class: "row" },
    el("button", { type: "button", class: "button primary small", onclick: pay }, t("orders.pay")),
    el("button", { type: "button", class: "button quiet small", onclick: cancel }, t("orders.cancel")),
    order.pay_by && el("span", { class: "small-text muted" }, `${t("buy.pay_within")} `, countdownTo(order.pay_by)),
  );
}
