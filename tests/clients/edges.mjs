// What the TypeScript client does where a server, or the network, does not do as it should. Run by test_typescript.py.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { after, before, beforeEach, test } from "node:test";

import { APIError, Client, Conflict, ConnectionFailed, ServerError } from "../../clients/typescript/dist/index.js";

let server, baseUrl, asked, answers;

before(async () => {
  server = createServer((request, response) => {
    let body = "";
    request.setEncoding("utf8").on("data", (piece) => (body += piece)).on("end", () => {
      asked.push({ method: request.method, url: request.url, headers: request.headers, body });
      const answer = answers.length > 1 ? answers.shift() : answers[0];
      answer(response, request);
    });
  });
  await new Promise((done) => server.listen(0, "127.0.0.1", done));
  baseUrl = `http://127.0.0.1:${server.address().port}`;
});

after(() => (server.closeAllConnections(), new Promise((done) => server.close(done))));

beforeEach(() => ([asked, answers] = [[], []]));

const client = (more = {}) => new Client({ baseUrl, apiKey: "cak_test", ...more });

const json = (value, status = 200, headers = {}) => (response) => {
  response.writeHead(status, { "Content-Type": "application/json", ...headers });
  response.end(JSON.stringify(value));
};
const refusal = (status, code, headers) =>
  json({ error: { code, message: "No.", details: {} }, request_id: "r" }, status, headers);
const cut = (response) => response.destroy();

const RUN = "11111111-1111-4111-8111-111111111111";
const data = (seq, more) => ({ session_id: "s", run_id: RUN, seq, created_at: "2026-01-31T12:00:00.000Z", ...more });
const frame = (id, event, more = {}) =>
  `id: ${id}\nevent: ${event}\ndata: ${JSON.stringify(data(Number(id.split("-")[0]), more))}\n\n`;
const partial = (id, text, more = {}) =>
  frame(id, "partial", { index: 0, delta: { type: "text", text }, parent_tool_use_id: null, ...more });
const message = (id, text) =>
  frame(id, "message", { role: "assistant", content: [{ type: "text", text }], parent_tool_use_id: null, uuid: null });
const END = frame("8", "result", { status: "succeeded", result: "all" }) + frame("9", "done", { status: "succeeded" });

const STREAM = { "Content-Type": "text/event-stream", "X-Session-ID": "s", "X-Run-ID": RUN };

/** A stream that is cut after this text, unless `whole`. */
const stream = (text, { whole = false } = {}) => (response) => {
  response.writeHead(200, STREAM);
  response.write(text, () => (whole ? response.end() : setImmediate(() => response.destroy())));
};

const all = async (items) => {
  const found = [];
  for await (const item of items) found.push(item);
  return found;
};
const positions = () => asked.map(({ headers }) => headers["last-event-id"]);

test("an event that is cut in its middle comes once, from the next connection", async () => {
  const half = frame("2", "status", { status: "compacting" }).slice(0, -5);
  answers = [stream(frame("1", "init") + half), stream(frame("2", "status") + END, { whole: true })];
  const events = await all(client().runs.events(RUN));
  assert.deepEqual(events.map(({ id }) => id), ["1", "2", "8", "9"]);
  assert.deepEqual(positions(), [undefined, "1"]);
});

test("letters, lines and comments may be cut anywhere, and lines end as they like", async () => {
  const first = partial("1-1", "Grüße 🦊").replaceAll("\n", "\r\n");
  const text = `: connected\r\n\r\n${first}: keep-alive\n\nretry: 5\n\n${END}`;
  answers = [
    async (response) => {
      response.writeHead(200, { "Content-Type": "text/event-stream" });
      for (const byte of Buffer.from(text)) {
        response.write(Buffer.of(byte));
        await new Promise(setImmediate);
      }
      response.end();
    },
  ];
  const [letters, ...others] = await all(client().runs.events(RUN));
  assert.equal(letters.data.delta.text, "Grüße 🦊");
  assert.equal(others.length, 2);
});

test("an event of many megabytes is read in one go", async () => {
  const text = "x".repeat(24 * 1024 * 1024);
  answers = [stream(message("1", text) + END, { whole: true })];
  const [first] = await all(client().runs.events(RUN));
  assert.equal(first.data.content[0].text.length, text.length);
});

test("a stream ends with 204, with done, and with an error that has no id", async () => {
  answers = [stream(frame("1", "init")), (response) => response.writeHead(204).end()];
  assert.equal((await all(client().sessions.events("s", { until: "idle" }))).length, 1);
  answers = [stream(END)];
  assert.equal((await all(client().runs.events(RUN))).length, 2);
  const gone = data(4, { code: "session_deleted", message: "Gone.", retryable: false });
  answers = [json({ session_id: "s", run_id: RUN }), stream(`event: error\ndata: ${JSON.stringify(gone)}\n\n`)];
  const turn = await client().runs.follow(RUN);
  await assert.rejects(turn.result(), (error) => error instanceof Conflict && error.code === "session_deleted");
});

test("a stream without a connection gives up after its time, and at once where nothing helps", async () => {
  answers = [cut];
  await assert.rejects(all(client({ maxRetrySeconds: 1 }).runs.events(RUN)), ConnectionFailed);
  assert.ok(asked.length > 1);
  answers = [refusal(404, "run_not_found")];
  await assert.rejects(all(client().runs.events(RUN)), (error) => error.code === "run_not_found");
});

