// The public API, and nothing else: requests, errors, repeats, pages, event streams, downloads.

import { SERVER } from "./router.js";

const TRIES = 3;
const PATIENCE_MS = 60_000;
const SILENCE_MS = 40_000; // the server breaks a silence every 15 s
const LONGEST_WAIT_MS = 5_000;

let key = null; // here and nowhere else: no storage, no cookie, no URL

const leaving = { told: () => {} };

/** Use this key from now on; null forgets it. */
export function useKey(given) {
  key = given;
}

/** What to do when the server does not know the key any more. */
export function onRefused(tell) {
  leaving.told = tell;
}

/** An answer that is an error, or none at all: `status` is 0 then. */
export class ApiError extends Error {
  constructor(status, { code, message, details = {}, requestId = "", retryAfter = 0 }) {
    super(message);
    Object.assign(this, { status, code, details, requestId, retryAfter });
  }
}

const pause = (ms, signal) =>
  new Promise((done, fail) => {
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", () => {
      clearTimeout(timer);
      fail(signal.reason);
    }, { once: true });
  });

/** Milliseconds before another try: more each time, and not the same for everybody. */
const backoff = (failures) => Math.min(250 * 2 ** failures, LONGEST_WAIT_MS) * (0.75 + Math.random() / 2);

function address(path, query = {}) {
  const url = new URL(`api/v1${path}`, SERVER);
  for (const [name, value] of Object.entries(query)) {
    if (value !== undefined && value !== null && value !== "") url.searchParams.set(name, value);
  }
  return url;
}

// A browser would take them out, and ask for something else than was meant: names come from links, and from agents.
const DOTS = /(?:^|\/)(?:\.|%2e){1,2}(?:\/|$)/i;

async function ask(method, path, { query, body, headers, signal } = {}) {
  if (DOTS.test(path)) throw new ApiError(400, { code: "invalid_path", message: "A path has no . and no .. in it." });
  const raw = body === undefined || body instanceof Blob;
  let response;
  try {
    response = await fetch(address(path, query), {
      method,
      signal,
      body: raw ? body : JSON.stringify(body),
      headers: {
        ...(key ? { "X-API-Key": key } : {}),
        ...(body === undefined ? {} : { "Content-Type": raw ? "application/octet-stream" : "application/json" }),
        ...headers,
      },
      credentials: "omit",
      cache: "no-store",
      redirect: "error",
      referrerPolicy: "no-referrer",
    });
  } catch (error) {
    if (signal?.aborted && signal.reason?.name !== "TimeoutError") throw signal.reason;
    throw new ApiError(0, { code: "no_answer", message: "The server cannot be reached." });
  }
  if (response.ok) return response;
  const error = await refusal(response);
  if (error.status === 401) leaving.told(error);
  throw error;
}

async function refusal(response) {
  const text = await response.text().catch(() => "");
  const facts = {
    requestId: response.headers.get("X-Request-ID") ?? "",
    retryAfter: Number(response.headers.get("Retry-After")) || 0,
  };
  try {
    const { error } = JSON.parse(text);
    return new ApiError(response.status, { ...facts, code: error.code, message: error.message, details: error.details });
  } catch {
    // Whoever answered is in between: a proxy, for example.
    const message = text.trim().slice(0, 300) || response.statusText || "The answer has no text.";
    return new ApiError(response.status, { ...facts, code: `http_${response.status}`, message });
  }
}

const passing = (error) => error instanceof ApiError && [0, 502, 503, 504].includes(error.status);

/**
 * One request. What can be repeated without harm is: GET, and whatever has an Idempotency-Key.
 *
 * @param more.once true: with an Idempotency-Key, so that it happens once however often it is sent.
 * @param more.patient true: as long as it takes, for files.
 */
async function request(method, path, { once = false, patient = false, signal, headers, ...more } = {}) {
  const repeats = method === "GET" || once;
  const all = { ...headers, ...(once ? { "Idempotency-Key": crypto.randomUUID?.() ?? `console-${Date.now()}-${Math.random()}` } : {}) };
  for (let failures = 0; ; failures++) {
    const limit = patient ? [] : [AbortSignal.timeout(PATIENCE_MS)];
    const signals = signal ? [signal, ...limit] : limit;
    try {
      return await ask(method, path, { ...more, headers: all, signal: signals.length ? AbortSignal.any(signals) : undefined });
    } catch (error) {
      if (!repeats || !passing(error) || failures + 1 >= TRIES) throw error;
      await pause(Math.min(error.retryAfter * 1000, LONGEST_WAIT_MS) || backoff(failures), signal);
    }
  }
}

