// Viewers of the JavaScript SDK, driven by the test: one JSON command a line in, answers and events out, in the order they happened.
// What is asserted is in the tests; here is only the SDK and what it says.
//
//   in   {"call": 1, "viewer": "a", "do": "rpc", "args": {...}}
//   out  {"call": 1, "value": ...} | {"call": 1, "error": {"code": 1, "message": "", "temporary": false}}
//        {"viewer": "a", "channel": "room:1" | "", "event": "publication", "value": ...}

import { createInterface } from 'node:readline';

import { Centrifuge } from 'centrifuge';
import { Centrifuge as CentrifugeProtobuf } from 'centrifuge/build/protobuf';

const viewers = new Map();

const say = (message) => process.stdout.write(JSON.stringify(message) + '\n');
const errorOf = (error) => ({
  code: error.code ?? 0,
  message: String(error.message ?? error),
  temporary: error.temporary ?? false,
});

class Viewer {
  constructor(name, { url, codec, token, tokens, timeout }) {
    this.name = name;
    this.isProtobuf = codec === 'protobuf';
    const Client = this.isProtobuf ? CentrifugeProtobuf : Centrifuge;
    const getToken = async () => {
      this.tell('', 'token_fetched', tokens.length);
      return tokens.length > 1 ? tokens.shift() : tokens[0];
    };
    this.client = new Client(url, {
      token,
      getToken: tokens.length ? getToken : null,
      minReconnectDelay: 10,
      maxReconnectDelay: 100,
      timeout,
    });
    this.listen(this.client, (ctx) => ctx.channel ?? '');
  }

  tell(channel, event, value) {
    say({ viewer: this.name, channel, event, value });
  }

  listen(emitter, channelOf) {
    const told = {
      connecting: (ctx) => ctx.code,
      connected: (ctx) => ctx.client,
      disconnected: (ctx) => [ctx.code, ctx.reason],
      subscribed: (ctx) => ({
        recoverable: ctx.recoverable,
        was_recovering: ctx.wasRecovering,
        recovered: ctx.recovered,
        data: this.parsed(ctx.data),
        offset: ctx.streamPosition?.offset ?? null,
        epoch: ctx.streamPosition?.epoch ?? null,
      }),
      unsubscribed: (ctx) => ctx.code ?? null,
      publication: (ctx) => [ctx.offset ?? 0, this.parsed(ctx.data)],
      error: (ctx) => ctx.error.code,
    };
    for (const [event, value] of Object.entries(told)) {
      emitter.on(event, (ctx) => this.tell(channelOf(ctx), event, value(ctx)));
    }
  }

  parsed(data) {
    if (data === undefined || data === null) return null;
    if (!this.isProtobuf) return data;
    return data.length ? JSON.parse(new TextDecoder().decode(data)) : null;
  }

  packed(data) {
    return this.isProtobuf ? new TextEncoder().encode(JSON.stringify(data)) : data;
  }

  subscribe({ channel }) {
    let subscription = this.client.getSubscription(channel);
    if (!subscription) {
      subscription = this.client.newSubscription(channel, { minResubscribeDelay: 10, maxResubscribeDelay: 100 });
      this.listen(subscription, () => channel);
    }
    subscription.subscribe();
  }

  unsubscribe({ channel }) {
    this.client.getSubscription(channel).unsubscribe();
  }

  connect() {
    this.client.connect();
  }

  disconnect() {
    this.client.disconnect();
  }

  async rpc({ method, data }) {
    return this.parsed((await this.client.rpc(method, this.packed(data))).data);
  }

  async history({ channel, limit }) {
    const result = await this.client.getSubscription(channel).history({ limit });
    return { offset: result.offset, offsets: result.publications.map((publication) => publication.offset) };
  }

  async count({ channel }) {
    const result = await this.client.getSubscription(channel).presenceStats();
    return [result.numClients, result.numUsers];
  }

  state() {
    return this.client.state;
  }
}

createInterface({ input: process.stdin }).on('line', async (line) => {
  const { call, viewer, do: action, args } = JSON.parse(line);
  try {
    if (action === 'make') viewers.set(viewer, new Viewer(viewer, args));
    else say({ call, value: (await viewers.get(viewer)[action](args)) ?? null });
  } catch (error) {
    say({ call, error: errorOf(error) });
  }
}).on('close', () => process.exit(0));
