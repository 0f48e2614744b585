/** The shelf: put offers on it, price, stock, flash window, pause, withdraw, pin. */

import { explain } from "../api.js";
import { byId, el, icon, setText } from "../dom.js";
import { dateTime, major, money, serverNow, whole } from "../format.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { picture } from "../picture.js";
import { busy, confirmSheet, openSheet, toast } from "../sheets.js";

const MINUTE_MS = 60_000;
const PRODUCTS_MAX = 200;
const STOCK_MS = 2000; // between two looks at where every unit is

export function shelfPanel(context) {
  const panel = byId("panel-shelf");
  const cards = new Map();
  const load = async () => {
    context.shelf = context.session ? (await context.api.get(`/sessions/${context.session.id}/offers`)).items : [];
    draw();
    await lookAtStock();
  };
  const lookAtStock = async () => {
    if (!context.session || !context.may("order.view")) return;
    const stock = await context.api.get(`/sessions/${context.session.id}/stock`);
    context.units = new Map(stock.map((units) => [units.offer, units]));
    for (const card of cards.values()) card.refresh();
  };
  const draw = () => {
    const focused = document.activeElement?.closest?.("[data-act]");
    const place = focused && [focused.closest("[data-offer]")?.dataset.offer, focused.dataset.act];
    cards.clear();
    const shown = context.shelf.filter((offer) => offer.state !== "withdrawn");
    for (const offer of shown) cards.set(offer.id, offerCard(context, offer));
    const gone = context.shelf.filter((offer) => offer.state === "withdrawn");
    panel.replaceChildren(
      el(
        "div",
        { class: "row between" },
        el("h2", {}, t("host.shelf")),
        canEdit(context) &&
          el(
            "div",
            { class: "row tight" },
            el(
              "button",
              {
                type: "button",
                class: "button quiet small",
                dataset: { act: "from-product" },
                onclick: () => productSheet(context),
              },
              icon("plus"),
              t("shelf.from_product"),
            ),
            el(
              "button",
              {
                type: "button",
                class: "button primary small",
                dataset: { act: "add" },
                onclick: () => offerSheet(context),
              },
              icon("plus"),
              t("shelf.add"),
            ),
          ),
      ),
      shown.length > 0
        ? el(
            "ul",
            { class: "offers" },
            [...cards.values()].map((card) => card.node),
          )
        : el("p", { class: "empty card" }, t("viewer.shelf_empty")),
      ...(gone.length > 0
        ? [
            el(
              "details",
              {},
              el("summary", {}, t("shelf.withdrawn", { n: gone.length })),
              el(
                "ul",
                {},
                gone.map((offer) => el("li", { class: "muted" }, offer.name)),
              ),
            ),
          ]
        : []),
    );
    if (place?.[0]) panel.querySelector(`[data-offer="${CSS.escape(place[0])}"] [data-act="${place[1]}"]`)?.focus();
  };
  let pending = 0;
  const soon = () => (pending ||= setTimeout(() => ((pending = 0), load().catch(() => {})), 150));
  let looking = 0;
  const lookSoon = () =>
    (looking ||= setTimeout(() => ((looking = 0), panel.hidden || lookAtStock().catch(() => {})), STOCK_MS));
  context.reloadShelf = load;
  return {
    load,
    event: (event) => event.type.startsWith("offer.") && soon(),
    update(changed) {
      if (changed.has("pin") && context.shelf) draw();
      else if (changed.has("stock")) {
        for (const card of cards.values()) card.refresh();
        lookSoon();
      }
    },
  };
}

const canEdit = (context) =>
  context.may("offer.edit") && context.session && !["ended", "archived"].includes(context.session.state);

