import { Keys, Presets, Schedules, Webhooks } from "./admin.js";
import { Files } from "./files.js";
import { Requests, Runs, Sessions, Usage, type Prompt } from "./sessions.js";
import { Transport, type ApiKey, type CallOptions, type MakingOptions, type Exchange } from "./transport.js";
import { Turn, type Callbacks } from "./turn.js";
import type * as api from "./schema.js";

export interface ClientOptions {
  /** `CLAUDE_AGENT_API_URL` of the environment if left out, else http://127.0.0.1:8000. */
  baseUrl?: string | undefined;
  /**
   * `CLAUDE_AGENT_API_KEY` of the environment if left out. In a browser a client token, or a function that fetches one
   * from your server.
   */
  apiKey?: ApiKey | undefined;
  /** In place of the runtime's own. */
  fetch?: typeof fetch | undefined;
  /** How often a request is sent again that failed in passing. */
  maxRetries?: number | undefined;
  /** Seconds after which it is not sent again, and that a stream may go without a connection. */
  maxRetrySeconds?: number | undefined;
  /** Milliseconds that the server may be silent. Streams and files have times of their own. */
  timeout?: number | undefined;
}

/** Options of a prompt: of the call itself, and of the session as the API has them. */
export interface PromptOptions
  extends Partial<Omit<api.PromptBody, "prompt" | "session_id">>,
    Callbacks,
    MakingOptions {
  /** The session to go on with; a new one if left out. */
  sessionId?: string | undefined;
}

/** A client of one server, with one key. */
export class Client {
  readonly sessions: Sessions;
  readonly runs: Runs;
  readonly requests: Requests;
  readonly files: Files;
  readonly presets: Presets;
  readonly schedules: Schedules;
  readonly webhooks: Webhooks;
  readonly keys: Keys;
  readonly usage: Usage;
  readonly #transport: Transport;

  constructor(options: ClientOptions = {}) {
    const transport = new Transport({
      baseUrl: options.baseUrl ?? environment("CLAUDE_AGENT_API_URL") ?? "http://127.0.0.1:8000",
      apiKey: options.apiKey ?? environment("CLAUDE_AGENT_API_KEY") ?? null,
      fetch: options.fetch ?? ((input, init) => fetch(input, init)),
      maxRetries: options.maxRetries ?? 8,
      maxRetrySeconds: options.maxRetrySeconds ?? 120,
      timeout: options.timeout ?? 60_000,
    });
    this.#transport = transport;
    this.sessions = new Sessions(transport);
    this.runs = new Runs(transport);
    this.requests = new Requests(transport);
    this.files = new Files(transport);
    this.presets = new Presets(transport);
    this.schedules = new Schedules(transport);
    this.webhooks = new Webhooks(transport);
    this.keys = new Keys(transport);
    this.usage = new Usage(transport);
  }

  /**
   * Send a prompt. It is given to the server once, however often the connection breaks, and its run does not depend on
   * this client: what this returns can be read, or left alone.
   *
   * @param options of the call in camelCase; all others are the API's own, and change the session.
   */
  async prompt(prompt: Prompt, options: PromptOptions = {}): Promise<Turn> {
    const { sessionId, onPermission, onQuestion, signal, idempotencyKey, ...body } = options;
    const json = { ...body, prompt, ...(sessionId === undefined ? {} : { session_id: sessionId }) };
    const headers = { Accept: "text/event-stream" };
    const first = await this.#transport.open("POST", "/query", { json, making: true, headers, signal, idempotencyKey });
    return new Turn(this.#transport, of(first, "X-Session-ID"), of(first, "X-Run-ID"), {
      first,
      onPermission,
      onQuestion,
      signal,
      partials: body.include_partial_messages ?? true,
      bound: body.on_disconnect === "interrupt",
    });
  }

  /** Send a prompt, and wait for the result. @throws RunFailed */
  async ask(prompt: Prompt, options: PromptOptions = {}): Promise<api.ResultData> {
    return (await this.prompt(prompt, { include_partial_messages: false, ...options })).result();
  }

  /** Whose key this is, and what it may do. */
  whoami(options: CallOptions = {}): Promise<api.Whoami> {
    return this.#transport.json("GET", "/whoami", options);
  }

  /** Any other route: its method, its path below `/api/v1`, and what it takes. */
  request<T>(method: string, path: string, exchange: Exchange = {}): Promise<T> {
    return this.#transport.json(method, path, exchange);
  }
}

function of(answer: Response, header: string): string {
  const value = answer.headers.get(header);
  if (value) return value;
  throw new TypeError(`The answer has no ${header}: a proxy, or the server's ALLOWED_ORIGINS, does not let it pass.`);
}

function environment(name: string): string | undefined {
  const { process } = globalThis as { process?: { env?: Record<string, string | undefined> } };
  return process?.env?.[name] || undefined;
}
