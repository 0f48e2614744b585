/** Forms in a sheet, from a list of controls. Keeps what was typed until the server took it; says at the field what was wrong. */

import { ApiError, explain } from "./api.js";
import { checkForm, el, field, fieldError, fields } from "./dom.js";
import { minor } from "./format.js";
import { t } from "./i18n.js";
import { openSheet } from "./sheets.js";

/**
 * A control is { name, label, type, value, hint, required, options, … }; `type` is an input's type, or "money", "select", "textarea".
 * The other properties become attributes. `submit(values)` gets trimmed texts (amounts of money in minor units, or null when left empty)
 * and may throw an ApiError; the sheet closes when it is through.
 */
export function formSheet({ title, controls, action, submit, currency = "CNY", intro = "", extra = null }) {
  const sheet = openSheet(title);
  const alert = el("p", { class: "field-error", role: "alert" });
  const button = el("button", { type: "submit", class: "button primary wide" }, action ?? t("common.save"));
  const nodes = new Map(controls.map((control) => [control.name, controlOf(control)]));
  const rows = controls.map((control) => field(control.label, nodes.get(control.name), { hint: control.hint }));
  const send = async (event) => {
    event.preventDefault();
    if (!checkForm(form, wrongText)) return;
    const values = readValues(form, controls, nodes, currency);
    if (!values || button.getAttribute("aria-busy") === "true") return;
    button.setAttribute("aria-busy", "true");
    alert.textContent = "";
    try {
      await submit(values, form);
      sheet.close();
    } catch (error) {
      showErrors(error, nodes, alert);
    } finally {
      button.removeAttribute("aria-busy");
    }
  };
  const form = el(
    "form",
    { class: "stack", novalidate: true, onsubmit: send },
    intro && el("p", { class: "muted" }, intro),
    ...rows,
    extra,
    alert,
    button,
  );
  sheet.body.append(form);
  form.querySelector("input, select, textarea")?.focus();
  return { sheet, form, nodes };
}

function controlOf({ name, label: _label, hint: _hint, type = "text", options = [], value = "", ...attributes }) {
  if (type === "select") {
    const choices = options.map(([key, text]) =>
      el("option", { value: key, selected: String(key) === String(value) }, text),
    );
    return el("select", { name, ...attributes }, choices);
  }
  if (type === "textarea") return el("textarea", { name, value, ...attributes });
  if (type === "money")
    return el("input", {
      name,
      value,
      inputmode: "decimal",
      autocomplete: "off",
      dataset: { money: "yes" },
      ...attributes,
    });
  return el("input", { name, type, value, autocomplete: "off", ...attributes });
}

export function wrongText(control) {
  const { validity } = control;
  if (validity.valueMissing) return t("form.needed");
  if (validity.rangeUnderflow) return t("form.at_least", { n: control.min });
  if (validity.rangeOverflow) return t("form.at_most", { n: control.max });
  return t("form.wrong");
}

function readValues(form, controls, nodes, currency) {
  const values = fields(form);
  for (const { name } of controls.filter((control) => control.type === "money")) {
    const amount = values[name] === "" ? null : minor(values[name], currency);
    if (Number.isNaN(amount)) {
      fieldError(nodes.get(name), t("form.money_wrong"));
      return null;
    }
    values[name] = amount;
  }
  return values;
}

/** The server names fields as `body.price_minor`; what has no control here is told above the button. */
function showErrors(error, nodes, alert) {
  if (!(error instanceof ApiError) && error.name !== "LiveError") throw error;
  const named = (error.fields ?? [])
    .map(({ field: path, text }) => [nodes.get(path.replace(/^body\./, "")), text])
    .filter(([node]) => node);
  for (const [node, text] of named) fieldError(node, text);
  if (named.length === 0) alert.textContent = explain(error);
}
