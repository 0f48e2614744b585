/** Making and finding elements. Text only ever enters the page as text (never as HTML), so nothing a viewer types can become markup. */

const SVG = "http://www.w3.org/2000/svg";

/** `el("button", { class: "buy", type: "button", onclick: buy, disabled: true }, "Buy")`; null and false children are left out. */
export function el(tag, props = {}, ...children) {
  return fill(document.createElement(tag), props, children);
}

/** The same for SVG. */
export function svg(tag, props = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), props, children);
}

function fill(node, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (name === "value") node.value = value;
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export function icon(name) {
  const use = svg("use", { href: `/static/img/icons.svg#${name}` });
  return svg("svg", { class: "icon", "aria-hidden": "true", focusable: "false", viewBox: "0 0 24 24" }, use);
}

export function byId(id) {
  const node = document.getElementById(id);
  if (!node) throw new Error(`no element with the id ${id}`);
  return node;
}

/** Writes only what changed: a text that is set again would be read out again, and would lose a selection. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

/** The fields of a form as a plain object of trimmed texts. */
export function fields(form) {
  return Object.fromEntries([...new FormData(form)].map(([name, value]) => [name, String(value).trim()]));
}

let fieldCount = 0;

/** A labelled field whose hint and error are tied to it. `control` is an input, select or textarea. */
export function field(label, control, { hint = "" } = {}) {
  fieldCount += 1;
  control.id ||= `field-${fieldCount}`;
  const error = el("span", { class: "field-error", id: `${control.id}-error`, hidden: true });
  const note = hint ? el("span", { class: "field-hint", id: `${control.id}-hint` }, hint) : null;
  control.setAttribute("aria-describedby", [note?.id, error.id].filter(Boolean).join(" "));
  return el("div", { class: "field" }, el("label", { for: control.id }, label), control, note, error);
}

/** Shows an error at its field and puts the cursor there; an empty text takes it away. */
export function fieldError(control, text) {
  const error = byId(`${control.id}-error`);
  setText(error, text);
  show(error, Boolean(text));
  if (text) {
    control.setAttribute("aria-invalid", "true");
    control.focus();
  } else {
    control.removeAttribute("aria-invalid");
  }
}

/**
 * Checks a form's fields by their own rules (required, pattern, …), in our words and in the page's language.
 * `explain(control)` returns the text for a control that is wrong.
 */
export function checkForm(form, explain) {
  const controls = [...form.elements].filter(
    (control) => control.willValidate && control.name && document.getElementById(`${control.id}-error`),
  );
  for (const control of controls) fieldError(control, "");
  const wrong = controls.filter((control) => !control.validity.valid);
  for (const control of wrong.reverse()) fieldError(control, explain(control)); // the first one ends up with the focus
  return wrong.length === 0;
}