/** The JSON of an answer; null where it has none. */
export async function call(method, path, more) {
  const response = await request(method, path, { ...more, headers: { Accept: "application/json", ...more?.headers } });
  return response.status === 204 ? null : response.json();
}

export const get = (path, query, signal) => call("GET", path, { query, signal });
export const post = (path, body, more) => call("POST", path, { body, ...more });

/** Rows of a list from all of its pages, `most` at most. */
export async function all(path, query, { signal, most = 1000 } = {}) {
  const rows = [];
  let cursor;
  do {
    const page = await get(path, { ...query, cursor }, signal);
    rows.push(...page.data);
    cursor = page.next_cursor;
  } while (cursor && rows.length < most);
  return rows;
}

/** A path with its parts made safe: path`/sessions/${id}`. */
export function path(texts, ...values) {
  return texts.reduce((whole, text, i) => whole + encodeURIComponent(values[i - 1]) + text);
}

/** The path of a file in a workspace. */
export function filePath(session, name) {
  return path`/sessions/${session}/files/` + name.split("/").map(encodeURIComponent).join("/");
}

/** A file, or its first bytes. */
export async function blob(path, { query, first, signal } = {}) {
  const headers = first ? { Range: `bytes=0-${first - 1}` } : {};
  return (await request("GET", path, { query, headers, signal, patient: true })).blob();
}

export const upload = (path, file) => call("PUT", path, { body: file, patient: true });

/** Have the browser save what a path answers. */
export async function download(path, name, query) {
  save(await blob(path, { query }), name);
}

export function save(content, name) {
  const url = URL.createObjectURL(content);
  Object.assign(document.createElement("a"), { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

/** Server-sent events of a response, as { id, event, data }; `heard` is called for whatever comes, comments too. */
async function* frames(response, heard) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let frame = { id: "", event: "", data: [] };
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line) {
        const [, name, text] = /^([^:]*)(?:: ?(.*))?$/s.exec(line);
        if (name === "data") frame.data.push(text ?? "");
        else if (name) frame[name] = text ?? "";
      } else {
        if (frame.data.length) yield { ...frame, data: JSON.parse(frame.data.join("\n")) };
        frame = { id: "", event: "", data: [] };
      }
    }
  }
}

/**
 * Follow a stream for as long as `signal` lets it: whenever it is cut it is asked for again, from the last position that
 * was seen, of whichever instance answers.
 *
 * @param after the position to begin after; "" is the beginning.
 * @param take is given each event, once.
 * @param tell is given the state: "live", or the error that it is to be tried again after.
 * @throws ApiError when it will not get better by itself.
 */
export async function follow(path, { query, after = "", take, tell, signal }) {
  let last = after;
  for (let failures = 0; ; failures++) {
    const connection = new AbortController();
    const end = () => connection.abort(signal.reason);
    signal.addEventListener("abort", end, { once: true });
    let timer;
    const heard = () => {
      clearTimeout(timer);
      timer = setTimeout(() => connection.abort(new DOMException("silence", "TimeoutError")), SILENCE_MS);
    };
    let wait = 0;
    try {
      heard();
      const headers = { Accept: "text/event-stream", ...(last ? { "Last-Event-ID": last } : {}) };
      const response = await ask("GET", path, { query, headers, signal: connection.signal });
      if (response.status === 204) return; // nothing is left, and nothing will come
      tell("live");
      for await (const frame of frames(response, heard)) {
        failures = 0;
        if (frame.id) last = frame.id;
        take(frame);
      }
    } catch (error) {
      if (signal.aborted) return;
      const fatal = error instanceof ApiError && error.status >= 400 && error.status < 500 && ![408, 429].includes(error.status);
      if (fatal) throw error;
      wait = error.retryAfter * 1000 || 0;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", end);
    }
    if (signal.aborted) return;
    tell("cut");
    try {
      await pause(Math.max(wait, backoff(failures)), signal);
    } catch {
      return;
    }
  }
}