test("a signal ends a stream, a pause between attempts, and what has not begun", async () => {
  const stop = new AbortController();
  answers = [(response) => response.writeHead(200).write(frame("1", "init"))];
  await assert.rejects(
    (async () => {
      for await (const _ of client().runs.events(RUN, { signal: stop.signal })) stop.abort(new Error("enough"));
    })(),
    /enough/,
  );
  answers = [
    (response) => {
      refusal(503, "dependency_unavailable", { "Retry-After": "60" })(response);
      setImmediate(() => again.abort(new Error("no patience")));
    },
  ];
  const again = new AbortController();
  await assert.rejects(client().sessions.get("s", { signal: again.signal }), /no patience/);
  const before = asked.length;
  await assert.rejects(client().sessions.get("s", { signal: AbortSignal.abort(new Error("never")) }), /never/);
  assert.equal(asked.length, before);
});

test("a server that is silent is not waited for, before its answer and in it", async () => {
  const quick = client({ timeout: 50, maxRetries: 1 });
  answers = [() => undefined];
  await assert.rejects(quick.sessions.get("s"), ConnectionFailed);
  answers = [(response) => response.writeHead(200).write("{")];
  await assert.rejects(quick.sessions.get("s"), ConnectionFailed);
  assert.equal(asked.length, 4);
});

test("attempts have an end", async () => {
  answers = [refusal(503, "dependency_unavailable")];
  await assert.rejects(client({ maxRetries: 2, maxRetrySeconds: 30 }).sessions.get("s"), ServerError);
  assert.equal(asked.length, 3);
});

test("what would happen twice is sent once, and what makes something has one key", async () => {
  answers = [cut];
  const once = client({ maxRetries: 1 });
  await assert.rejects(once.keys.create({ tenant: "t", name: "n" }), ConnectionFailed);
  assert.equal(asked.length, 1);
  await assert.rejects(once.sessions.interrupt("s"), ConnectionFailed);
  assert.equal(asked.length, 2);
  await assert.rejects(once.sessions.interrupt("s", RUN), ConnectionFailed);
  assert.equal(asked.length, 4);
  await assert.rejects(once.sessions.create(), ConnectionFailed);
  const [one, two] = asked.slice(4).map(({ headers }) => headers["idempotency-key"]);
  assert.ok(one && one === two);
  await assert.rejects(once.files.put("s", "a", new Blob(["x"]).stream()), ConnectionFailed);
  assert.equal(asked.length, 7);
  await assert.rejects(once.files.put("s", "a", "x", { ifMatch: '"1"' }), ConnectionFailed);
  assert.equal(asked.length, 8);
});

test("a POST that was refused for a limit was not begun, and is sent again", async () => {
  answers = [refusal(429, "rate_limited", { "Retry-After": "0" }), json({ key_id: "k" })];
  assert.equal((await client().keys.create({ tenant: "t", name: "n" })).key_id, "k");
  answers = [refusal(429, "quota_exceeded")];
  await assert.rejects(client().keys.create({ tenant: "t", name: "n" }), (error) => !error.retryable);
});

test("what has gone through a proxy that forgets the position comes once", async () => {
  const begun = frame("1", "init") + partial("1-1", "a");
  answers = [stream(begun), stream(begun + partial("1-2", "b") + END, { whole: true })];
  const ids = (await all(client().runs.events(RUN))).map(({ id }) => id);
  assert.deepEqual(ids, ["1", "1-1", "1-2", "8", "9"]);
});

test("what an attempt before has removed is removed", async () => {
  answers = [cut, refusal(404, "webhook_not_found")];
  await client().webhooks.delete("w");
  answers = [refusal(404, "webhook_not_found")];
  await assert.rejects(client().webhooks.delete("w"), APIError);
});

test("no name leads to another path, and the key goes nowhere else", async () => {
  answers = [json({})];
  await client().files.get("s", "a b/ü?#%.txt");
  assert.equal(asked[0].url, "/api/v1/sessions/s/files/a%20b/%C3%BC%3F%23%25.txt");
  for (const name of ["..", "a/../b", "a//b", "."]) assert.throws(() => client().files.get("s", name), TypeError);
  assert.throws(() => client().sessions.get(".."), TypeError);
  answers = [(response) => response.writeHead(307, { Location: `${baseUrl}/elsewhere` }).end()];
  await assert.rejects(client().sessions.get("s"), (error) => error instanceof APIError && error.status === 307);
  assert.equal(asked.length, 2);
});

test("text comes once: by deltas, and what was missed of them with its message", async () => {
  const subagents = partial("1-2", "not this", { parent_tool_use_id: "t" });
  answers = [
    json({ session_id: "s", run_id: RUN }),
    stream(partial("1-1", "one ") + subagents + partial("1-3", "two ")),
    stream(partial("1-5", "four ") + message("2", "one two three four five")),
    stream(partial("2-1", "six") + message("3", "six") + END),
  ];
  const turn = await client().runs.follow(RUN);
  assert.deepEqual(await all(turn.text()), ["one ", "two ", "three four five", "six"]);
  assert.equal((await turn.result()).result, "all");
});

test("a turn that nobody reads lets its connection go, and can be read later", async () => {
  let left;
  const gone = new Promise((done) => (left = done));
  answers = [
    (response, request) => {
      response.writeHead(200, STREAM).write(frame("1", "init"));
      request.socket.on("close", left);
    },
    stream(frame("1", "init") + END, { whole: true }),
  ];
  const turn = await client().prompt("x");
  await gone;
  assert.equal((await all(turn)).length, 3);
});

test("a list that does not go on ends", async () => {
  answers = [json({ data: [1], next_cursor: "c" })];
  await assert.rejects(client().sessions.list().toArray(), /does not go on/);
  assert.equal((await client().sessions.list().toArray(1)).length, 1);
});
