/** The door of the team: login and password, or a token. Used by the console and by the report. */

import { Api, explain } from "./api.js";
import { checkForm, el, field, fieldError, fields, show } from "./dom.js";
import { wrongText } from "./forms.js";
import { t } from "./i18n.js";
import { loadToken, readClaims, saveToken } from "./identity.js";

/** A staff token that is good for now: the stored one, else what the person at the door brings. */
export function staffToken(door) {
  const stored = loadToken("staff");
  const claims = readClaims(stored);
  return claims && claims.expiresAt > Date.now() ? Promise.resolve(stored) : askAtDoor(door);
}

export function askAtDoor(door) {
  return new Promise((resolve) => {
    show(door, true);
    const accept = (token) => {
      saveToken("staff", token);
      show(door, false);
      resolve(token);
    };
    const draw = (form) => {
      door.replaceChildren(el("h1", {}, t("signin.title")), form);
      form.querySelector("input, textarea").focus();
    };
    const withPassword = () => draw(passwordForm(accept, withToken));
    const withToken = () => draw(tokenForm(accept, withPassword));
    withPassword();
  });
}

function passwordForm(accept, other) {
  const login = el("input", {
    name: "login",
    required: true,
    maxlength: 120,
    autocomplete: "username",
    autocapitalize: "none",
    spellcheck: "false",
  });
  const password = el("input", {
    name: "password",
    type: "password",
    required: true,
    autocomplete: "current-password",
  });
  const button = el("button", { type: "submit", class: "button primary wide" }, t("signin.enter"));
  const send = async (event) => {
    event.preventDefault();
    if (!checkForm(form, wrongText)) return;
    button.setAttribute("aria-busy", "true");
    try {
      accept((await new Api().post("/sign-in", fields(form))).token);
    } catch (error) {
      fieldError(password, error.status === 401 ? t("signin.wrong") : explain(error));
    } finally {
      button.removeAttribute("aria-busy");
    }
  };
  const form = el(
    "form",
    { class: "stack", novalidate: true, onsubmit: send },
    el("p", { class: "muted" }, t("signin.lead")),
    field(t("signin.login"), login),
    field(t("signin.password"), password),
    button,
    el("button", { type: "button", class: "button quiet wide", onclick: other }, t("join.have_token")),
  );
  return form;
}

function tokenForm(accept, other) {
  const token = el("textarea", { name: "token", required: true, rows: 5, autocomplete: "off", spellcheck: "false" });
  const send = (event) => {
    event.preventDefault();
    const claims = readClaims(fields(form).token);
    if (!claims) fieldError(token, t("join.token_wrong"));
    else if (claims.expiresAt < Date.now()) fieldError(token, t("join.token_old"));
    else accept(fields(form).token);
  };
  const form = el(
    "form",
    { class: "stack", novalidate: true, onsubmit: send },
    field(t("join.token"), token, { hint: t("signin.token_hint") }),
    el("button", { type: "submit", class: "button primary wide" }, t("signin.enter")),
    el("button", { type: "button", class: "button quiet wide", onclick: other }, t("signin.with_password")),
  );
  return form;
}
