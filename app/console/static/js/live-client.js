/**
 * A whole client of Jishi's live protocol (the Centrifugal client protocol, version 2, JSON) in one file, without dependencies.
 *
 * It is meant to be read: mobile teams can use the maintained SDKs (centrifuge-js, -swift, -java, -dart, ...), which do the same.
 *
 *   const client = new LiveClient({ url: "wss://…/connection/websocket", token });
 *   client.on("state", ({ state }) => …);                       // connecting, connected, waiting, closed
 *   client.subscribe("room:42", {
 *     onSubscribed: ({ snapshot }) => …,                        // a fresh start: forget what you had
 *     onEvent: (event) => …,                                    // an event, in order, without gap or duplicate
 *   });
 *   client.connect();
 *   const reply = await client.rpc("chat.send", { room: "42", text: "hello", key: newKey() });
 *
 * What matters for correctness, in the order it happens:
 *  1. `connect` and every `subscribe` go out in ONE frame: a viewer is in the room after one round trip.
 *  2. A channel that keeps history has a position (epoch, offset). After a cut the client asks for what it missed. The server answers with
 *     all of it (`recovered: true`) or with none of it and a fresh snapshot. Never a part: so there is nothing to guess.
 *  3. A publication without an offset is a reading (the pulse): only the newest matters, and it never moves the position.
 *  4. The empty object is the server's ping and the client's pong. A server that has been silent for a ping and a grace time is gone.
 *  5. Close codes say what to do: below 3500, 4000–4499 and from 5000 on, connect again; the others are final.
 *  6. Reconnects wait longer each time, with full jitter, so that a crowd that lost the server together does not come back together.
 */

const COMMAND_TIMEOUT_MS = 8000;
const RECONNECT_MIN_MS = 300;
const RECONNECT_MAX_MS = 15000;
const PING_GRACE_MS = 10000;
const WAITING_CALLS_MAX = 100;
const RESUBSCRIBE_MS = 1000;
const TOKEN_EXPIRED = 109;

/** An error that the server answered (number, text, `temporary`), or that the client met on the way (number 0). */
export class LiveError extends Error {
  constructor(code, message, temporary = false) {
    super(message);
    this.name = "LiveError";
    this.code = code;
    this.temporary = temporary;
  }
}

/** Whether a close code asks the client to come back. */
export function mayReconnect(code) {
  return code < 3500 || (code >= 4000 && code < 4500) || code >= 5000;
}

/** Full jitter: anywhere between the least wait and a ceiling that doubles. */
export function reconnectDelayMs(attempt, random = Math.random) {
  const ceiling = Math.min(RECONNECT_MAX_MS, RECONNECT_MIN_MS * 2 ** Math.min(attempt, 10));
  return RECONNECT_MIN_MS + random() * ceiling;
}

/** A fresh idempotency key: 128 random bits. (crypto.randomUUID is missing on plain http, getRandomValues is not.) */
export function newKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

export class LiveClient {
  #url;
  #token;
  #name;
  #socket = null;
  #state = "closed";
  #attempt = 0;
  #nextId = 0;
  #calls = new Map(); // command id -> { resolve, reject, timer }
  #waiting = []; // calls asked for before the connection stands
  #channels = new Map(); // channel -> subscription (ours, or the server's)
  #listeners = new Map();
  #reconnectTimer = 0;
  #silenceTimer = 0;
  #silenceMs = 0;
  #pong = false;
  #disconnect = null; // the last disconnect push: proxies lose close codes, the push does not

