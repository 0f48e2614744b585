/**
 * Buying: quantity → hold → address → order → payment → paid. Each step is one command with a key of its own, kept until it is answered,
 * so that a double click or a lost answer never buys twice. Whether it was paid is told by the event `order.paid` on the viewer's channel.
 */

import { explain } from "../api.js";
import { checkForm, el, field, fields, icon } from "../dom.js";
import { countdownTo, money, serverNow } from "../format.js";
import { t } from "../i18n.js";
import { newKey } from "../live-client.js";
import { picture } from "../picture.js";
import { available } from "../room-state.js";
import { busy, openSheet, shout, toast } from "../sheets.js";

const ADDRESS = "jishi.address";
const STEPS = ["hold", "address", "pay", "done"];
const METHODS = ["sandbox_ok", "sandbox_decline"];
const LIKE_RESERVE = { order_limit: 1, limit: 1, closed: 1, not_open: 1, frozen: 1 }; // outcomes of a wait that mean the same
const EVENTS_READ_MAX = 100; // of the viewer's own, when the page comes
const PAYMENT_LOOK_MS = 4000;
const PAYMENT_LOOKS_MAX = 5;

export function checkoutPart(context) {
  let current = null; // the purchase that stands in the sheet
  const later = []; // holds that came while another purchase was under way
  const ended = (purchase) => {
    if (current !== purchase) return;
    current = null;
    if (later.length > 0) goOn(...later.shift());
  };
  /** Goes on with a hold that was placed elsewhere: by a word in the chat, or when its turn in a line had come. */
  const goOn = (offer, hold) => {
    if (current) return void later.push([offer, hold]);
    current = openPurchase(context, offer, ended);
    current.held(hold);
  };
  /** A hold that nobody asked for just now: the viewer's turn in a line had come. */
  const promote = (offer, hold) => {
    shout(t("line.your_turn", { name: offer.name }));
    if (current?.wait === hold.hold) current.held(hold);
    else goOn(offer, hold);
  };
  const isKnown = (hold) => current?.hold === hold || later.some(([, other]) => other.hold === hold);
  return {
    /** Goes on with the turns that came before this page, or while it was away, and still stand. `channel`: the viewer's own. */
    async recall(channel) {
      const open = new Map();
      for (const event of await context.client.history(channel, EVENTS_READ_MAX)) {
        if (event.type === "hold.placed" && event.promoted) open.set(event.hold, event);
        if (event.type === "hold.ended") open.delete(event.hold);
        if (event.type === "order.placed") open.delete(event.order);
      }
      for (const hold of open.values()) {
        const offer = context.state.offers.get(hold.offer);
        if (offer && !isKnown(hold.hold) && Date.parse(hold.expires_at) > serverNow()) promote(offer, hold);
      }
    },
    start(offer) {
      current = openPurchase(context, offer, ended);
      current.chooseQuantity();
    },
    /** Goes on with an order that was placed before: from “my orders”. */
    resume(order) {
      const offer = context.state.offers.get(order.offer) ?? { ...order, id: order.offer };
      current = openPurchase(context, offer, ended);
      current.placed({
        order: order.id,
        amount_minor: order.amount_minor,
        currency: order.currency,
        pay_by: order.pay_by,
      });
    },
    reserved(reservation) {
      const offer = context.state.offers.get(reservation.offer);
      if (!offer) return;
      if (reservation.outcome === "held") goOn(offer, reservation);
      else toast(whyNotHeld(offer, reservation), "bad");
    },
    event(event) {
      const offer = context.state.offers.get(event.offer);
      if (event.type === "hold.placed" && event.promoted && offer && !isKnown(event.hold)) promote(offer, event);
      if (event.type === "wait.ended" && event.outcome === "closed" && offer) toast(t("line.ended", { name: offer.name }), "bad");
      if (event.type === "order.paid" && current?.order === event.order) current.paid(event);
      if (event.type === "payment.declined" && current?.order === event.order) current.declined(event);
      if (event.type === "hold.ended" && ["expired", "void"].includes(event.outcome) && current?.hold === event.hold)
        current.gone(event.outcome);
    },
  };
}

