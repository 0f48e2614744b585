/**
 * What is true in a room, as a client knows it: a snapshot, then the events after it. Pure, so it can be read (and tested) alone.
 *
 * Every event states the whole new state of what it names, so applying one twice does no harm. Stock, likes and viewers are readings:
 * they come with the pulse. `applyEvent` returns the names of the parts that changed, so that a page redraws only these.
 */

export function emptyState() {
  return {
    room: null,
    session: null, // the session on air: live or interrupted
    upcoming: [], // sessions that were announced: { session, title, starts_at }
    ended: null, // the session that this page saw end, to thank for it
    offers: new Map(),
    pin: null,
    stock: new Map(),
    likes: 0,
    viewers: 0,
    peakViewers: 0,
    said: 0,
    shown: 0,
    notice: "",
    slowModeS: 0,
    draws: new Map(),
    envelopes: new Map(),
    winners: new Map(), // draw id -> winners, once drawn
  };
}

export const ALL_PARTS = [
  "room",
  "session",
  "offers",
  "pin",
  "stock",
  "likes",
  "viewers",
  "notice",
  "slowMode",
  "draws",
  "envelopes",
];

export function fromSnapshot(snapshot) {
  const state = emptyState();
  state.room = snapshot.room ?? null;
  state.session = snapshot.session ?? null;
  state.upcoming = snapshot.upcoming ?? [];
  for (const offer of snapshot.offers ?? []) state.offers.set(offer.id, offer);
  state.pin = snapshot.pin ?? null;
  state.stock = new Map(Object.entries(snapshot.stock ?? {}));
  state.likes = snapshot.likes ?? 0;
  state.viewers = snapshot.viewers ?? 0;
  state.notice = snapshot.notice ?? "";
  state.slowModeS = snapshot.slow_mode_s ?? 0;
  for (const draw of snapshot.draws ?? []) state.draws.set(draw.id, draw);
  for (const envelope of snapshot.envelopes ?? []) state.envelopes.set(envelope.id, envelope);
  return state;
}

const onAir = (change) => (state, event) => {
  if (state.session?.id !== event.session) return [];
  state.session = { ...state.session, ...change(event) };
  return ["session"];
};

const forgetUpcoming = (state, id) => {
  state.upcoming = state.upcoming.filter((one) => one.session !== id);
};

const setOffer = (state, { offer }) => {
  const known = state.offers.get(offer.id);
  if (known && known.version > offer.version) return []; // an older state that came again
  state.offers.set(offer.id, offer);
  return ["offers", "pin"];
};

const setDraw = (state, { draw }) => {
  state.draws.set(draw.id, draw);
  return ["draws"];
};

const setEnvelope = (state, { envelope }) => {
  state.envelopes.set(envelope.id, envelope);
  return ["envelopes"];
};

const APPLY = {
  "room.updated": (state, { room }) => {
    state.room = room;
    return ["room"];
  },
  "session.scheduled": (state, { session, title, starts_at }) => {
    forgetUpcoming(state, session);
    state.upcoming.push({ session, title, starts_at });
    state.upcoming.sort((a, b) => a.starts_at.localeCompare(b.starts_at));
    return ["session"];
  },
  "session.went_live": (state, { session, title, at }) => {
    if (state.session?.id === session) return [];
    forgetUpcoming(state, session);
    startAfresh(state); // another show has another shelf; its offers are announced next
    state.session = { id: session, title, state: "live", went_live_at: at, reason: "" };
    return ALL_PARTS;
  },
  "session.interrupted": onAir((event) => ({ state: "interrupted", reason: event.reason })),
  "session.resumed": onAir(() => ({ state: "live", reason: "" })),
  "session.ended": (state, { session }) => {
    forgetUpcoming(state, session);
    if (state.session?.id !== session) return ["session"];
    state.ended = state.session;
    state.session = null;
    state.pin = null;
    state.offers.clear();
    return ALL_PARTS;
  },
  "offer.listed": setOffer,
  "offer.updated": setOffer,
  "offer.withdrawn": (state, { offer }) => {
    const known = state.offers.get(offer);
    if (known) state.offers.set(offer, { ...known, state: "withdrawn" });
    return ["offers", "pin"];
  },
  "offer.sold_out": (state, { offer }) => {
    state.stock.set(offer, 0);
    return ["stock"];
  },
  "offer.restocked": () => ["stock"], // the next pulse has the number
  "offer.pinned": (state, { offer }) => {
    state.pin = offer;
    return ["pin"];
  },
  "notice.pinned": (state, { text }) => {
    state.notice = text;
    return ["notice"];
  },
  "chat.slow_mode_set": (state, { interval_s: intervalS }) => {
    state.slowModeS = intervalS;
    return ["slowMode"];
  },
  "draw.opened": setDraw,
  "draw.closed": setDraw,
  "draw.cancelled": setDraw,
  "draw.drawn": (state, event) => {
    state.winners.set(event.draw.id, event.winners);
    return setDraw(state, event);
  },
  "envelope.opened": setEnvelope,
  "envelope.updated": setEnvelope,
  "room.pulse": (state, pulse) => {
    state.viewers = pulse.viewers;
    state.peakViewers = pulse.peak_viewers;
    state.likes = Math.max(state.likes, pulse.likes);
    state.said = pulse.said;
    state.shown = pulse.shown;
    for (const [offer, available] of Object.entries(pulse.stock ?? {})) state.stock.set(offer, available);
    return ["viewers", "likes", "stock"];
  },
};

function startAfresh(state) {
  const { room, upcoming, notice, slowModeS, viewers } = state;
  Object.assign(state, emptyState(), { room, upcoming, notice, slowModeS, viewers });
}

/** "live", "interrupted", "ended", "scheduled" or "none". */
export function phaseOf(state) {
  if (state.session) return state.session.state;
  if (state.ended) return "ended";
  return state.upcoming.length > 0 ? "scheduled" : "none";
}

/** Applies an event; returns the parts that changed, none for an event that says nothing about the state. */
export function applyEvent(state, event) {
  return APPLY[event.type]?.(state, event) ?? [];
}

export const available = (state, offer) => state.stock.get(offer.id) ?? offer.total;

/**
 * "open", "line" (nothing is left, and there is a line for what comes back), "sold_out", "not_open", "paused", "over" or "waiting" (the
 * show is not live): whether an offer can be bought now, and why not.
 */
export function offerStatus(state, offer, nowMs) {
  if (offer.state === "withdrawn") return "over";
  if (offer.state === "paused") return "paused";
  if (offer.closes_at && Date.parse(offer.closes_at) <= nowMs) return "over";
  if (offer.opens_at && Date.parse(offer.opens_at) > nowMs) return "not_open";
  const live = phaseOf(state) === "live";
  if (available(state, offer) <= 0) return live && offer.selling_policy === "waitlist" ? "line" : "sold_out";
  return live ? "open" : "waiting";
}

/** The shelf in the order of the host's choosing, without what was withdrawn. */
export function shelf(state) {
  return [...state.offers.values()]
    .filter((offer) => offer.state !== "withdrawn")
    .sort((a, b) => a.position - b.position || a.id.localeCompare(b.id));
}
