/**
 * The REST control panel. Errors are problem details (RFC 9457) and become an `ApiError` whose `detail` says what to do.
 * Every change carries an `Idempotency-Key`, so that a request may be repeated after a lost answer without a second effect.
 */

import { t } from "./i18n.js";
import { newKey } from "./live-client.js";

const TIMEOUT_MS = 15000;
const DOWNLOAD_MS = 120000; // a file may be long
const TRIES_MAX = 3;

export class ApiError extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `HTTP ${status}`);
    this.name = "ApiError";
    this.status = status;
    this.word = problem.word ?? "";
    this.fields = problem.fields ?? []; // which parts of the request were wrong: { field: "body.price_minor", text }
  }
}

export class Api {
  #token;

  constructor(token = "") {
    this.#token = token;
  }

  get(path, query = {}) {
    return this.#request("GET", withQuery(path, query));
  }

  /** A file, as a Blob. */
  async download(path, query = {}) {
    const answer = await this.#once("GET", withQuery(path, query), undefined, undefined, DOWNLOAD_MS);
    if (!answer.ok) throw new ApiError(answer.status, await readProblem(answer));
    return answer.blob();
  }

  post(path, body = {}, key = newKey()) {
    return this.#request("POST", path, body, key);
  }

  put(path, body) {
    return this.#request("PUT", path, body, newKey());
  }

  patch(path, body) {
    return this.#request("PATCH", path, body, newKey());
  }

  delete(path) {
    return this.#request("DELETE", path, undefined, newKey());
  }

  /** All items of a listing, page after page, up to a bound. */
  async all(path, query = {}, itemsMax = 400) {
    const items = [];
    let cursor = "";
    do {
      const page = await this.get(path, { ...query, cursor });
      items.push(...page.items);
      cursor = page.next_cursor;
    } while (cursor && items.length < itemsMax);
    return items;
  }

  async #request(method, path, body, key) {
    for (let attempt = 1; ; attempt += 1) {
      const answer = await this.#once(method, path, body, key);
      if (answer.ok) return answer.status === 204 ? null : answer.json();
      const problem = await readProblem(answer);
      if (answer.status !== 503 || attempt === TRIES_MAX) throw new ApiError(answer.status, problem);
      await new Promise((resolve) => setTimeout(resolve, 300 * attempt * (1 + Math.random())));
    }
  }

  async #once(method, path, body, key, timeoutMs = TIMEOUT_MS) {
    const headers = { Accept: "application/json" };
    if (this.#token) headers.Authorization = `Bearer ${this.#token}`;
    if (key) headers["Idempotency-Key"] = key;
    if (body !== undefined) headers["Content-Type"] = "application/json";
    try {
      return await fetch(`/api/v1${path}`, {
        method,
        headers,
        body: JSON.stringify(body),
        signal: AbortSignal.timeout(timeoutMs),
      });
    } catch {
      throw new ApiError(0, { detail: t("error.unreachable") });
    }
  }
}

function withQuery(path, query) {
  const given = Object.entries(query).filter(([, value]) => value !== "" && value !== null && value !== undefined);
  return given.length > 0 ? `${path}?${new URLSearchParams(given)}` : path;
}

async function readProblem(answer) {
  try {
    return await answer.json();
  } catch {
    return { title: `HTTP ${answer.status}` };
  }
}

/** One sentence for the person in front of the page, from whatever was thrown by REST or by the live client. */
export function explain(error) {
  const known = {
    0: "error.no_answer",
    101: "error.unauthorized",
    103: "error.permission",
    109: "error.expired",
    111: "error.too_fast",
    412: "error.banned",
  };
  const byStatus = { 401: "error.unauthorized", 429: "error.too_fast", 503: "error.unavailable" };
  if (error.name === "LiveError" && known[error.code]) return t(known[error.code]);
  if (error.name === "ApiError" && byStatus[error.status]) return t(byStatus[error.status]);
  return error.message || t("error.unknown");
}
