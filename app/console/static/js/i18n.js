/**
 * Texts in English and Chinese. `t("viewer.left", { n: 3 })` is the text of a key with its `{n}` filled in.
 *
 * The language is the one chosen before, else the browser's. Templates name their texts by `data-i18n` (and `data-i18n-label` for
 * `aria-label`, `data-i18n-placeholder`, `data-i18n-title`), and are filled in before the page's own module runs.
 */

const LANGUAGES = { en: "English", zh: "中文" };
const STORED = "jishi.language";

export const language = chosen();
export const locale = language === "zh" ? "zh-CN" : "en-GB";
const texts = await load(language);

document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
translate(document);

export function t(key, values = {}) {
  const text = texts[key];
  if (text === undefined) {
    console.error(`no text for ${key}`);
    return key;
  }
  return text.replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? ""));
}

/** The text of a word that the server sends (a state, an outcome); the word itself when it is newer than this page. */
export function word(group, value) {
  return texts[`${group}.${value}`] ?? String(value);
}

export function translate(root) {
  for (const node of root.querySelectorAll("[data-i18n]")) node.textContent = t(node.dataset.i18n);
  for (const node of root.querySelectorAll("[data-i18n-label]"))
    node.setAttribute("aria-label", t(node.dataset.i18nLabel));
  for (const node of root.querySelectorAll("[data-i18n-title]")) node.setAttribute("title", t(node.dataset.i18nTitle));
  for (const node of root.querySelectorAll("[data-i18n-placeholder]"))
    node.setAttribute("placeholder", t(node.dataset.i18nPlaceholder));
  if (document.documentElement.dataset.title) document.title = t(document.documentElement.dataset.title);
}

/** Makes a button switch to the other language. The page loads again: what it shows comes from the server, nothing is lost. */
export function bindLanguageSwitch(button) {
  const other = language === "zh" ? "en" : "zh";
  button.textContent = LANGUAGES[other];
  button.lang = other;
  button.setAttribute("aria-label", `${LANGUAGES[other]} – ${t("common.switch_language")}`);
  button.addEventListener("click", () => {
    localStorage.setItem(STORED, other);
    location.reload();
  });
}

function chosen() {
  const stored = localStorage.getItem(STORED);
  if (stored in LANGUAGES) return stored;
  return (navigator.languages ?? [navigator.language]).some((one) => one.toLowerCase().startsWith("zh")) &&
    !prefersEnglish()
    ? "zh"
    : "en";
}

function prefersEnglish() {
  const first = (navigator.languages ?? [navigator.language]).find((one) => /^(zh|en)/i.test(one)) ?? "en";
  return first.toLowerCase().startsWith("en");
}

async function load(code) {
  const response = await fetch(`/static/i18n/${code}.json`);
  return response.json();
}
