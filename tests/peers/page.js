// What with_chromium.py calls in the browser, as the functions of one object.

"use strict";

const ends = [];

// A call waits no longer than this for something to happen, since others wait for its end.
const PATIENCE = 500;

class End {
  constructor(ws) {
    this.ws = ws;
    this.messages = [];
    this.closed = null;
    this.wakers = [];
    ws.binaryType = "arraybuffer";
    ws.onopen = () => this.wake();
    ws.onmessage = ({ data }) => {
      this.messages.push(encode(data));
      this.wake();
    };
    ws.onclose = ({ code, reason }) => {
      this.closed = { code, reason };
      this.wake();
    };
  }

  wake() {
    for (const waker of this.wakers.splice(0)) waker();
  }

  news() {
    return new Promise((resolve) => {
      this.wakers.push(resolve);
      setTimeout(resolve, PATIENCE);
    });
  }
}

function encode(data) {
  return typeof data === "string" ? { text: data } : { binary: new Uint8Array(data).toBase64() };
}

window.peer = {
  async connect(url, subprotocols) {
    const end = new End(new WebSocket(url, subprotocols));
    while (end.ws.readyState === WebSocket.CONNECTING) await end.news();
    // What it was turned away with, a page is not told: only a close code.
    if (end.closed) return { refused: end.closed.code };
    return { id: ends.push(end) - 1, subprotocol: end.ws.protocol };
  },

  send(id, { text, binary }) {
    ends[id].ws.send(text ?? Uint8Array.fromBase64(binary));
  },

  async receive(id) {
    const end = ends[id];
    if (!end.messages.length && !end.closed) await end.news();
    const message = end.messages.shift() ?? null;
    return { message, over: message === null && end.closed !== null };
  },

  close(id, code, reason) {
    if (code === null) ends[id].ws.close();
    else ends[id].ws.close(code, reason);
  },

  async closed(id) {
    const end = ends[id];
    if (!end.closed) await end.news();
    return end.closed;
  },
};
