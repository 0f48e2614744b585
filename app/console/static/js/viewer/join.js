/** The door: a guest chooses a name, or someone who has a token of the company's app brings it. */

import { Api, explain } from "../api.js";
import { checkForm, el, field, fieldError, fields } from "../dom.js";
import { t } from "../i18n.js";
import { readClaims, saveToken } from "../identity.js";
import { busy, openSheet } from "../sheets.js";

const NAME = "jishi.guest_name";

/** Resolves with a token, which is kept for this tab. */
export function join(context) {
  return new Promise((resolve) => {
    const sheet = openSheet(t("join.title"), { className: "join", dismissible: false });
    const accept = (token) => {
      saveToken("viewer", token);
      sheet.close();
      resolve(token);
    };
    const draw = (form) => {
      sheet.body.replaceChildren(form);
      form.querySelector("input, textarea").focus();
    };
    const asGuest = () => draw(guestForm(context, accept, withToken));
    const withToken = () => draw(tokenForm(accept, asGuest));
    asGuest();
  });
}

function guestForm(context, accept, other) {
  const name = el("input", {
    name: "name",
    maxlength: 24,
    required: true,
    autocomplete: "nickname",
    value: localStorage.getItem(NAME) ?? "",
  });
  const enter = async (event) => {
    event.preventDefault();
    if (!checkForm(form, () => t("join.name_needed"))) return;
    const chosen = fields(form).name;
    localStorage.setItem(NAME, chosen);
    const guest = await busy(submit, () => new Api().post("/guests", { name: chosen }), explain);
    if (guest) accept(guest.token);
  };
  const submit = el("button", { type: "submit", class: "button primary wide" }, t("join.enter"));
  const form = el(
    "form",
    { class: "stack", novalidate: true, onsubmit: enter },
    el("p", { class: "muted" }, t("join.lead", { room: context.state.room?.title ?? "" })),
    field(t("join.name"), name, { hint: t("join.name_hint") }),
    submit,
    el("button", { type: "button", class: "button quiet wide", onclick: other }, t("join.have_token")),
  );
  return form;
}

function tokenForm(accept, other) {
  const token = el("textarea", { name: "token", required: true, autocomplete: "off", spellcheck: "false", rows: 4 });
  const enter = (event) => {
    event.preventDefault();
    const claims = readClaims(fields(form).token);
    if (!claims) fieldError(token, t("join.token_wrong"));
    else if (claims.expiresAt < Date.now()) fieldError(token, t("join.token_old"));
    else accept(fields(form).token);
  };
  const form = el(
    "form",
    { class: "stack", novalidate: true, onsubmit: enter },
    field(t("join.token"), token, { hint: t("join.token_hint") }),
    el("button", { type: "submit", class: "button primary wide" }, t("join.enter")),
    el("button", { type: "button", class: "button quiet wide", onclick: other }, t("join.as_guest")),
  );
  return form;
}