function offerCard(context, offer) {
  const pinned = context.state.pin === offer.id;
  const left = el("b", { class: "number" });
  const names = ["held", "ordered", "sold", "expired", ...(offer.selling_policy === "waitlist" ? ["waiting"] : [])];
  const units = Object.fromEntries(names.map((name) => [name, el("b", { class: "number", dataset: { units: name } })]));
  const refresh = () => {
    setText(left, whole(context.state.stock.get(offer.id) ?? Math.max(0, offer.total - offer.sold)));
    const now = context.units?.get(offer.id) ?? { sold: offer.sold };
    for (const [name, node] of Object.entries(units)) setText(node, name in now ? whole(now[name]) : "–");
  };
  refresh();
  const facts = [
    [t("shelf.left"), left],
    [t("shelf.total"), whole(offer.total)],
    ...Object.entries(units).map(([name, node]) => [t(`shelf.${name}`), node]),
    offer.limit_per_viewer > 0 && [t("shelf.limit"), whole(offer.limit_per_viewer)],
    offer.limit_per_order > 0 && [t("shelf.order_limit"), whole(offer.limit_per_order)],
    offer.selling_policy !== "hold" && [t("shelf.selling"), word("selling", offer.selling_policy)],
    offer.keyword && [t("shelf.keyword"), offer.keyword],
    offer.price_steps.length > 0 && [t("shelf.steps"), whole(offer.price_steps.length)],
  ].filter(Boolean);
  const node = el(
    "li",
    { class: `card offer ${pinned ? "is-pinned" : ""}`, dataset: { offer: offer.id } },
    picture(offer, 64),
    el(
      "div",
      { class: "grow stack tight" },
      el(
        "div",
        { class: "row between" },
        el("h3", {}, offer.name),
        el(
          "span",
          { class: "row tight" },
          pinned && el("span", { class: "badge good" }, icon("pin"), t("shelf.pinned")),
          offer.state !== "listed" && el("span", { class: "badge warn" }, word("offer_state", offer.state)),
        ),
      ),
      el(
        "p",
        { class: "row tight" },
        el("span", { class: "price" }, money(offer.price_minor, offer.currency)),
        offer.list_price_minor > offer.price_minor &&
          el("del", { class: "was" }, money(offer.list_price_minor, offer.currency)),
        windowText(offer),
      ),
      el(
        "dl",
        { class: "facts-line" },
        facts.flatMap(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]),
      ),
      canEdit(context) && offerActions(context, offer, pinned),
    ),
  );
  return { node, refresh };
}

function windowText(offer) {
  if (!offer.opens_at && !offer.closes_at) return null;
  return el(
    "span",
    { class: "badge warn" },
    icon("bolt"),
    `${offer.opens_at ? dateTime(offer.opens_at) : ""} – ${offer.closes_at ? dateTime(offer.closes_at) : ""}`,
  );
}

function offerActions(context, offer, pinned) {
  const run = (act) => (event) =>
    busy(
      event.currentTarget,
      async () => {
        if ((await act()) !== false) await context.reloadShelf();
      },
      explain,
    );
  const button = (name, act, style = "quiet") =>
    el(
      "button",
      {
        type: "button",
        class: `button ${style} small`,
        dataset: { act: name },
        onclick: act,
        "aria-label": `${t(`shelf.${name}`)}: ${offer.name}`,
      },
      t(`shelf.${name}`),
    );
  const post = (step, body) => () => context.api.post(`/offers/${offer.id}/${step}`, body);
  const pin = (id) => async () => {
    context.state.pin = (await context.api.put(`/rooms/${context.roomId}/pin`, { offer: id })).offer;
  };
  const withdraw = async () => {
    const answer = await confirmSheet(t("shelf.withdraw_question", { name: offer.name }), {
      action: t("shelf.withdraw"),
      ask: t("show.reason"),
    });
    return answer ? context.api.post(`/offers/${offer.id}/withdraw`, { reason: answer.text }) : false;
  };
  const mayPin =
    context.may("session.run") && ["live", "interrupted"].includes(context.session.state) && offer.state === "listed";
  return el(
    "div",
    { class: "row tight" },
    mayPin && (pinned ? button("unpin", run(pin(null))) : button("pin", run(pin(offer.id)), "primary")),
    button("price", () => priceSheet(context, offer)),
    button("stock", () => stockSheet(context, offer)),
    button("steps", () => stepsSheet(context, offer)),
    button("window", () => windowSheet(context, offer)),
    offer.selling_policy === "waitlist" && context.may("order.view") && button("line", () => lineSheet(context, offer)),
    offer.state === "paused" ? button("resume", run(post("resume"))) : button("pause", run(post("pause", {}))),
    button("withdraw", run(withdraw)),
  );
}