function openPurchase(context, offer, ended) {
  const keys = {};
  const keyOf = (step) => (keys[step] ??= newKey());
  const purchase = { hold: null, order: null, step: "hold", quantity: 1, priceMinor: offer.price_minor };
  const sheet = openSheet(t("buy.title"), {
    className: "checkout",
    onClose: () => {
      giveBack(context, purchase);
      ended(purchase);
    },
  });

  const draw = (step, ...content) => {
    purchase.step = step;
    sheet.body.replaceChildren(
      stepsOf(step),
      el(
        "div",
        { class: "buying" },
        picture(offer, 72),
        el("h3", {}, offer.name),
        el("p", { class: "price" }, money(purchase.priceMinor, offer.currency)),
      ),
      ...content,
    );
    sheet.body.scrollTop = 0;
    (sheet.body.querySelector("[data-first]") ?? sheet.body.querySelector("button, input")).focus({
      preventScroll: true,
    });
  };
  const failed = (text, retry) =>
    draw(purchase.step, result("bad", "warning", t("buy.not_possible"), text, again(retry), done()));
  const again = (action) =>
    action &&
    el("button", { type: "button", class: "button primary wide", "data-first": true, onclick: action }, t("buy.again"));
  const done = () =>
    el("button", { type: "button", class: "button quiet wide", onclick: sheet.close }, t("common.close"));

  purchase.chooseQuantity = () => draw("hold", quantityForm(context, offer, purchase, reserve));

  async function reserve(quantity, button) {
    if (purchase.quantity !== quantity) delete keys.reserve;
    purchase.quantity = quantity;
    const reply = await busy(
      button,
      () => context.client.rpc("inventory.reserve", { offer: offer.id, quantity, key: keyOf("reserve") }),
      explain,
    );
    if (!reply) return;
    delete keys.reserve;
    if (reply.outcome === "held") purchase.held(reply);
    else if (reply.outcome === "exhausted" && reply.waiting !== null) showLine(quantity, reply.waiting);
    else failed(whyNotHeld(offer, reply), purchase.chooseQuantity);
  }

  purchase.held = (hold) => {
    purchase.wait = null;
    purchase.hold = hold.hold;
    purchase.quantity = hold.quantity;
    purchase.priceMinor = hold.price_minor ?? offer.price_minor;
    purchase.until = hold.expires_at;
    askAddress();
  };

  function showLine(quantity, length) {
    const join = el("button", { type: "button", class: "button primary wide", "data-first": true }, t("line.join"));
    join.addEventListener("click", () => wait(quantity, join));
    draw("hold", result("wait", "clock", t("line.title"), t("line.text", { n: length }), join, done()));
  }

  async function wait(quantity, button) {
    const request = { offer: offer.id, quantity, key: keyOf("wait") };
    const reply = await busy(button, () => context.client.rpc("inventory.wait", request), explain);
    if (!reply || purchase.hold) return; // its turn came before the reply
    delete keys.wait;
    if (reply.outcome === "held") purchase.held({ ...reply, hold: reply.wait });
    else if (reply.outcome === "waiting") inLine(reply);
    else if (reply.outcome in LIKE_RESERVE) failed(whyNotHeld(offer, reply), purchase.chooseQuantity);
    else failed(t(`wait_outcome.${reply.outcome}`));
  }

  function inLine(reply) {
    purchase.wait = reply.wait;
    const leave = el("button", { type: "button", class: "button quiet wide" }, t("line.leave"));
    leave.addEventListener("click", async () => {
      const left = () => context.client.rpc("inventory.leave", { wait: reply.wait, key: newKey() });
      if ((await busy(leave, left, explain))?.outcome === "left") sheet.close();
    });
    const stay = el(
      "button",
      { type: "button", class: "button primary wide", "data-first": true, onclick: sheet.close },
      t("line.stay"),
    );
    draw("hold", result("wait", "clock", t("line.waiting"), t("line.waiting_text", { n: reply.ahead }), stay, leave));
  }

  function askAddress() {
    const label = t(offer.selling_policy === "first_paid" ? "buy.order_within" : "buy.held_for");
    draw("address", countdown(label, purchase.until), addressForm(offer, purchase, place));
  }

  async function place(address, button) {
    localStorage.setItem(ADDRESS, JSON.stringify(address));
    const reply = await busy(
      button,
      () =>
        context.client.rpc("order.place", { hold: purchase.hold, address, key: keyOf("place"), policy_accepted: true }),
      explain,
    );
    if (!reply) return;
    delete keys.place;
    if (reply.outcome === "placed") purchase.placed(reply);
    else failed(t(`place_outcome.${reply.outcome}`), reply.outcome === "policy_not_accepted" ? askAddress : null);
  }

  purchase.placed = (reply) => {
    purchase.hold = null;
    Object.assign(purchase, {
      order: reply.order,
      amountMinor: reply.amount_minor,
      currency: reply.currency,
      payBy: reply.pay_by,
    });
    context.orders.refresh();
    askPayment();
  };

  function askPayment() {
    draw("pay", purchase.payBy && countdown(t("buy.pay_within"), purchase.payBy), paymentForm(purchase, pay));
  }

  async function pay(method, button) {
    if (purchase.method !== method) delete keys.pay;
    purchase.method = method;
    const reply = await busy(
      button,
      () => context.client.rpc("order.pay", { order: purchase.order, method, key: keyOf("pay") }),
      explain,
    );
    if (!reply) return;
    if (reply.outcome === "paid") purchase.paid({ order: purchase.order });
    else if (reply.outcome === "pending") waitForPayment();
    else failed(t(`pay_outcome.${reply.outcome}`));
  }

  function waitForPayment() {
    if (purchase.step === "done") return; // the event was faster than the reply
    draw(
      "pay",
      result(
        "wait",
        "clock",
        t("buy.paying"),
        t("buy.paying_text"),
        el(
          "button",
          { type: "button", class: "button quiet wide", "data-first": true, onclick: sheet.close },
          t("buy.wait_elsewhere"),
        ),
      ),
    );
    purchase.waiting = true;
    look(1);
  }

  /** The event brings the answer; a look at the order is for the case that it came while the connection was away. */
  function look(count) {
    setTimeout(async () => {
      if (!purchase.waiting || count > PAYMENT_LOOKS_MAX) return;
      const order = await context.client.rpc("order.get", { order: purchase.order }).catch(() => null);
      if (order?.state === "paid") purchase.paid({ order: order.id });
      else look(count + 1);
    }, PAYMENT_LOOK_MS);
  }

  purchase.paid = () => {
    purchase.waiting = false;
    shout(t("buy.paid"));
    const details = el("p", { class: "small-text muted" }, t("buy.order_number"), " ", el("code", {}, purchase.order));
    draw(
      "done",
      result(
        "good",
        "check",
        t("buy.paid"),
        t("buy.paid_text"),
        details,
        el(
          "button",
          { type: "button", class: "button primary wide", "data-first": true, onclick: sheet.close },
          t("buy.back_to_show"),
        ),
      ),
    );
  };

  purchase.declined = ({ reason }) => {
    purchase.waiting = false;
    delete keys.pay; // another attempt is another payment
    shout(t("buy.declined"));
    failed(t("buy.declined_text", { reason }), askPayment);
  };

  purchase.gone = (outcome) => {
    purchase.hold = null;
    failed(t(`place_outcome.${outcome}`), purchase.chooseQuantity);
  };

  return purchase;
}

