/** The pinned offer and the shelf: what can be bought now, what it costs, how much is left. */

import { byId, el, icon, setText, show } from "../dom.js";
import { countdownTo, money, serverNow, whole } from "../format.js";
import { t } from "../i18n.js";
import { picture } from "../picture.js";
import { available, offerStatus, shelf } from "../room-state.js";
import { openSheet } from "../sheets.js";

const BUYABLE = ["open", "line"];
const WIDE = matchMedia("(min-width: 880px)");

export function shelfPart(context) {
  const box = byId("shelf");
  let sheet = null;
  const cards = new Map(); // offer id -> { node, refresh }

  const place = () => {
    if (WIDE.matches) {
      sheet?.close();
      byId("side").append(box);
    }
  };
  WIDE.addEventListener("change", place);
  byId("open-shelf").addEventListener("click", () => {
    sheet = openSheet(t("viewer.shelf"), { className: "shelf-sheet", onClose: () => byId("side").append(box) });
    sheet.body.append(box);
    context.closeShelf = sheet.close;
  });
  // The end of a countdown opens or closes an offer without any message.
  document.addEventListener("due", () => context.parts.forEach((part) => part.update?.(new Set(["offers", "pin"]))));

  return {
    update(changed) {
      const offers = shelf(context.state);
      if (changed.has("offers") || changed.has("pin") || changed.has("session") || cards.size === 0) {
        drawShelf(context, box, offers, cards);
        drawPinned(context, changed.has("pin"));
      }
      if (changed.has("stock")) {
        for (const card of cards.values()) card.refresh();
        pinnedCard?.refresh();
      }
      setText(byId("shelf-count"), whole(offers.length));
    },
  };
}

function drawShelf(context, box, offers, cards) {
  const focused = document.activeElement?.dataset?.buy;
  cards.clear();
  const list = el("ul", { class: "shelf-list" });
  for (const offer of offers) {
    const card = goodsCard(context, offer);
    cards.set(offer.id, card);
    list.append(card.node);
  }
  const empty = offers.length === 0 && el("p", { class: "empty" }, t("viewer.shelf_empty"));
  box.replaceChildren(
    el(
      "div",
      { class: "shelf-head" },
      el("h2", {}, t("viewer.shelf")),
      el("span", { class: "muted small-text" }, t("viewer.goods", { n: offers.length })),
    ),
    list,
    ...(empty ? [empty] : []),
  );
  if (focused) box.querySelector(`[data-buy="${CSS.escape(focused)}"]`)?.focus();
}

export function originOf(offer) {
  const harvested = offer.harvested_on ? t("viewer.harvested", { date: offer.harvested_on }) : "";
  return [offer.unit, offer.village, offer.lot, harvested].filter(Boolean).join(" · ");
}

export function priceLine(offer) {
  const was = offer.list_price_minor > offer.price_minor && offer.list_price_minor;
  return el(
    "p",
    { class: "row tight" },
    el("span", { class: "price" }, money(offer.price_minor, offer.currency)),
    was &&
      el(
        "del",
        { class: "was" },
        el("span", { class: "unseen" }, `${t("viewer.list_price")} `),
        money(was, offer.currency),
      ),
  );
}

function keywordLine(offer) {
  return offer.keyword && el("p", { class: "small-text muted" }, t("viewer.keyword", { word: offer.keyword }));
}

function goodsCard(context, offer) {
  const pinned = context.state.pin === offer.id;
  const stock = stockLine(context, offer);
  const node = el(
    "li",
    { class: `goods ${pinned ? "is-pinned" : ""}`, dataset: { offer: offer.id } },
    picture(offer, 84),
    el("h3", {}, offer.name),
    el("p", { class: "origin" }, originOf(offer)),
    keywordLine(offer),
    pinned && el("p", {}, el("span", { class: "badge good" }, t("viewer.explaining"))),
    el("div", { class: "foot-row" }, priceLine(offer), stock.button),
    stock.line,
  );
  const refresh = () => {
    stock.refresh();
    node.classList.toggle("is-out", ["sold_out", "over"].includes(offerStatus(context.state, offer, serverNow())));
  };
  refresh();
  return { node, refresh };
}

/** What is left, as a bar and as words, and the button that fits: redrawn in place, so that the focus stays. */
function stockLine(context, offer) {
  const fillBar = el("i");
  const words = el("span");
  const opening = offer.opens_at && Date.parse(offer.opens_at) > serverNow() ? offer.opens_at : null;
  const closing = !opening && offer.closes_at && Date.parse(offer.closes_at) > serverNow() ? offer.closes_at : null;
  const timer =
    (opening ?? closing) &&
    el(
      "span",
      { class: "countdown" },
      icon("bolt"),
      t(opening ? "viewer.opens_in" : "viewer.closes_in"),
      countdownTo(opening ?? closing),
    );
  const button = el("button", {
    type: "button",
    class: "button primary small",
    dataset: { buy: offer.id },
    onclick: () => buy(context, offer.id),
  });
  const line = el(
    "div",
    { class: "stock" },
    timer,
    el("div", { class: "stock-bar", "aria-hidden": "true" }, fillBar),
    words,
  );
  const refresh = () => {
    const left = available(context.state, offer);
    const status = offerStatus(context.state, offer, serverNow());
    fillBar.style.setProperty(
      "transform",
      `scaleX(${offer.total > 0 ? Math.min(1, Math.max(0, left / offer.total)) : 0})`,
    );
    setText(
      words,
      left > 0 ? t("viewer.left", { n: whole(left), total: whole(offer.total) }) : t("offer_status.sold_out"),
    );
    const text = status === "open" ? t("viewer.buy") : t(`offer_status.${status}`);
    setText(button, text);
    button.setAttribute("aria-label", `${text}: ${offer.name}`);
    button.setAttribute("aria-disabled", String(!BUYABLE.includes(status)));
  };
  refresh();
  return { button, line, refresh };
}

function buy(context, offerId) {
  const offer = context.state.offers.get(offerId);
  if (!offer || !BUYABLE.includes(offerStatus(context.state, offer, serverNow()))) return;
  context.closeShelf?.();
  context.checkout.start(offer);
}

let pinnedCard = null;
let pinnedShown = "";

function drawPinned(context) {
  const box = byId("pinned");
  const offer = context.state.pin && context.state.offers.get(context.state.pin);
  const visible = Boolean(offer) && offer.state !== "withdrawn";
  show(box, visible);
  if (!visible) {
    pinnedCard = null;
    pinnedShown = "";
    return;
  }
  const hadFocus = box.contains(document.activeElement);
  const [shownId, shownPrice] = pinnedShown.split("/");
  const stock = stockLine(context, offer);
  stock.button.classList.remove("small");
  box.replaceChildren(
    el(
      "div",
      { class: "pinned-in" },
      picture(offer, 76),
      el(
        "div",
        {},
        el("p", { class: "explaining" }, icon("pin"), t("viewer.explaining")),
        el("h2", {}, offer.name),
        el("p", { class: "origin" }, originOf(offer)),
        priceLine(offer),
        keywordLine(offer),
      ),
      stock.button,
      el("div", { class: "stock-line" }, ...stock.line.childNodes),
    ),
  );
  box.classList.toggle("arrive", shownId !== offer.id);
  box.classList.toggle("changed", shownId === offer.id && shownPrice !== String(offer.price_minor));
  pinnedShown = `${offer.id}/${offer.price_minor}`;
  pinnedCard = stock;
  if (hadFocus) stock.button.focus();
}