function priceSheet(context, offer) {
  const limits = offer.price_min_minor !== null || offer.price_max_minor !== null;
  const range = [offer.price_min_minor, offer.price_max_minor]
    .map((price) => (price === null ? "…" : money(price, offer.currency)))
    .join(" – ");
  formSheet({
    title: t("shelf.price_of", { name: offer.name }),
    currency: offer.currency,
    controls: [
      {
        name: "price_minor",
        label: t("shelf.new_price", { currency: offer.currency }),
        type: "money",
        required: true,
        value: major(offer.price_minor, offer.currency),
        hint: limits ? t("shelf.price_limits", { range }) : "",
      },
    ],
    submit: async (values) => {
      await context.api.post(`/offers/${offer.id}/price`, values);
      toast(t("shelf.price_done", { price: money(values.price_minor, offer.currency) }), "good");
      await context.reloadShelf();
    },
  });
}

function stockSheet(context, offer) {
  formSheet({
    title: t("shelf.stock_of", { name: offer.name }),
    action: t("common.add"),
    controls: [
      { name: "add", label: t("shelf.add_units"), type: "number", min: 1, max: 1_000_000, required: true, value: 10 },
    ],
    submit: async ({ add }) => {
      await context.api.post(`/offers/${offer.id}/stock`, { add: Number(add) });
      await context.reloadShelf();
    },
  });
}

/** Prices that come by themselves: one more at a time, so many minutes from now, or none any more. */
function stepsSheet(context, offer) {
  const set = async (steps) => {
    await context.api.patch(`/offers/${offer.id}`, { price_steps: steps });
    await context.reloadShelf();
  };
  const known = offer.price_steps;
  const remove = async () => {
    await set([]);
    form.sheet.close();
  };
  const clear = el("button", { type: "button", class: "button quiet wide" }, t("shelf.steps_clear"));
  clear.addEventListener("click", () => busy(clear, remove, explain));
  const list = el(
    "ul",
    {},
    known.map((step) => el("li", {}, `${dateTime(step.at)}: ${money(step.price_minor, offer.currency)}`)),
  );
  const form = formSheet({
    title: t("shelf.steps_of", { name: offer.name }),
    intro: t("shelf.steps_intro"),
    action: t("common.add"),
    currency: offer.currency,
    controls: [
      { name: "wait", label: t("shelf.steps_in"), type: "number", min: 0.1, max: 1440, step: "any", value: 10, required: true },
      { name: "price_minor", label: t("shelf.new_price", { currency: offer.currency }), type: "money", required: true },
    ],
    extra: known.length > 0 && el("div", { class: "stack" }, list, clear),
    submit: async ({ wait, price_minor: price }) => {
      const step = { at: new Date(serverNow() + Number(wait) * MINUTE_MS).toISOString(), price_minor: price };
      await set([...known, step].sort((a, b) => Date.parse(a.at) - Date.parse(b.at)));
    },
  });
}

/** Who waits, in turn: the first page says enough, the count says the rest. */
async function lineSheet(context, offer) {
  const { items } = await context.api.get(`/offers/${offer.id}/line`);
  const sheet = openSheet(t("shelf.line_of", { name: offer.name }));
  const rows = items.map((wait) => el("li", {}, `${wait.viewer} × ${whole(wait.quantity)} · ${dateTime(wait.since)}`));
  sheet.body.append(rows.length > 0 ? el("ol", {}, rows) : el("p", { class: "muted" }, t("shelf.line_empty")));
}

/** A flash sale is a window: so many minutes from now, or from a moment on. */
function windowSheet(context, offer) {
  formSheet({
    title: t("shelf.window_of", { name: offer.name }),
    intro: t("shelf.window_intro"),
    controls: [
      {
        name: "opens_in",
        label: t("shelf.opens_in"),
        type: "number",
        min: 0,
        max: 1440,
        step: "any",
        value: 0,
        required: true,
      },
      {
        name: "minutes",
        label: t("shelf.lasts"),
        type: "number",
        min: 0,
        max: 1440,
        step: "any",
        hint: t("shelf.lasts_hint"),
      },
    ],
    submit: async ({ opens_in: wait, minutes }) => {
      const opens = serverNow() + Number(wait) * MINUTE_MS;
      const body = {
        opens_at: Number(wait) > 0 ? new Date(opens).toISOString() : null,
        closes_at: Number(minutes) > 0 ? new Date(opens + Number(minutes) * MINUTE_MS).toISOString() : null,
      };
      await context.api.patch(`/offers/${offer.id}`, body);
      await context.reloadShelf();
    },
  });
}