function whyNotHeld(offer, reply) {
  const limit = reply.outcome === "order_limit" ? offer.limit_per_order : offer.limit_per_viewer;
  return t(`reserve_outcome.${reply.outcome}`, { n: reply.available ?? 0, limit });
}

/** A sheet that is closed before the order gives its hold back to the others at once. */
function giveBack(context, purchase) {
  if (purchase.hold) context.client.rpc("inventory.release", { hold: purchase.hold, key: newKey() }).catch(() => {});
}

function stepsOf(step) {
  const at = STEPS.indexOf(step);
  return el(
    "ol",
    { class: "steps", "aria-label": t("buy.steps") },
    STEPS.map((name, index) =>
      el("li", { class: index < at ? "past" : "", "aria-current": index === at && "step" }, t(`buy.step_${name}`)),
    ),
  );
}

function countdown(label, until) {
  return el("p", { class: "row" }, el("span", { class: "countdown" }, icon("clock"), label, countdownTo(until)));
}

function result(kind, iconName, title, text, ...rest) {
  return el(
    "div",
    { class: "outcome" },
    el("span", { class: `mark ${kind}` }, icon(iconName)),
    el("h3", {}, title),
    el("p", { class: "muted" }, text),
    el("div", { class: "stack wide" }, ...rest),
  );
}

