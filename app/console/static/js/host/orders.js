/** The room's orders: filter, look at the address, ship, refund, take as a file; and its return requests. */

import { explain } from "../api.js";
import { byId, el } from "../dom.js";
import { dateTime, major, money } from "../format.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { busy, toast } from "../sheets.js";
import { returnsPart } from "./returns.js";

const STATES = ["placed", "paid", "shipped", "delivered", "cancelled", "expired", "refunded"];
const BADGE = { paid: "good", shipped: "good", delivered: "good", placed: "warn", refunded: "bad" };
const RELOAD_MS = 4000;
const FILES = ["csv", "xlsx"];

export function ordersPanel(context) {
  const panel = byId("panel-orders");
  const list = el("div", { class: "stack", role: "status" });
  const filter = el(
    "select",
    { id: "order-filter" },
    el("option", { value: "" }, t("orders_host.all")),
    STATES.map((state) => el("option", { value: state }, word("order_state", state))),
  );
  const more = el("button", { type: "button", class: "button quiet wide", hidden: true }, t("common.more"));
  const returns = returnsPart(context);
  let cursor = "";

  const read = async (fresh) => {
    const page = await context.api.get(`/rooms/${context.roomId}/orders`, {
      state: filter.value,
      session: context.session?.id ?? "",
      cursor: fresh ? "" : cursor,
      limit: 30,
    });
    cursor = page.next_cursor;
    const cards = page.items.map((order) => orderCard(context, order));
    if (fresh) list.replaceChildren(...cards);
    else list.append(...cards);
    if (list.children.length === 0) list.replaceChildren(el("p", { class: "empty card" }, t("orders_host.none")));
    more.hidden = !cursor;
  };
  const load = async () => {
    if (context.may("order.view")) await Promise.all([read(true), returns.load()]);
  };
  filter.addEventListener("change", () => busy(filter, load, explain));
  more.addEventListener("click", () => busy(more, () => read(false), explain));
  panel.replaceChildren(
    el(
      "div",
      { class: "row between" },
      el("h2", {}, t("host.orders")),
      el(
        "p",
        { class: "row tight" },
        el("label", { for: "order-filter", class: "small-text" }, t("orders_host.filter")),
        filter,
        el(
          "button",
          { type: "button", class: "button quiet small", onclick: (event) => busy(event.currentTarget, load, explain) },
          t("orders_host.reload"),
        ),
        ...FILES.map((type) =>
          el(
            "button",
            {
              type: "button",
              class: "button quiet small",
              dataset: { file: type },
              onclick: (event) => busy(event.currentTarget, () => takeFile(context, type, filter.value), explain),
            },
            t("orders_host.file", { type: type.toUpperCase() }),
          ),
        ),
      ),
    ),
    returns.box,
    list,
    more,
  );
  context.reloadOrders = load;
  // The room is told that somebody bought, the team of returns; the panel looks again, at a pace that a rush cannot drive.
  let pending = 0;
  return {
    load,
    event: (event) =>
      (event.type === "purchase.announced" || event.type.startsWith("return.")) &&
      !panel.hidden &&
      (pending ||= setTimeout(() => ((pending = 0), load().catch(() => {})), RELOAD_MS)),
  };
}

async function takeFile(context, type, state) {
  const query = { format: type, state, session: context.session?.id ?? "" };
  const file = await context.api.download(`/rooms/${context.roomId}/orders/export`, query);
  const link = el("a", { href: URL.createObjectURL(file), download: `orders-${context.roomId}.${type}` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), RELOAD_MS);
}

function orderCard(context, order) {
  const address = order.address ?? {};
  const to = [address.name, address.phone, address.region, address.line, address.postcode].filter(Boolean).join(", ");
  const open = context.may("order.fulfil");
  return el(
    "article",
    { class: "card stack tight", dataset: { order: order.id, state: order.state } },
    el(
      "div",
      { class: "row between" },
      el("h3", {}, `${order.name} × ${order.quantity}`),
      el("span", { class: `badge ${BADGE[order.state] ?? ""}` }, word("order_state", order.state)),
    ),
    el(
      "p",
      { class: "row between" },
      el("span", {}, order.buyer || order.viewer, el("small", { class: "muted" }, ` ${dateTime(order.placed_at)}`)),
      el("span", { class: "price" }, money(order.amount_minor, order.currency)),
    ),
    to && el("p", { class: "small-text muted" }, to),
    order.tracking && el("p", { class: "small-text" }, `${order.carrier} ${order.tracking}`),
    order.refunded_minor > 0 &&
      el(
        "p",
        { class: "small-text" },
        t("orders_host.refunded", { amount: money(order.refunded_minor, order.currency) }),
        order.reason && ` – ${order.reason}`,
      ),
    open &&
      el(
        "div",
        { class: "row tight" },
        order.state === "paid" &&
          el(
            "button",
            {
              type: "button",
              class: "button primary small",
              dataset: { act: "ship" },
              onclick: () => shipSheet(context, order),
            },
            t("orders_host.ship"),
          ),
        order.state === "shipped" &&
          el(
            "button",
            {
              type: "button",
              class: "button quiet small",
              dataset: { act: "deliver" },
              onclick: (event) => busy(event.currentTarget, () => deliver(context, order), explain),
            },
            t("orders_host.deliver"),
          ),
        ["paid", "shipped", "delivered"].includes(order.state) &&
          order.amount_minor > order.refunded_minor &&
          el(
            "button",
            {
              type: "button",
              class: "button quiet small",
              dataset: { act: "refund" },
              onclick: () => refundSheet(context, order),
            },
            t("orders_host.refund"),
          ),
      ),
  );
}

async function deliver(context, order) {
  await context.api.post(`/orders/${order.id}/deliver`);
  await context.reloadOrders();
}

function shipSheet(context, order) {
  formSheet({
    title: t("orders_host.ship"),
    action: t("orders_host.ship"),
    controls: [
      { name: "carrier", label: t("orders_host.carrier"), required: true, maxlength: 60, value: "SF Express" },
      { name: "tracking", label: t("orders_host.tracking"), required: true, maxlength: 80 },
    ],
    submit: async (values) => {
      await context.api.post(`/orders/${order.id}/ship`, values);
      toast(t("orders_host.shipped"), "good");
      await context.reloadOrders();
    },
  });
}

function refundSheet(context, order) {
  const left = order.amount_minor - order.refunded_minor;
  formSheet({
    title: t("orders_host.refund"),
    action: t("orders_host.refund"),
    currency: order.currency,
    controls: [
      {
        name: "amount_minor",
        label: t("wallet.amount", { currency: order.currency }),
        type: "money",
        required: true,
        value: major(left, order.currency),
      },
      { name: "reason", label: t("show.reason"), required: true, maxlength: 200 },
      {
        name: "restock",
        label: t("orders_host.restock"),
        type: "select",
        options: [
          ["", t("orders_host.restock_no")],
          ["yes", t("orders_host.restock_yes")],
        ],
      },
    ],
    submit: async ({ amount_minor: amount, reason, restock }) => {
      await context.api.post(`/orders/${order.id}/refund`, {
        amount_minor: amount,
        reason,
        restock: restock === "yes",
      });
      toast(t("orders_host.refund_done"), "good");
      await context.reloadOrders();
    },
  });
}