const offerControls = () => [
  { name: "price_minor", label: t("shelf.new_price", { currency: "" }), type: "money", required: true },
  { name: "list_price_minor", label: t("shelf.list_price"), type: "money", hint: t("shelf.list_price_hint") },
  { name: "total", label: t("shelf.units"), type: "number", min: 0, max: 1_000_000, required: true, value: 100 },
  {
    name: "limit_per_viewer",
    label: t("shelf.limit"),
    type: "number",
    min: 0,
    max: 999,
    value: 0,
    hint: t("shelf.limit_hint"),
  },
  {
    name: "limit_per_order",
    label: t("shelf.order_limit"),
    type: "number",
    min: 0,
    max: 999,
    value: 0,
    hint: t("shelf.limit_hint"),
  },
  {
    name: "selling_policy",
    label: t("shelf.selling"),
    type: "select",
    options: [
      ["hold", word("selling", "hold")],
      ["waitlist", word("selling", "waitlist")],
      ["first_paid", word("selling", "first_paid")],
    ],
    hint: t("shelf.selling_hint"),
  },
  { name: "keyword", label: t("shelf.keyword"), maxlength: 20, hint: t("shelf.keyword_hint") },
];

async function putOnShelf(context, values) {
  const { limit_per_viewer: limit, limit_per_order: orderLimit, total, ...rest } = values;
  const body = Object.fromEntries(Object.entries(rest).filter(([, value]) => value !== null && value !== ""));
  await context.api.post(`/sessions/${context.session.id}/offers`, {
    ...body,
    total: Number(total),
    limit_per_viewer: Number(limit) || 0,
    limit_per_order: Number(orderLimit) || 0,
  });
  toast(t("shelf.added"), "good");
  await context.reloadShelf();
}

function offerSheet(context) {
  formSheet({
    title: t("shelf.add"),
    action: t("common.add"),
    currency: context.currency(),
    controls: [
      { name: "name", label: t("shelf.name"), required: true, maxlength: 120 },
      ...offerControls(),
      {
        name: "return_policy",
        label: t("shelf.return_policy"),
        type: "select",
        options: [
          ["no_reason_7_days", t("shelf.policy_7_days")],
          ["fresh_no_return", t("shelf.policy_fresh")],
        ],
      },
    ],
    submit: (values) => putOnShelf(context, values),
  });
}

async function productSheet(context) {
  const products = await context.api.all("/products", {}, PRODUCTS_MAX).catch((error) => toast(explain(error), "bad"));
  if (!products) return;
  if (products.length === 0) {
    newProductSheet(context);
    return;
  }
  const another = el(
    "button",
    { type: "button", class: "button quiet wide", onclick: () => (form.sheet.close(), newProductSheet(context)) },
    icon("plus"),
    t("shelf.new_product"),
  );
  const form = formSheet({
    title: t("shelf.from_product"),
    action: t("common.add"),
    currency: context.currency(),
    controls: [
      {
        name: "product",
        label: t("shelf.product"),
        type: "select",
        options: products.map((product) => [product.id, [product.name, product.village].filter(Boolean).join(" · ")]),
      },
      ...offerControls(),
    ],
    extra: another,
    submit: (values) => putOnShelf(context, values),
  });
}

function newProductSheet(context) {
  formSheet({
    title: t("shelf.new_product"),
    intro: t("shelf.new_product_intro"),
    controls: [
      { name: "name", label: t("shelf.name"), required: true, maxlength: 120 },
      { name: "unit", label: t("shelf.unit"), maxlength: 40 },
      { name: "village", label: t("shelf.village"), maxlength: 120 },
      { name: "lot", label: t("shelf.lot"), maxlength: 80 },
      { name: "harvested_on", label: t("shelf.harvested_on"), type: "date" },
    ],
    submit: async ({ harvested_on: day, ...values }) => {
      await context.api.post("/products", { ...values, harvested_on: day || null });
      setTimeout(() => productSheet(context));
    },
  });
}