function quantityForm(context, offer, purchase, reserve) {
  const limit = Math.min(offer.limit_per_viewer || 999, offer.limit_per_order || 999);
  const most = () => Math.max(1, Math.min(limit, available(context.state, offer)));
  const input = el("input", {
    id: "quantity",
    name: "quantity",
    type: "number",
    min: 1,
    max: most(),
    step: 1,
    value: Math.min(purchase.quantity, most()),
    inputmode: "numeric",
    required: true,
  });
  const total = el("span", { class: "price" });
  const redraw = () => (total.textContent = money(offer.price_minor * (Number(input.value) || 1), offer.currency));
  const step = (by) => () => {
    input.value = Math.min(most(), Math.max(1, Number(input.value) + by));
    redraw();
  };
  input.addEventListener("input", redraw);
  redraw();
  const submit = el("button", { type: "submit", class: "button primary wide", "data-first": true }, t("buy.hold"));
  const send = (event) => {
    event.preventDefault();
    const quantity = Math.trunc(Number(input.value));
    if (quantity >= 1) reserve(quantity, submit);
  };
  return el(
    "form",
    { class: "stack", onsubmit: send },
    el(
      "div",
      { class: "sum" },
      el("label", { for: "quantity" }, t("buy.quantity")),
      el(
        "span",
        { class: "quantity" },
        el("button", { type: "button", "aria-label": t("buy.less"), onclick: step(-1) }, "−"),
        input,
        el("button", { type: "button", "aria-label": t("buy.more"), onclick: step(1) }, "+"),
      ),
    ),
    offer.limit_per_viewer > 0 && el("p", { class: "small-text muted" }, t("buy.limit", { n: offer.limit_per_viewer })),
    offer.limit_per_order > 0 && el("p", { class: "small-text muted" }, t("buy.order_limit", { n: offer.limit_per_order })),
    el("p", { class: "sum" }, el("span", {}, t("buy.total")), total),
    submit,
    el("p", { class: "small-text muted" }, t(offer.selling_policy === "first_paid" ? "buy.first_paid_hint" : "buy.hold_hint")),
  );
}

function addressForm(offer, purchase, place) {
  const known = readAddress();
  const input = (name, props) => el("input", { name, value: known[name] ?? "", ...props });
  const submit = el("button", { type: "submit", class: "button primary wide", "data-first": true }, t("buy.place"));
  const policy = el("input", {
    type: "checkbox",
    name: "policy",
    id: "policy",
    required: true,
    checked: offer.return_policy !== "fresh_no_return",
  });
  const form = el(
    "form",
    { class: "stack", novalidate: true },
    el(
      "div",
      { class: "fields" },
      field(t("address.name"), input("name", { required: true, maxlength: 80, autocomplete: "name" })),
      field(
        t("address.phone"),
        input("phone", { required: true, minlength: 3, maxlength: 32, type: "tel", autocomplete: "tel" }),
      ),
    ),
    field(t("address.region"), input("region", { maxlength: 120, autocomplete: "address-level1" })),
    field(t("address.line"), input("line", { required: true, maxlength: 300, autocomplete: "street-address" })),
    field(
      t("address.postcode"),
      input("postcode", { maxlength: 16, autocomplete: "postal-code", inputmode: "numeric" }),
    ),
    el(
      "div",
      {},
      el(
        "label",
        { class: "check", for: "policy" },
        policy,
        el("span", {}, t(`policy.${offer.return_policy ?? "no_reason_7_days"}`)),
      ),
      el("span", { class: "field-error", id: "policy-error", hidden: true }),
    ),
    el(
      "p",
      { class: "sum" },
      el("span", {}, t("buy.total")),
      el("span", { class: "price" }, money(purchase.priceMinor * purchase.quantity, offer.currency)),
    ),
    submit,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!checkForm(form, (control) => t(control.name === "policy" ? "address.policy_needed" : "address.needed")))
      return;
    const { policy: _, ...address } = fields(form);
    place(address, submit);
  });
  return form;
}

function readAddress() {
  const demo = {
    name: t("address.demo_name"),
    phone: "138 0000 0000",
    region: t("address.demo_region"),
    line: t("address.demo_line"),
    postcode: "310000",
  };
  try {
    return { ...demo, ...JSON.parse(localStorage.getItem(ADDRESS) ?? "{}") };
  } catch {
    return demo;
  }
}

function paymentForm(purchase, pay) {
  const submit = el(
    "button",
    { type: "submit", class: "button primary wide", "data-first": true },
    t("buy.pay", { amount: money(purchase.amountMinor, purchase.currency) }),
  );
  const send = (event) => {
    event.preventDefault();
    pay(fields(event.target).method, submit);
  };
  const option = (method, index) =>
    el(
      "label",
      { class: "method" },
      el("input", { type: "radio", name: "method", value: method, checked: index === 0 }),
      el(
        "span",
        {},
        el("b", {}, t(`method.${method}`)),
        el("br"),
        el("span", { class: "small-text muted" }, t(`method.${method}_text`)),
      ),
    );
  return el(
    "form",
    { class: "stack", onsubmit: send },
    el(
      "p",
      { class: "sum" },
      el("span", {}, t("buy.to_pay")),
      el("span", { class: "price" }, money(purchase.amountMinor, purchase.currency)),
    ),
    el("fieldset", { class: "methods" }, el("legend", { class: "legend" }, t("buy.method")), METHODS.map(option)),
    submit,
  );
}
