/** Dialogs, toasts and what is read out. Built on <dialog>, which keeps the focus inside and gives it back. */

import { byId, el, icon, setText } from "./dom.js";
import { t } from "./i18n.js";

const TOAST_MS = 4500;
const TOASTS_MAX = 3;

/** Opens a modal dialog with a heading; returns { dialog, body, close }. A click on the backdrop and Escape close it. */
export function openSheet(title, { className = "", onClose, dismissible = true } = {}) {
  const heading = el("h2", { id: `sheet-title-${performance.now()}`.replace(".", "-"), tabindex: "-1" }, title);
  const body = el("div", { class: "sheet-body" });
  const close = () => dialog.open && dialog.close();
  const closer =
    dismissible &&
    el(
      "button",
      { type: "button", class: "icon-button", "aria-label": t("common.close"), onclick: close },
      icon("close"),
    );
  const dialog = el(
    "dialog",
    { class: `sheet ${className}`, "aria-labelledby": heading.id },
    el("div", { class: "sheet-frame" }, el("header", { class: "sheet-head" }, heading, closer), body),
  );
  dialog.addEventListener("click", (event) => dismissible && event.target === dialog && close());
  dialog.addEventListener("cancel", (event) => !dismissible && event.preventDefault());
  dialog.addEventListener("close", () => {
    dialog.remove();
    onClose?.();
  });
  document.body.append(dialog);
  dialog.showModal();
  return { dialog, body, close, setTitle: (text) => setText(heading, text), focusTitle: () => heading.focus() };
}

/** Asks before something that cannot be undone. Resolves with true, or with the text when `ask` names a field. */
export function confirmSheet(question, { action, ask = "", danger = true } = {}) {
  return new Promise((resolve) => {
    let answer = false;
    const sheet = openSheet(question, { className: "small", onClose: () => resolve(answer) });
    const input = ask
      ? el("input", { id: "confirm-reason", name: "reason", maxlength: 200, autocomplete: "off" })
      : null;
    const done = (event) => {
      event.preventDefault();
      answer = input ? { text: input.value.trim() } : true;
      sheet.close();
    };
    sheet.body.append(
      el(
        "form",
        { class: "stack", onsubmit: done },
        input && el("div", { class: "field" }, el("label", { for: input.id }, ask), input),
        el(
          "div",
          { class: "row end" },
          el("button", { type: "button", class: "button quiet", onclick: sheet.close }, t("common.cancel")),
          el("button", { type: "submit", class: danger ? "button danger" : "button primary" }, action),
        ),
      ),
    );
  });
}

/** A short message at the edge; "polite" waits for the reader, "assertive" does not. */
export function toast(text, kind = "info") {
  const box = byId("toasts");
  const names = { info: "info", good: "check", bad: "warning" };
  const node = el("div", { class: `toast ${kind}` }, icon(names[kind]), el("span", {}, text));
  box.append(node);
  while (box.children.length > TOASTS_MAX) box.firstElementChild.remove();
  setTimeout(() => node.remove(), TOAST_MS);
  (kind === "bad" ? shout : say)(text);
  liftAboveDialogs(box);
}

/** A modal dialog makes all else inert and stands in the top layer; a popover can stand above it. */
function liftAboveDialogs(box) {
  if (!box.showPopover) return;
  if (box.matches(":popover-open")) box.hidePopover();
  box.showPopover();
}

export const say = (text) => setText(byId("polite"), text);
export const shout = (text) => setText(byId("assertive"), text);

/** Runs an action of a button: the button waits meanwhile, and a failure is told. Returns what the action returned, undefined if it failed. */
export async function busy(button, action, explain) {
  if (button?.getAttribute("aria-busy") === "true") return undefined;
  button?.setAttribute("aria-busy", "true");
  try {
    return await action();
  } catch (error) {
    toast(explain(error), "bad");
    return undefined;
  } finally {
    button?.removeAttribute("aria-busy");
  }
}
