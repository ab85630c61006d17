import { APIError, ConnectionFailed, parsed, refusalOf, wasNotBegun } from "./errors.js";
import type { ErrorCode } from "./schema.js";

/** What every call takes. */
export interface CallOptions {
  /** Ends the call, and what it has open, as soon as it is aborted. */
  signal?: AbortSignal | undefined;
}

/** What a call takes that makes something. */
export interface MakingOptions extends CallOptions {
  /** Within 24 hours the same key finds what it has made, and makes nothing again. One of its own if left out. */
  idempotencyKey?: string | undefined;
}

/** One request, which may take several attempts. */
export interface Exchange extends MakingOptions {
  query?: object | undefined;
  /** Is sent as JSON. */
  json?: unknown;
  /** Is sent as it is. */
  content?: { body: BodyInit; mediaType: string };
  headers?: Record<string, string>;
  /** Whether it does the same thing when it is sent twice. GET, PUT, PATCH and DELETE do if nothing is said. */
  repeatable?: boolean;
  /** Whether it makes something once, by an Idempotency-Key. */
  making?: boolean;
  /** Codes, and with 404 all that is gone, that say at a second attempt that the first one has done it. */
  done?: (ErrorCode | 404)[];
  /** Milliseconds that the server may be silent. */
  silence?: number;
}

/** A key or a client token; a function is asked before each request, so that a token can be replaced in time. */
export type ApiKey = string | (() => string | Promise<string>);

/** How a client reaches its server. */
export interface TransportOptions {
  baseUrl: string;
  apiKey: ApiKey | null;
  fetch: typeof fetch;
  /** How often a request is sent again. */
  maxRetries: number;
  /** Seconds that a request may be tried again, and that a stream may go without a connection. */
  maxRetrySeconds: number;
  /** Milliseconds that the server may be silent, before and in an answer. */
  timeout: number;
}

const FIRST_PAUSE = 500; // milliseconds
const LONGEST_PAUSE = 8_000;

/** Milliseconds before another attempt: more each time, not the same for all, and no less than the server says. */
export function pauseAfter(failures: number, error: unknown): number {
  const asked = error instanceof APIError ? (error.retryAfter ?? 0) * 1000 : 0;
  const own = Math.min(FIRST_PAUSE * 2 ** Math.min(failures, 10), LONGEST_PAUSE) * (0.5 + Math.random() / 2);
  return asked > 0 ? asked + Math.random() * FIRST_PAUSE : own;
}

/** Wait, unless the signal ends it. */
export function pause(milliseconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((done, fail) => {
    if (signal?.aborted) return fail(signal.reason);
    const stop = () => {
      clearTimeout(timer);
      fail(signal?.reason);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      done();
    }, milliseconds);
    signal?.addEventListener("abort", stop, { once: true });
  });
}

/** The path of an object: path`/sessions/${id}`. No value can lead to another path. */
export function path(texts: TemplateStringsArray, ...values: string[]): string {
  return texts.reduce((whole, text, index) => whole + safe(values[index - 1] ?? "") + text);
}

function safe(part: string): string {
  // A URL drops these two, and what stands before them.
  if (part === "" || part === "." || part === "..") throw new TypeError(`${JSON.stringify(part)} is no name`);
  return encodeURIComponent(part);
}

/** The path of a file in a workspace. */
export function filePath(sessionId: string, name: string): string {
  return `${path`/sessions/${sessionId}`}/files/${name.split("/").map(safe).join("/")}`;
}

