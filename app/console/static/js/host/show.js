/** The session's life cycle with its checklist, the run-of-show, and the list of sessions. */

import { explain } from "../api.js";
import { byId, el, icon } from "../dom.js";
import { dateTime } from "../format.js";
import { formSheet } from "../forms.js";
import { t, word } from "../i18n.js";
import { busy, confirmSheet, toast } from "../sheets.js";

const KINDS = ["talk", "offer", "draw", "envelope", "break"];

export function showPanel(context) {
  const panel = byId("panel-show");
  const state = { checklist: null, cues: [] };
  const draw = () =>
    panel.replaceChildren(
      ...(context.session
        ? [lifeCard(context, state), cuesCard(context, state), sessionsCard(context)]
        : [sessionsCard(context)]),
    );
  const load = async () => {
    const id = context.session?.id;
    if (!id) return draw();
    const [checklist, run] = await Promise.all([
      context.api.get(`/sessions/${id}/checklist`),
      context.api.get(`/sessions/${id}/run-of-show`),
    ]);
    Object.assign(state, { checklist, cues: run.cues });
    return draw();
  };
  context.reloadShow = load;
  return {
    load,
    event(event) {
      if (event.type === "cue.advanced" || event.type === "offer.listed") load();
    },
  };
}

// --- life cycle --------------------------------------------------------------------------------------------------------------------

function lifeCard(context, state) {
  const { session } = context;
  return el(
    "article",
    { class: "card stack" },
    el(
      "div",
      { class: "row between" },
      el("h2", {}, session.title),
      el("span", { class: session.state === "live" ? "badge live" : "badge" }, word("session_state", session.state)),
    ),
    el("p", { class: "muted small-text" }, timesOf(session)),
    state.checklist && checklistOf(state.checklist),
    context.may("session.run") && el("div", { class: "row" }, stepsOf(context, state)),
    ["ended", "archived"].includes(session.state) && reportLink(session),
  );
}

export function reportLink(session) {
  return el(
    "a",
    { class: "button quiet", href: `/reports/${encodeURIComponent(session.id)}` },
    icon("chart"),
    t("show.report"),
  );
}

function timesOf(session) {
  return [
    session.starts_at && !session.went_live_at && t("show.starts", { at: dateTime(session.starts_at) }),
    session.went_live_at && t("show.live_since", { at: dateTime(session.went_live_at) }),
    session.ended_at && t("show.ended_at", { at: dateTime(session.ended_at) }),
    session.state === "interrupted" && session.reason,
  ]
    .filter(Boolean)
    .join(" · ");
}

function checklistOf({ step, items }) {
  const rows = items.map((item) =>
    el(
      "li",
      { class: item.ok ? "ok" : "open" },
      icon(item.ok ? "check" : "warning"),
      el("span", { class: "unseen" }, t(item.ok ? "show.check_ok" : "show.check_open")),
      el("span", {}, checkText(item)),
    ),
  );
  const worthIt = step && (items.length > 1 || items.some((item) => !item.ok)); // “it is live” alone is no news
  return (
    worthIt &&
    el(
      "div",
      { class: "stack tight" },
      el("h3", { class: "legend" }, t("show.checklist", { step: word("step", step) })),
      el("ul", { class: "checklist" }, rows),
    )
  );
}

/** Items that need a detail come with the server's own words; the others are said in the page's language. */
function checkText(item) {
  const value = `${item.word}.${item.ok ? "ok" : "open"}`;
  const text = word("check", value);
  return text === value ? item.text : text;
}

function stepsOf(context, state) {
  const { session } = context;
  const step = (name, style, iconName, act) =>
    el(
      "button",
      {
        type: "button",
        class: `button ${style}`,
        dataset: { step: name },
        onclick: (event) => busy(event.currentTarget, act, explain),
      },
      icon(iconName),
      t(`show.${name}`),
    );
  const post = (path, body) => async () => {
    await context.sessionChanged(await context.api.post(`/sessions/${session.id}/${path}`, body));
    toast(t(`show.${path.replace("-", "_")}_done`), "good");
  };
  const schedule = step("schedule", "quiet", "clock", async () => scheduleSheet(context));
  const goLive = step("go_live", "primary", "play", () => goLiveStep(context, state, post));
  const end = step("end", "danger", "stop", () => endStep(post));
  switch (session.state) {
    case "draft":
      return [goLive, schedule];
    case "scheduled":
      return [goLive, schedule, end];
    case "live":
      return [step("interrupt", "quiet", "pause", () => interruptStep(post)), end];
    case "interrupted":
      return [step("resume", "primary", "play", post("resume")), end];
    case "ended":
      return [step("archive", "quiet", "check", post("archive"))];
    default:
      return [];
  }
}

async function goLiveStep(context, state, post) {
  const emptyShelf = state.checklist?.items.some((item) => item.word === "shelf" && !item.ok);
  if (emptyShelf && !(await confirmSheet(t("show.empty_shelf_question"), { action: t("show.go_live"), danger: false })))
    return;
  await post("go-live", { empty_shelf_accepted: Boolean(emptyShelf) })();
}

async function interruptStep(post) {
  const answer = await confirmSheet(t("show.interrupt_question"), {
    action: t("show.interrupt"),
    ask: t("show.reason"),
    danger: false,
  });
  if (answer) await post("interrupt", { reason: answer.text })();
}

async function endStep(post) {
  if (await confirmSheet(t("show.end_question"), { action: t("show.end") })) await post("end")();
}