  constructor({ url, token, name = "web" }) {
    this.#url = url;
    this.#token = token;
    this.#name = name;
    // A phone that comes back into coverage should not sit out its back-off.
    globalThis.addEventListener?.("online", () => this.#hurry());
  }

  get state() {
    return this.#state;
  }

  /** Events of the client itself: "state", "event" (publications of channels that the server subscribed for us), "server-subscribed". */
  on(name, listener) {
    const all = this.#listeners.get(name) ?? [];
    this.#listeners.set(name, [...all, listener]);
    return this;
  }

  connect() {
    if (this.#state !== "closed") return;
    this.#attempt = 0;
    this.#open();
  }

  /** Ends the connection for good; every open call is rejected. */
  close() {
    clearTimeout(this.#reconnectTimer);
    this.#become("closed", { code: 3000, reason: "closed by the page" });
    this.#drop(new LiveError(0, "the connection was closed"));
  }

  /**
   * Subscribes now, or as soon as the connection stands, and again after every reconnect.
   * `onSubscribed({ snapshot, recovered, wasRecovering })` comes before any event; when `recovered` is false, start afresh.
   */
  subscribe(channel, { onSubscribed, onEvent, onEnded } = {}) {
    const subscription = {
      channel,
      onSubscribed,
      onEvent,
      onEnded,
      server: false,
      epoch: "",
      offset: 0,
      recover: false,
    };
    this.#channels.set(channel, subscription);
    if (this.#state === "connected") this.#send(this.#subscribeCommand(subscription));
    return { unsubscribe: () => this.#unsubscribe(channel) };
  }

  /** Calls an RPC method. Resolves with the reply's data; rejects with a LiveError. Waits for the connection, within the timeout. */
  async rpc(method, data = {}) {
    return (await this.#ask({ rpc: { method, data } })).rpc?.data;
  }

  /** The last events of a channel, oldest first: what was said before this page came. Rejects as `rpc` does. */
  async history(channel, limit) {
    const reply = await this.#ask({ history: { channel, limit, reverse: true } });
    return (reply.history?.publications ?? []).map((publication) => publication.data).reverse();
  }

  #ask(command) {
    return new Promise((resolve, reject) => {
      if (this.#state === "connected") {
        this.#call(command, resolve, reject);
      } else if (this.#state === "closed" || this.#waiting.length >= WAITING_CALLS_MAX) {
        reject(new LiveError(0, "not connected"));
      } else {
        const call = { command, resolve, reject };
        call.timer = setTimeout(() => this.#giveUp(call), COMMAND_TIMEOUT_MS);
        this.#waiting.push(call);
      }
    });
  }

  // --- the connection --------------------------------------------------------------------------------------------------------------

  #open() {
    this.#become("connecting");
    this.#disconnect = null;
    const socket = new WebSocket(this.#url, "centrifuge-json");
    this.#socket = socket;
    socket.onopen = () => this.#sayHello();
    socket.onmessage = (message) => this.#receive(String(message.data));
    socket.onclose = (closed) => {
      if (this.#socket === socket) this.#ended(this.#disconnect ?? { code: closed.code, reason: closed.reason });
    };
    this.#watchSilence(COMMAND_TIMEOUT_MS * 2);
  }

  #sayHello() {
    const connect = { token: this.#token, name: this.#name };
    const server = [...this.#channels.values()].filter((one) => one.server && one.recover);
    if (server.length > 0) {
      connect.subs = Object.fromEntries(
        server.map((one) => [one.channel, { recover: true, epoch: one.epoch, offset: one.offset }]),
      );
    }
    const hello = {
      ...this.#prepare(
        (reply) => this.#connected(reply.connect),
        (error) => this.#refused(error),
      ),
      connect,
    };
    const own = [...this.#channels.values()].filter((one) => !one.server);
    this.#send(hello, ...own.map((one) => this.#subscribeCommand(one)));
  }

  #connected(result) {
    this.#attempt = 0;
    this.#pong = result.pong === true;
    this.#silenceMs = result.ping > 0 ? result.ping * 1000 + PING_GRACE_MS : 0;
    this.#watchSilence(this.#silenceMs);
    this.#become("connected", { client: result.client });
    this.#takeServerChannels(result.subs ?? {});
    for (const { command, timer, resolve, reject } of this.#waiting.splice(0)) {
      clearTimeout(timer);
      this.#call(command, resolve, reject);
    }
  }

  #refused(error) {
    // A connect error that is not temporary is final: the same token would be refused again.
    if (error.temporary || error.code === 0) {
      this.#socket?.close();
      return;
    }
    this.#become("closed", { code: 3500, reason: error.message, error, expired: error.code === TOKEN_EXPIRED });
    this.#drop(error);
  }

  #ended({ code, reason }) {
    clearTimeout(this.#silenceTimer);
    this.#socket = null;
    this.#failCalls(new LiveError(0, "the connection was lost", true));
    if (this.#state === "closed") return;
    if (!mayReconnect(code)) {
      this.#become("closed", { code, reason });
      this.#failWaiting(new LiveError(0, reason || "the server ended the connection"));
      return;
    }
    const delay = reconnectDelayMs(this.#attempt);
    this.#attempt += 1;
    this.#become("waiting", { code, reason, delay });
    this.#reconnectTimer = setTimeout(() => this.#open(), delay);
  }

  #hurry() {
    if (this.#state !== "waiting") return;
    clearTimeout(this.#reconnectTimer);
    this.#open();
  }

  #drop(error) {
    clearTimeout(this.#silenceTimer);
    this.#failCalls(error);
    this.#failWaiting(error);
    const socket = this.#socket;
    this.#socket = null;
    socket?.close();
  }

  #watchSilence(ms) {
    clearTimeout(this.#silenceTimer);
    if (ms > 0) this.#silenceTimer = setTimeout(() => this.#lost("no ping"), ms);
  }

  /** The network may swallow a close: give the socket up and go on as if it had closed. */
  #lost(reason) {
    const socket = this.#socket;
    this.#ended({ code: 1006, reason });
    socket?.close();
  }

  #become(state, detail = {}) {
    this.#state = state;
    this.#emit("state", { state, ...detail });
  }

  // --- frames ----------------------------------------------------------------------------------------------------------------------

  /** Several messages may share a frame, one a line. */
  #receive(text) {
    for (const line of text.split("\n")) {
      if (line) this.#take(JSON.parse(line));
    }
  }

  #take(message) {
    if (message.push) {
      this.#takePush(message.push);
    } else if (message.id) {
      this.#takeReply(message);
    } else {
      if (this.#pong) this.#send({}); // the empty object: a ping
      this.#watchSilence(this.#silenceMs);
    }
  }

  #takeReply(reply) {
    const call = this.#calls.get(reply.id);
    if (!call) return; // answered after its timeout
    this.#calls.delete(reply.id);
    clearTimeout(call.timer);
    if (reply.error) call.reject(new LiveError(reply.error.code, reply.error.message, reply.error.temporary === true));
    else call.resolve(reply);
  }

  #takePush(push) {
    const subscription = this.#channels.get(push.channel);
    if (push.pub) {
      if (subscription) this.#publish(subscription, push.pub);
    } else if (push.disconnect) {
      this.#disconnect = push.disconnect;
    } else if (push.subscribe) {
      this.#takeServerChannels({ ...this.#serverChannels(), [push.channel]: push.subscribe });
    } else if (push.unsubscribe && subscription) {
      this.#unsubscribed(subscription, push.unsubscribe);
    }
  }

  #publish(subscription, publication) {
    if (publication.offset) subscription.offset = publication.offset;
    if (subscription.server) this.#emit("event", { channel: subscription.channel, event: publication.data });
    else subscription.onEvent?.(publication.data);
  }

  #send(...commands) {
    if (this.#socket?.readyState === WebSocket.OPEN)
      this.#socket.send(commands.map((one) => JSON.stringify(one)).join("\n"));
  }

  #call(command, resolve, reject) {
    this.#send({ ...this.#prepare(resolve, reject), ...command });
  }

  /** Numbers a command and remembers who waits for its answer. */
  #prepare(resolve, reject) {
    this.#nextId += 1;
    const id = this.#nextId;
    const timer = setTimeout(() => {
      this.#calls.delete(id);
      reject(new LiveError(0, "no answer in time", true));
    }, COMMAND_TIMEOUT_MS);
    this.#calls.set(id, { resolve, reject, timer });
    return { id };
  }

  // --- channels --------------------------------------------------------------------------------------------------------------------

  #subscribeCommand(subscription) {
    const subscribe = { channel: subscription.channel };
    if (subscription.recover)
      Object.assign(subscribe, { recover: true, epoch: subscription.epoch, offset: subscription.offset });
    const pending = this.#prepare(
      (reply) => this.#subscribed(subscription, reply.subscribe ?? {}),
      (error) => this.#subscribeFailed(subscription, error),
    );
    return { ...pending, subscribe };
  }

  #subscribed(subscription, result) {
    const wasRecovering = subscription.recover;
    const recovered = wasRecovering && result.recovered === true;
    subscription.recover = result.recoverable === true;
    subscription.epoch = result.epoch ?? "";
    if (!recovered) subscription.offset = result.offset ?? 0;
    const answer = { snapshot: result.data, recovered, wasRecovering, channel: subscription.channel };
    if (subscription.server) this.#emit("server-subscribed", answer);
    else subscription.onSubscribed?.(answer);
    for (const publication of result.publications ?? []) this.#publish(subscription, publication);
    if (result.offset > subscription.offset) subscription.offset = result.offset;
  }

  #subscribeFailed(subscription, error) {
    if (error.temporary && this.#channels.get(subscription.channel) === subscription) {
      setTimeout(() => this.#retrySubscribe(subscription), RESUBSCRIBE_MS + Math.random() * RESUBSCRIBE_MS);
    } else if (!error.temporary) {
      this.#channels.delete(subscription.channel);
      subscription.onEnded?.(error);
    }
  }

  #retrySubscribe(subscription) {
    if (this.#state === "connected" && this.#channels.get(subscription.channel) === subscription) {
      this.#send(this.#subscribeCommand(subscription));
    }
  }

  /** The server's own list is the truth: a channel that is missing from it is over. */
  #takeServerChannels(subs) {
    for (const [channel, result] of Object.entries(subs)) {
      const known = this.#channels.get(channel);
      const subscription = known ?? { channel, server: true, epoch: "", offset: 0, recover: false };
      this.#channels.set(channel, subscription);
      if (result !== subscription) this.#subscribed(subscription, result);
    }
    for (const { channel, server } of [...this.#channels.values()]) {
      if (server && !(channel in subs)) this.#channels.delete(channel);
    }
  }

  #serverChannels() {
    return Object.fromEntries(
      [...this.#channels.values()].filter((one) => one.server).map((one) => [one.channel, one]),
    );
  }

  #unsubscribed(subscription, { code, reason }) {
    if (code >= 2500) {
      this.#retrySubscribe(subscription);
    } else {
      this.#channels.delete(subscription.channel);
      subscription.onEnded?.(new LiveError(code, reason));
    }
  }

  #unsubscribe(channel) {
    if (!this.#channels.delete(channel) || this.#state !== "connected") return;
    this.#call(
      { unsubscribe: { channel } },
      () => {},
      () => {},
    );
  }

  /** A call that was never sent must not be sent later, when its caller has long been told that it failed. */
  #giveUp(call) {
    this.#waiting = this.#waiting.filter((other) => other !== call);
    call.reject(new LiveError(0, "not connected", true));
  }

  // --- small things ----------------------------------------------------------------------------------------------------------------

  #failCalls(error) {
    for (const [id, call] of [...this.#calls]) {
      this.#calls.delete(id);
      clearTimeout(call.timer);
      call.reject(error);
    }
  }

  #failWaiting(error) {
    for (const { timer, reject } of this.#waiting.splice(0)) {
      clearTimeout(timer);
      reject(error);
    }
  }

  #emit(name, value) {
    for (const listener of this.#listeners.get(name) ?? []) listener(value);
  }
}
