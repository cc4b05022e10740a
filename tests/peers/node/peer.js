// Does with ws what with_ws.py asks: each line of stdin is a request, each of stdout its answer.

"use strict";

const http = require("node:http");
const https = require("node:https");
const readline = require("node:readline");
const { WebSocket, WebSocketServer } = require("ws");

const decode = ({ text, binary }) => text ?? Buffer.from(binary, "base64");
const encode = (data, isBinary) =>
  isBinary ? { binary: data.toString("base64") } : { text: data.toString() };

class End {
  constructor(ws) {
    this.ws = ws;
    this.messages = [];
    this.pings = [];
    this.pongs = [];
    this.isOver = false;
    this.wakers = [];
    const collect = (list, item) => {
      list.push(item);
      this.wake();
    };
    ws.on("message", (data, isBinary) => collect(this.messages, encode(data, isBinary)));
    ws.on("ping", (payload) => collect(this.pings, payload.toString("base64")));
    ws.on("pong", (payload) => collect(this.pongs, payload.toString("base64")));
    // An error without a listener ends the process; what comes of it, the close event tells.
    ws.on("error", () => {});
    this.over = new Promise((resolve) => {
      ws.on("close", (code, reason) => {
        this.isOver = true;
        this.wake();
        resolve({ code, reason: reason.toString() });
      });
    });
  }

  wake() {
    for (const waker of this.wakers.splice(0)) waker();
  }

  async until(condition) {
    while (!condition()) {
      if (this.isOver) throw new Error("the connection has ended");
      await new Promise((resolve) => this.wakers.push(resolve));
    }
  }

  send({ pieces }) {
    const sent = pieces.map(
      (piece, index) =>
        new Promise((resolve, reject) => {
          const fin = index === pieces.length - 1;
          this.ws.send(decode(piece), { fin }, (error) => (error ? reject(error) : resolve()));
        }),
    );
    return Promise.all(sent);
  }

  async receive() {
    await this.until(() => this.messages.length);
    return { message: this.messages.shift(), pings: this.pings.splice(0) };
  }

  async ping({ payload }) {
    this.ws.ping(Buffer.from(payload, "base64"));
    await this.until(() => this.pongs.includes(payload));
  }

  async close({ code, reason }) {
    if (code === null) this.ws.close();
    else this.ws.close(code, reason);
    await this.over;
  }

  closed() {
    return this.over;
  }

  drop() {
    this.ws.terminate();
  }
}

class Server {
  constructor(options, header) {
    const { headers, subprotocols, tls, reject } = options;
    this.http = tls
      ? https.createServer({ cert: tls.certificate, key: tls.key })
      : http.createServer();
    this.ws = new WebSocketServer({
      server: this.http,
      perMessageDeflate: perMessageDeflate(options.compression),
      maxPayload: options.max_size,
      handleProtocols: (offered) => subprotocols.find((name) => offered.has(name)) ?? false,
      verifyClient: (info, decide) => {
        if (reject) decide(false, reject.status, reject.body, Object.fromEntries(reject.headers));
        else decide(true);
      },
    });
    this.ws.on("headers", (lines) => {
      for (const [name, value] of headers) lines.push(`${name}: ${value}`);
    });
    this.accepted = new Promise((resolve) => {
      this.ws.on("connection", (ws, request) => {
        resolve(add(new End(ws), ws, request.headers[header], request.url));
      });
    });
  }

  listen() {
    return new Promise((resolve, reject) => {
      this.ws.on("error", reject);
      this.http.listen(0, "127.0.0.1", () => {
        objects.push(this);
        resolve({ id: objects.length - 1, port: this.http.address().port });
      });
    });
  }

  accept() {
    return this.accepted;
  }

  stop() {
    for (const ws of this.ws.clients) ws.terminate();
    return new Promise((resolve) => {
      this.http.close(resolve);
      this.http.closeAllConnections();
    });
  }
}

// The ends and servers, by the id that requests name them with.
const objects = [];

function add(end, ws, header = null, target = null) {
  objects.push(end);
  return { id: objects.length - 1, subprotocol: ws.protocol, header, target };
}

function perMessageDeflate(compression) {
  if (!compression) return false;
  const { server_max_window_bits: server, client_max_window_bits: client } = compression;
  // What is undefined is allowed, but not asked for; what is false is refused.
  return {
    serverNoContextTakeover: compression.server_no_context_takeover || undefined,
    clientNoContextTakeover: compression.client_no_context_takeover || undefined,
    serverMaxWindowBits: server < 15 ? server : undefined,
    clientMaxWindowBits: client < 15 ? client : undefined,
    threshold: compression.threshold,
  };
}

async function refusal(response) {
  const chunks = [];
  for await (const chunk of response) chunks.push(chunk);
  const { statusCode, rawHeaders } = response;
  const headers = [];
  for (let at = 0; at < rawHeaders.length; at += 2) headers.push(rawHeaders.slice(at, at + 2));
  return { status: statusCode, headers, body: Buffer.concat(chunks).toString("base64") };
}

function connect({ url, header, options }) {
  return new Promise((resolve, reject) => {
    const ws = new WebSocket(url, options.subprotocols, {
      headers: Object.fromEntries(options.headers),
      perMessageDeflate: perMessageDeflate(options.compression),
      maxPayload: options.max_size,
      ca: options.tls?.authority,
      // Where localhost is ::1 first, older versions of Node.js try nothing else.
      family: 4,
    });
    // It may have messages before the answer has been read.
    const end = new End(ws);
    let headers;
    ws.on("upgrade", (response) => (headers = response.headers));
    ws.on("open", () => resolve(add(end, ws, headers[header])));
    ws.on("unexpected-response", (request, response) =>
      refusal(response).then((refused) => resolve({ refused }), reject),
    );
    ws.on("error", (error) => {
      // Those of the network have a code; the others say that the answer does not suit.
      if (error.code) reject(error);
      else resolve({ refused: null });
    });
  });
}

const functions = { connect, serve: ({ header, options }) => new Server(options, header).listen() };

async function answer({ request, name, id, ...rest }) {
  try {
    const result = await (id === undefined ? functions[name](rest) : objects[id][name](rest));
    return { request, result: result ?? null };
  } catch (error) {
    return { request, error: error.stack };
  }
}

const requests = readline.createInterface({ input: process.stdin });
requests.on("line", async (line) => console.log(JSON.stringify(await answer(JSON.parse(line)))));
requests.on("close", () => process.exit());