function scheduleSheet(context) {
  formSheet({
    title: t("show.schedule"),
    action: t("show.schedule"),
    controls: [{ name: "starts_at", label: t("show.starts_at"), type: "datetime-local", required: true }],
    submit: async ({ starts_at: at }) =>
      context.sessionChanged(
        await context.api.post(`/sessions/${context.session.id}/schedule`, { starts_at: new Date(at).toISOString() }),
      ),
  });
}

// --- run-of-show -------------------------------------------------------------------------------------------------------------------

function cuesCard(context, state) {
  const may = context.may("session.run");
  const open = !["ended", "archived"].includes(context.session.state);
  const next = state.cues.find((cue) => cue.state === "waiting");
  const rows = state.cues.map((cue) =>
    el(
      "li",
      { class: `cue ${cue.state}`, "aria-current": cue.state === "now" && "step" },
      el("span", { class: "badge" }, word("cue_kind", cue.kind)),
      el(
        "span",
        { class: "grow" },
        cue.title,
        cue.minutes > 0 && el("small", { class: "muted" }, ` ${t("show.minutes", { n: cue.minutes })}`),
      ),
      may &&
        open &&
        cue.state === "waiting" &&
        el(
          "button",
          {
            type: "button",
            class: "icon-button",
            "aria-label": `${t("show.remove_cue")}: ${cue.title}`,
            onclick: (event) =>
              busy(
                event.currentTarget,
                () =>
                  saveCues(
                    context,
                    state.cues.filter((other) => other !== cue),
                  ),
                explain,
              ),
          },
          icon("trash"),
        ),
    ),
  );
  const advance = async () => {
    const { cue } = await context.api.post(`/sessions/${context.session.id}/run-of-show/advance`);
    toast(cue ? t("show.now", { title: cue.title }) : t("show.through"), "good");
    await context.reloadShow();
  };
  return el(
    "article",
    { class: "card stack" },
    el("h2", {}, t("show.run_of_show")),
    rows.length > 0 ? el("ol", { class: "cues" }, rows) : el("p", { class: "muted" }, t("show.no_cues")),
    may &&
      open &&
      el(
        "div",
        { class: "row" },
        state.cues.length > 0 &&
          el(
            "button",
            {
              type: "button",
              class: "button primary small",
              dataset: { step: "advance" },
              onclick: (event) => busy(event.currentTarget, advance, explain),
            },
            icon("next"),
            next ? t("show.advance_to", { title: next.title }) : t("show.advance"),
          ),
        el(
          "button",
          { type: "button", class: "button quiet small", onclick: () => cueSheet(context, state) },
          icon("plus"),
          t("show.add_cue"),
        ),
      ),
  );
}

async function saveCues(context, cues) {
  const body = { cues: cues.map(({ id, title, kind, offer, minutes }) => ({ id, title, kind, offer, minutes })) };
  await context.api.put(`/sessions/${context.session.id}/run-of-show`, body);
  await context.reloadShow();
}

function cueSheet(context, state) {
  const offers = context.offers().filter((offer) => offer.state !== "withdrawn");
  formSheet({
    title: t("show.add_cue"),
    action: t("common.add"),
    controls: [
      { name: "title", label: t("show.cue_title"), required: true, maxlength: 200 },
      {
        name: "kind",
        label: t("show.cue_kind"),
        type: "select",
        options: KINDS.map((kind) => [kind, word("cue_kind", kind)]),
      },
      {
        name: "offer",
        label: t("show.cue_offer"),
        type: "select",
        options: [["", t("show.no_offer")], ...offers.map((offer) => [offer.id, offer.name])],
        hint: t("show.cue_offer_hint"),
      },
      { name: "minutes", label: t("show.cue_minutes"), type: "number", min: 0, max: 1440, value: 5 },
    ],
    submit: ({ title, kind, offer, minutes }) =>
      saveCues(context, [
        ...state.cues,
        { id: null, title, kind: offer ? "offer" : kind, offer: offer || null, minutes: Number(minutes) || 0 },
      ]),
  });
}

// --- sessions ----------------------------------------------------------------------------------------------------------------------

function sessionsCard(context) {
  const rows = context.sessions.map((session) =>
    el(
      "li",
      { class: "row between session-row" },
      el(
        "button",
        {
          type: "button",
          class: "plain grow",
          "aria-pressed": String(session.id === context.session?.id),
          onclick: () => context.chooseSession(session.id),
        },
        session.title,
        el(
          "small",
          { class: "muted" },
          ` ${dateTime(session.went_live_at ?? session.starts_at ?? session.created_at)}`,
        ),
      ),
      el("span", { class: session.state === "live" ? "badge live" : "badge" }, word("session_state", session.state)),
    ),
  );
  const create = () =>
    formSheet({
      title: t("show.new_session"),
      action: t("common.add"),
      controls: [
        { name: "title", label: t("show.session_title"), required: true, maxlength: 120 },
        { name: "starts_at", label: t("show.starts_at"), type: "datetime-local", hint: t("show.starts_at_hint") },
      ],
      submit: async ({ title, starts_at: at }) => {
        const session = await context.api.post(`/rooms/${context.roomId}/sessions`, {
          title,
          starts_at: at ? new Date(at).toISOString() : null,
        });
        await context.reloadSessions();
        await context.chooseSession(session.id);
      },
    });
  return el(
    "article",
    { class: "card stack" },
    el(
      "div",
      { class: "row between" },
      el("h2", {}, t("show.sessions")),
      context.may("session.run") &&
        el(
          "button",
          { type: "button", class: "button quiet small", onclick: create },
          icon("plus"),
          t("show.new_session"),
        ),
    ),
    rows.length > 0 ? el("ul", { class: "session-list" }, rows) : el("p", { class: "muted" }, t("show.no_sessions")),
  );
}