/** A key that nobody else has. */
export async function uniqueKey(): Promise<string> {
  const bytes = (await cryptography()).getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

/** Web Cryptography; Node 18 has it in a module only. */
export async function cryptography(): Promise<Crypto> {
  if (globalThis.crypto) return globalThis.crypto;
  const name = "node:crypto"; // in a variable, so that bundlers for browsers do not look for it
  return ((await import(name)) as { webcrypto: Crypto }).webcrypto;
}

/** Sends requests: with the key, again when that helps, and never without an end. */
export class Transport {
  constructor(readonly options: TransportOptions) {}

  /** The JSON of an answer; undefined where it has none. */
  async json<T>(method: string, path: string, exchange: Exchange = {}): Promise<T> {
    return this.#repeat(method, exchange, async (headers) => {
      const response = await this.once(method, path, { ...exchange, headers });
      const text = await response.text();
      return (text ? parsed(text) : undefined) as T;
    });
  }

  /** An answer whose body is still to be read. */
  async open(method: string, path: string, exchange: Exchange = {}): Promise<Response> {
    return this.#repeat(method, exchange, (headers) => this.once(method, path, { ...exchange, headers }));
  }

  async #repeat<T>(
    method: string,
    exchange: Exchange,
    attempt: (headers: Record<string, string>) => Promise<T>,
  ): Promise<T> {
    const headers = { ...exchange.headers };
    if (exchange.making) headers["Idempotency-Key"] = exchange.idempotencyKey ?? (await uniqueKey());
    const repeatable = exchange.repeatable ?? (exchange.making || method !== "POST");
    const end = Date.now() + this.options.maxRetrySeconds * 1000;
    for (let failures = 0; ; failures += 1) {
      try {
        return await attempt(headers);
      } catch (error) {
        if (failures > 0 && isDone(error, exchange.done)) return undefined as T;
        const wait = pauseAfter(failures, error);
        const again = mayRepeat(error) && (repeatable || wasNotBegun(error));
        if (!again || failures >= this.options.maxRetries || Date.now() + wait > end) throw error;
        await pause(wait, exchange.signal);
      }
    }
  }

  /**
   * One attempt. Reading the body of what it returns fails when the signal is aborted, or the server silent.
   *
   * @throws APIError, ConnectionFailed, or the reason of the signal.
   */
  async once(method: string, path: string, exchange: Exchange): Promise<Response> {
    const { signal, silence = this.options.timeout } = exchange;
    if (signal?.aborted) throw signal.reason;
    const connection = new AbortController();
    const stop = () => connection.abort(signal?.reason);
    signal?.addEventListener("abort", stop, { once: true });
    const close = () => signal?.removeEventListener("abort", stop);
    const quiet = () => connection.abort(new ConnectionFailed(`The server was silent for ${silence / 1000} s.`));
    const within = async <T>(work: Promise<T>): Promise<T> => {
      const timer = setTimeout(quiet, silence);
      try {
        return await work;
      } catch (error) {
        close();
        if (connection.signal.aborted) throw connection.signal.reason;
        throw new ConnectionFailed(`${method} ${path}: ${reasonOf(error)}`, { cause: error });
      } finally {
        clearTimeout(timer);
      }
    };
    const { apiKey } = this.options;
    const key = typeof apiKey === "function" ? await within(Promise.resolve(apiKey())) : apiKey;
    const init = this.#init(method, exchange, connection, key);
    const response = await within(this.options.fetch(this.#url(path, exchange.query), init));
    const body = response.status === 204 ? null : response.body; // where it has none, some browsers give an empty one
    const answer = body ? watched(response, body, within, close) : response;
    if (!body) close();
    if (!answer.ok) throw await refusalOf(answer);
    return answer;
  }

  #url(path: string, query: object = {}): string {
    const url = new URL(`${this.options.baseUrl.replace(/\/+$/, "")}/api/v1${path}`);
    for (const [name, value] of Object.entries(query)) {
      if (value !== undefined && value !== null) url.searchParams.set(name, String(value));
    }
    return url.href;
  }

  #init(method: string, exchange: Exchange, connection: AbortController, key: string | null): RequestInit {
    const { json, content, headers } = exchange;
    const type = content?.mediaType ?? (json === undefined ? null : "application/json");
    const streamed = content?.body instanceof ReadableStream;
    return {
      method,
      signal: connection.signal,
      headers: {
        Accept: "application/json",
        ...(key ? { "X-API-Key": key } : {}),
        ...(type ? { "Content-Type": type } : {}),
        ...headers,
      },
      ...(type ? { body: content?.body ?? JSON.stringify(json) } : {}),
      ...(streamed ? { duplex: "half" } : {}),
      redirect: "manual", // the key is for this server alone
    };
  }
}

/** The same answer. The server may be silent so long between two pieces, whatever time the reader takes. */
function watched(
  response: Response,
  body: ReadableStream<Uint8Array>,
  within: <T>(work: Promise<T>) => Promise<T>,
  close: () => void,
): Response {
  const reader = body.getReader();
  const source: UnderlyingDefaultSource<Uint8Array> = {
    async pull(controller) {
      const { done, value } = await within(reader.read());
      if (!done) return controller.enqueue(value);
      close();
      controller.close();
    },
    cancel(reason) {
      close();
      return reader.cancel(reason);
    },
  };
  const { status, statusText, headers } = response;
  return new Response(new ReadableStream(source, { highWaterMark: 0 }), { status, statusText, headers });
}

function isDone(error: unknown, done: (ErrorCode | 404)[] = []): boolean {
  if (!(error instanceof APIError)) return false;
  return (error.status === 404 && done.includes(404)) || (error.code !== null && done.includes(error.code));
}

function mayRepeat(error: unknown): boolean {
  return error instanceof ConnectionFailed || (error instanceof APIError && error.retryable);
}

function reasonOf(error: unknown): string {
  if (!(error instanceof Error)) return String(error);
  const { cause } = error;
  return cause instanceof Error && cause.message ? `${error.message}: ${cause.message}` : error.message;
}
