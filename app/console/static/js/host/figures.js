/** The live figures: a strip on top of everything, and the panel with charts. */

import { byId, el } from "../dom.js";
import { barList, columnChart, lineChart } from "../charts.js";
import { compact, money, percent, whole } from "../format.js";
import { t } from "../i18n.js";
import { reportLink } from "./show.js";

const REDRAW_MS = 3000;

export function figuresPanel(context) {
  let figures = null;
  let drawnAt = 0;
  const take = (fresh) => {
    figures = fresh;
    drawStrip(context, figures);
    if (Date.now() - drawnAt < REDRAW_MS || byId("panel-figures").querySelector("details[open]")) return; // do not pull a table from under a reader
    drawnAt = Date.now();
    drawPanel(context, figures);
  };
  drawStrip(context, null);
  return {
    async load() {
      if (!context.session || !context.may("report.view")) return;
      drawnAt = 0;
      take(await context.api.get(`/sessions/${context.session.id}/figures`));
    },
    event(event) {
      if (event.type === "figures.updated" && event.session === context.session?.id) take(event.figures);
    },
    update(changed) {
      if (changed.has("viewers") || changed.has("likes")) drawStrip(context, figures);
    },
  };
}

function drawStrip(context, figures) {
  const { state } = context;
  const amount = (value) => money(value ?? 0, figures?.currency ?? context.currency());
  const live = state.session !== null;
  const items = [
    ["viewers", compact(live ? state.viewers : (figures?.peak_viewers ?? 0))],
    ["unique", compact(figures?.unique_viewers)],
    ["likes", compact(Math.max(state.likes, figures?.likes ?? 0))],
    ["messages", compact(figures?.messages)],
    ["orders", whole(figures?.orders)],
    ["paid", whole(figures?.paid_orders)],
    ["gmv", amount(figures?.gmv_minor)],
    ["conversion", percent(figures?.conversion)],
  ];
  const strip = byId("strip");
  if (strip.children.length !== items.length)
    strip.replaceChildren(
      ...items.map(([name]) =>
        el("li", { dataset: { figure: name } }, el("span", {}, t(`figures.${name}`)), el("b", { class: "number" })),
      ),
    );
  items.forEach(([, value], index) => {
    const box = strip.children[index].querySelector("b");
    if (box.textContent !== value) box.textContent = value;
  });
}

export function minuteCharts(figures) {
  const series = (name) => (figures.minutes ?? []).map((minute) => ({ at: minute.at, value: minute[name] }));
  const amount = (value) => money(value, figures.currency);
  return [
    lineChart({ title: t("figures.viewers"), points: series("viewers"), format: whole, series: 4 }),
    columnChart({ title: t("figures.gmv_per_minute"), points: series("gmv_minor"), format: amount, series: 1 }),
    columnChart({ title: t("figures.orders_per_minute"), points: series("orders"), format: whole, series: 2 }),
    columnChart({ title: t("figures.messages_per_minute"), points: series("messages"), format: whole, series: 3 }),
  ];
}

export function offerBars(figures) {
  const rows = (figures.offers ?? []).map((offer) => ({
    label: offer.name,
    value: offer.gmv_minor,
    note: t("figures.sold_of", { n: whole(offer.sold), total: whole(offer.total) }),
  }));
  return barList({ title: t("figures.per_offer"), rows, format: (value) => money(value, figures.currency) });
}

function drawPanel(context, figures) {
  byId("panel-figures").replaceChildren(
    el("div", { class: "row between" }, el("h2", {}, t("host.figures")), reportLink(context.session)),
    el(
      "div",
      { class: "charts" },
      minuteCharts(figures).map((chart) => el("div", { class: "card" }, chart)),
    ),
    el("div", { class: "card" }, offerBars(figures)),
  );
}
