/** Return requests of the room: what the team still has to answer, and what became of the others. */

import { explain } from "../api.js";
import { el } from "../dom.js";
import { dateTime, money } from "../format.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { busy, toast } from "../sheets.js";

const LISTED_MAX = 50;
const BADGE = { requested: "warn", approved: "", shipped_back: "warn", received: "warn", refunded: "good" };
// What the team may do with a request in this state; the server decides all the same.
const ACTS = {
  requested: ["approve", "reject"],
  approved: ["receive"],
  shipped_back: ["receive"],
  received: ["refund", "refuse"],
};
const ASKS = new Set(["approve", "reject", "refuse"]); // the viewer reads why

export function returnsPart(context) {
  const box = el("section", { class: "stack", dataset: { part: "returns" } });
  const load = async () => {
    const page = await context.api.get(`/rooms/${context.roomId}/returns`, { limit: LISTED_MAX });
    const open = page.items.filter((request) => request.state in ACTS);
    const ended = page.items.filter((request) => !(request.state in ACTS));
    box.replaceChildren(
      ...(page.items.length > 0 ? [el("h3", {}, t("returns.title"))] : []),
      ...open.map((request) => requestCard(context, request, load)),
      ...(ended.length > 0
        ? [
            el(
              "details",
              {},
              el("summary", {}, t("returns.ended", { n: ended.length })),
              ...ended.map((request) => requestCard(context, request, load)),
            ),
          ]
        : []),
    );
  };
  return { box, load };
}

function requestCard(context, request, load) {
  const acts = context.may("order.fulfil") ? (ACTS[request.state] ?? []) : [];
  return el(
    "article",
    { class: "card stack tight", dataset: { request: request.id, state: request.state } },
    el(
      "div",
      { class: "row between" },
      el("h4", {}, `${word("return_reason", request.reason)} × ${request.quantity}`),
      el("span", { class: `badge ${BADGE[request.state] ?? ""}` }, word("return_state", request.state)),
    ),
    el(
      "p",
      { class: "row between" },
      el(
        "span",
        {},
        word("return_kind", request.kind),
        el("small", { class: "muted" }, ` ${request.viewer} · ${dateTime(request.requested_at)}`),
      ),
      el("span", { class: "price" }, money(request.amount_minor, request.currency)),
    ),
    request.text && el("p", { class: "small-text" }, request.text),
    request.evidence.length > 0 &&
      el(
        "p",
        { class: "row tight small-text" },
        request.evidence.map(({ url }, index) =>
          el("a", { href: url, target: "_blank", rel: "noopener noreferrer nofollow" }, `${t("returns.evidence")} ${index + 1}`),
        ),
      ),
    request.tracking && el("p", { class: "small-text" }, `${request.carrier} ${request.tracking}`),
    request.answer && el("p", { class: "small-text muted" }, request.answer),
    request.due_at && el("p", { class: "small-text muted" }, t("returns.by_itself", { date: dateTime(request.due_at) })),
    acts.length > 0 &&
      el(
        "div",
        { class: "row tight" },
        acts.map((act, index) =>
          el(
            "button",
            {
              type: "button",
              class: `button ${index === 0 ? "primary" : "quiet"} small`,
              dataset: { act },
              onclick: (event) => take(context, request, act, load, event.currentTarget),
            },
            t(`return_act.${act}`),
          ),
        ),
      ),
  );
}

function take(context, request, act, load, button) {
  const post = async (body) => {
    await context.api.post(`/returns/${request.id}/${act}`, body);
    toast(t("returns.done"), "good");
    await load();
    await context.reloadOrders();
  };
  if (!ASKS.has(act)) {
    busy(button, () => post({}), explain);
    return;
  }
  formSheet({
    title: t(`return_act.${act}`),
    action: t(`return_act.${act}`),
    controls: [{ name: "answer", label: t("returns.answer"), required: act !== "approve", maxlength: 500 }],
    submit: post,
  });
}
