/** Small SVG charts. Each is a figure with a caption, a summary for screen readers, and its numbers as a table on demand. */

import { el, svg } from "./dom.js";
import { clockTime } from "./format.js";
import { t } from "./i18n.js";

const WIDTH = 320;
const HEIGHT = 110;
const PAD = 6;

/** A line over time. `points` are [{ at, value }]; `format` writes a value. */
export function lineChart({ title, points, format, series = 1 }) {
  const best = Math.max(0, ...points.map((point) => point.value));
  const top = Math.max(1, best);
  const x = (index) => (points.length > 1 ? PAD + (index * (WIDTH - 2 * PAD)) / (points.length - 1) : WIDTH / 2);
  const y = (value) => HEIGHT - PAD - (value * (HEIGHT - 2 * PAD - 8)) / top;
  const line = points
    .map((point, index) => `${index === 0 ? "M" : "L"}${x(index).toFixed(1)} ${y(point.value).toFixed(1)}`)
    .join("");
  const last = points.at(-1);
  const drawing = chartFrame(title, summary(points, format), [
    [0.25, 0.5, 0.75, 1].map((share) =>
      svg("line", { class: "grid", x1: PAD, x2: WIDTH - PAD, y1: y(top * share), y2: y(top * share) }),
    ),
    points.length > 1 &&
      svg("path", { class: "area", d: `${line}L${x(points.length - 1)} ${HEIGHT - PAD}L${x(0)} ${HEIGHT - PAD}Z` }),
    points.length > 1 && svg("path", { class: "line-mark", d: line, "vector-effect": "non-scaling-stroke" }),
    last && svg("circle", { class: "end-mark", cx: x(points.length - 1), cy: y(last.value), r: 4 }),
  ]);
  const ends =
    points.length > 0 &&
    el(
      "p",
      { class: "chart-ends", "aria-hidden": "true" },
      el("span", {}, clockTime(points[0].at)),
      el("span", {}, clockTime(last.at)),
    );
  return figure(
    title,
    series,
    points.length > 0 ? format(last.value) : "–",
    t("chart.peak", { value: format(best) }),
    drawing,
    ends,
    timeTable(title, points, format),
  );
}

/** Columns over time, for sums of a minute. */
export function columnChart({ title, points, format, series = 2 }) {
  const best = Math.max(0, ...points.map((point) => point.value));
  const top = Math.max(1, best);
  const step = (WIDTH - 2 * PAD) / Math.max(points.length, 1);
  const width = Math.min(26, Math.max(1, step * 0.72));
  const bars = points.map((point, index) => {
    const height = (point.value * (HEIGHT - 2 * PAD - 8)) / top;
    return svg(
      "rect",
      {
        class: "bar-mark",
        x: PAD + index * step + (step - width) / 2,
        y: HEIGHT - PAD - height,
        width,
        height,
        rx: Math.min(3, width / 2),
      },
      svg("title", {}, `${clockTime(point.at)} ${format(point.value)}`),
    );
  });
  const base = svg("line", { class: "grid", x1: PAD, x2: WIDTH - PAD, y1: HEIGHT - PAD, y2: HEIGHT - PAD });
  const total = points.reduce((sum, point) => sum + point.value, 0);
  const drawing = chartFrame(title, summary(points, format), [base, bars]);
  const ends =
    points.length > 0 &&
    el(
      "p",
      { class: "chart-ends", "aria-hidden": "true" },
      el("span", {}, clockTime(points[0].at)),
      el("span", {}, clockTime(points.at(-1).at)),
    );
  return figure(
    title,
    series,
    format(total),
    t("chart.best_minute", { value: format(best) }),
    drawing,
    ends,
    timeTable(title, points, format),
  );
}

/** Horizontal bars with their names: `rows` are [{ label, value, note }]. Plain elements: they wrap and scale as text does. */
export function barList({ title, rows, format, series = 1 }) {
  const top = Math.max(1, ...rows.map((row) => row.value));
  const items = rows.map((row) => {
    const bar = svg(
      "svg",
      { class: "bar", viewBox: "0 0 100 10", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("rect", { class: "bar-ground", width: 100, height: 10 }),
      svg("rect", { class: "bar-mark", width: (row.value * 100) / top, height: 10 }),
    );
    return el(
      "li",
      {},
      el("span", { class: "bar-label" }, row.label),
      el("span", { class: "bar-value number" }, format(row.value), row.note && el("small", {}, ` ${row.note}`)),
      bar,
    );
  });
  return el(
    "figure",
    { class: `chart series-${series}` },
    el("figcaption", {}, title),
    rows.length > 0 ? el("ol", { class: "bar-list" }, items) : el("p", { class: "empty" }, t("chart.empty")),
  );
}

function chartFrame(title, text, content) {
  return svg(
    "svg",
    { class: "chart-drawing", viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${title}: ${text}` },
    content.flat(),
  );
}

function summary(points, format) {
  if (points.length === 0) return t("chart.empty");
  const top = points.reduce((best, point) => (point.value > best.value ? point : best));
  return t("chart.summary", { last: format(points.at(-1).value), top: format(top.value), at: clockTime(top.at) });
}

function figure(title, series, headline, note, ...rest) {
  const head = el(
    "figcaption",
    {},
    title,
    el("span", { class: "chart-head" }, el("b", { class: "number" }, headline), el("small", {}, note)),
  );
  return el("figure", { class: `chart series-${series}` }, head, ...rest);
}

function timeTable(title, points, format) {
  if (points.length === 0) return null;
  const rows = points.map((point) =>
    el("tr", {}, el("th", { scope: "row" }, clockTime(point.at)), el("td", {}, format(point.value))),
  );
  return el(
    "details",
    { class: "chart-table" },
    el("summary", {}, t("chart.as_table")),
    el(
      "div",
      { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      el(
        "table",
        {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, t("chart.minute")), el("th", { scope: "col" }, title))),
        el("tbody", {}, rows),
      ),
    ),
  );
}
