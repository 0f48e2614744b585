/** Money, numbers and times for people, in the page's language. Times are the server's: the browser's clock may be wrong. */

import { el } from "./dom.js";
import { locale } from "./i18n.js";

let skewMs = 0;

/** Learns the clock that decides windows and deadlines, from a snapshot or a pulse of this moment. */
export function syncClock(at) {
  const skew = Date.parse(at) - Date.now();
  if (Number.isFinite(skew)) skewMs = skew;
}

export function serverNow() {
  return Date.now() + skewMs;
}

const moneyFormats = new Map();

function moneyFormat(currency) {
  if (!moneyFormats.has(currency)) {
    moneyFormats.set(
      currency,
      new Intl.NumberFormat(locale, { style: "currency", currency, currencyDisplay: "narrowSymbol" }),
    );
  }
  return moneyFormats.get(currency);
}

/** `money(1990, "CNY")` is “¥19.90”. Amounts are whole numbers of the smallest unit, which is not always a hundredth. */
export function money(amountMinor, currency) {
  const format = moneyFormat(currency);
  return format.format(amountMinor / 10 ** format.resolvedOptions().maximumFractionDigits);
}

/** The way back, for forms: “19.9” of CNY is 1990; NaN for what is no amount. */
export function minor(text, currency) {
  if (!/^\d+([.,]\d+)?$/.test(text.trim())) return NaN;
  return Math.round(
    Number(text.trim().replace(",", ".")) * 10 ** moneyFormat(currency).resolvedOptions().maximumFractionDigits,
  );
}

/** The amount without its symbol, as a form field wants it. */
export function major(amountMinor, currency) {
  const digits = moneyFormat(currency).resolvedOptions().maximumFractionDigits;
  return (amountMinor / 10 ** digits).toFixed(digits);
}

const counts = new Intl.NumberFormat(locale, { notation: "compact", maximumFractionDigits: 1 });
const wholes = new Intl.NumberFormat(locale);
const percents = new Intl.NumberFormat(locale, { style: "percent", maximumFractionDigits: 1 });
const clocks = new Intl.DateTimeFormat(locale, { hour: "2-digit", minute: "2-digit" });
const dates = new Intl.DateTimeFormat(locale, { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });

export const compact = (value) => counts.format(value ?? 0);
export const whole = (value) => wholes.format(value ?? 0);
export const percent = (value) => percents.format(value ?? 0);
export const clockTime = (at) => clocks.format(new Date(at));
export const dateTime = (at) => dates.format(new Date(at));

/** “4:09”, or “1:04:09”; never below zero. */
export function duration(ms) {
  const seconds = Math.max(0, Math.ceil(ms / 1000));
  const pad = (value) => String(value).padStart(2, "0");
  const [hours, minutes, rest] = [Math.floor(seconds / 3600), Math.floor(seconds / 60) % 60, seconds % 60];
  return hours > 0 ? `${hours}:${pad(minutes)}:${pad(rest)}` : `${minutes}:${pad(rest)}`;
}

/** What is left until a moment (RFC 3339), counting down. One timer serves all of the page; at zero the element gets the event "due", once. */
export function countdownTo(until) {
  return el("time", { dataset: { until }, datetime: until }, duration(Date.parse(until) - serverNow()));
}

export function startCountdowns() {
  setInterval(tickCountdowns, 500);
}

export function tickCountdowns() {
  for (const node of document.querySelectorAll("[data-until]")) {
    const left = Date.parse(node.dataset.until) - serverNow();
    const text = duration(left);
    if (node.textContent !== text) node.textContent = text;
    if (left <= 0 && node.dataset.due !== node.dataset.until) {
      node.dataset.due = node.dataset.until;
      node.dispatchEvent(new CustomEvent("due", { bubbles: true }));
    }
  }
}
