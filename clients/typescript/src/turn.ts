import { APIError, RunFailed } from "./errors.js";
import { follow } from "./follow.js";
import { path, type CallOptions, type Transport } from "./transport.js";
import type { DecisionBody, ErrorCode, ErrorData, Event, ResultData } from "./schema.js";
import type { PermissionRequestData, QuestionData } from "./schema.js";

/** A tool call that waits for a decision, as `onPermission` is given it. */
export interface PermissionRequest extends PermissionRequestData {
  /** Let the tool run, with another input if one is given. `remember`: do not ask again in this session. */
  allow(more?: { updated_input?: Record<string, unknown>; remember?: boolean }): DecisionBody;
  /** Refuse the call, and tell the agent why. `interrupt`: end the run, too. */
  deny(message?: string, more?: { interrupt?: boolean }): DecisionBody;
  /** Is aborted when it need not be answered any more: somebody else was faster, or the run is over. */
  signal: AbortSignal;
}

/** A question of the agent, as `onQuestion` is given it. */
export interface QuestionRequest extends QuestionData {
  signal: AbortSignal;
}

/** Answers by the question's text: the label that was chosen, several labels, or other words. */
export type Answers = Record<string, string | string[]>;

/** Who answers what the agent asks. What gives undefined leaves the answer to others. */
export interface Callbacks {
  onPermission?: ((request: PermissionRequest) => Given<DecisionBody>) | undefined;
  onQuestion?: ((request: QuestionRequest) => Given<Answers>) | undefined;
}

type Given<T> = T | undefined | Promise<T | undefined>;

export interface TurnOptions extends Callbacks, CallOptions {
  /** Whether `partial` events come. */
  partials?: boolean;
  /** The answer that began the run. */
  first?: Response;
  /** Whether the run ends when that answer's connection does. */
  bound?: boolean;
}

type Asking = Event & { event: "permission_request" | "question" };

type End = { result: ResultData } | { failed: RunFailed };

const UNREAD = 2_000; // milliseconds that the first answer is kept for a reader

/**
 * One run of a session: an iterable of its events, from the first one on, however often the connection breaks.
 *
 * Each iteration begins at the first event. What the agent asks is answered by the callbacks while one goes on.
 */
export class Turn implements AsyncIterable<Event> {
  readonly #transport: Transport;
  readonly #options: TurnOptions;
  readonly #stop = new AbortController();
  readonly #asked = new Map<string, AbortController>();
  #first: Response | null;
  readonly #unread: ReturnType<typeof setTimeout> | undefined;
  #position: string | null = null;
  #result: ResultData | null = null;
  #error: ErrorData | null = null;
  #end: End | null = null;

  constructor(
    transport: Transport,
    readonly sessionId: string,
    readonly runId: string,
    options: TurnOptions,
  ) {
    this.#transport = transport;
    this.#options = options;
    this.#first = options.first ?? null;
    // Nobody has to read it: the run goes on, and its events can be asked for later.
    if (!this.#first || options.bound) return;
    this.#unread = setTimeout(() => void this.#takeFirst()?.body?.cancel().catch(() => undefined), UNREAD);
  }

  [Symbol.asyncIterator](): AsyncGenerator<Event, void, undefined> {
    return this.#events(null);
  }

  /**
   * What the agent itself writes, piece by piece; not its thoughts, and not what subagents write.
   *
   * @throws RunFailed at the end of a run that did not succeed.
   */
  async *text(): AsyncGenerator<string, void, undefined> {
    const pieces = new Pieces();
    for await (const event of this) {
      const text = pieces.of(event);
      if (text) yield text;
    }
    if (this.#end && "failed" in this.#end) throw this.#end.failed;
  }

  /**
   * The outcome, when the run is over.
   *
   * @throws RunFailed, and what a callback has thrown.
   */
  async result(): Promise<ResultData> {
    if (!this.#end) for await (const _ of this.#events(this.#position)) continue;
    if (this.#end && "result" in this.#end) return this.#end.result;
    throw this.#end?.failed ?? this.#failure("execution_error", "The run's end was not told.");
  }

  /** Stop the run, whether it has begun or waits. One that is over already stays as it is. */
  async interrupt(options: CallOptions = {}): Promise<void> {
    try {
      await this.#transport.json("POST", path`/runs/${this.runId}/cancel`, { repeatable: true, ...options });
    } catch (error) {
      if (!isOneOf(error, "no_live_run", "session_deleted")) throw error;
    }
  }

  async *#events(after: string | null): AsyncGenerator<Event, void, undefined> {
    const { signal, partials = true } = this.#options;
    const stop = () => this.#stop.abort(signal?.reason);
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    const first = after === null ? this.#takeFirst() : null;
    const fresh = first !== null;
    const options = { after, first, until: this.runId, signal: this.#stop.signal };
    try {
      for await (const event of follow(this.#transport, path`/runs/${this.runId}/events`, options)) {
        this.#note(event, fresh);
        if (partials || event.event !== "partial") yield event;
        if (this.#stop.signal.aborted) throw this.#stop.signal.reason;
      }
    } finally {
      signal?.removeEventListener("abort", stop);
    }
  }

  #takeFirst(): Response | null {
    const first = this.#first;
    this.#first = null;
    clearTimeout(this.#unread);
    return first;
  }

  #note(event: Event, fresh: boolean): void {
    if (event.id !== null) this.#position = event.id;
    switch (event.event) {
      case "permission_request":
      case "question":
        this.#ask(event, fresh);
        break;
      case "action_resolved":
        this.#asked.get(event.data.request_id)?.abort(new Error("It was answered."));
        break;
      case "result":
        this.#result = event.data;
        break;
      case "error":
        this.#error = event.data;
        break;
      case "done":
        if (event.data.run_id === this.runId) this.#over(this.#outcome(event.data.status));
    }
  }

  #outcome(status: "succeeded" | "failed" | "interrupted"): End {
    if (status === "succeeded" && this.#result) return { result: this.#result };
    if (status === "interrupted") return { failed: this.#failure("interrupted", "The run was interrupted.") };
    const { code, message } = this.#error ?? { code: "execution_error" as const, message: "The run has failed." };
    return { failed: this.#failure(code, message) };
  }

  #failure(code: ErrorData["code"], message: string): RunFailed {
    return new RunFailed({
      code,
      message,
      retryable: this.#error?.retryable ?? code === "interrupted",
      retryAfter: this.#error?.retry_after_seconds ?? null,
      details: this.#error?.details ?? {},
      sessionId: this.sessionId,
      runId: this.runId,
      result: this.#result,
    });
  }

  #over(end: End): void {
    this.#end = end;
    for (const asked of this.#asked.values()) asked.abort(new Error("The run is over."));
  }

  /** Have a callback answer, once, while the stream goes on. */
  #ask(event: Asking, fresh: boolean): void {
    const { onPermission, onQuestion } = this.#options;
    const id = event.data.request_id;
    if (this.#asked.has(id) || !(event.event === "question" ? onQuestion : onPermission)) return;
    const asked = new AbortController();
    this.#asked.set(id, asked);
    this.#answer(event, fresh, asked.signal).catch((error: unknown) => {
      if (!asked.signal.aborted) this.#stop.abort(error);
    });
  }

  async #answer(event: Asking, fresh: boolean, signal: AbortSignal): Promise<void> {
    const id = event.data.request_id;
    const repeatable = { repeatable: true, signal: this.#stop.signal };
    try {
      if (!fresh) {
        // A stream that is read again shows what was answered long ago: nobody need be asked for that.
        const state = await this.#transport.json<{ status: string }>("GET", path`/requests/${id}`, { signal });
        if (state.status !== "open") return;
      }
      if (event.event === "question") {
        const answers = await this.#options.onQuestion?.({ ...event.data, signal });
        if (!answers) return;
        const json = { request_id: id, answers };
        await this.#transport.json("POST", path`/sessions/${this.sessionId}/answer`, { json, ...repeatable });
      } else {
        const json = await this.#options.onPermission?.(permission(event.data, signal));
        if (!json) return;
        const where = path`/sessions/${this.sessionId}/permissions/${id}`;
        await this.#transport.json("POST", where, { json, ...repeatable });
      }
    } catch (error) {
      // It is closed already: somebody else has answered, or nobody asks any more.
      if (!isOneOf(error, "request_resolved", "request_not_found", "session_deleted", "session_not_found")) throw error;
    }
  }
}

function permission(data: PermissionRequestData, signal: AbortSignal): PermissionRequest {
  return {
    ...data,
    signal,
    allow: (more = {}) => ({ decision: "allow", ...more }),
    deny: (message, more = {}) => ({ decision: "deny", ...(message === undefined ? {} : { message }), ...more }),
  };
}

function isOneOf(error: unknown, ...codes: ErrorCode[]): boolean {
  return error instanceof APIError && error.code !== null && codes.includes(error.code);
}

/**
 * The text of a run in pieces, none twice. Where some were missed, since the connection broke for long, the rest comes
 * with the message that they are a part of.
 */
class Pieces {
  #told = ""; // of the message that is written now
  #last: [seq: number, part: number] = [0, 0];
  #gap = false;

  of(event: Event): string {
    if (event.event === "partial") return this.#piece(event);
    if (event.event !== "message") return "";
    const { role, content, parent_tool_use_id } = event.data;
    if (role !== "assistant" || parent_tool_use_id !== null) return "";
    const whole = content.map((block) => (block.type === "text" ? block.text : "")).join("");
    const rest = whole.startsWith(this.#told) ? whole.slice(this.#told.length) : "";
    this.#gap = false;
    if (whole) this.#told = "";
    return rest;
  }

  #piece({ id, data }: Event & { event: "partial" }): string {
    const [seq = 0, part = 0] = id.split("-").map(Number);
    // Parts are counted from the last message on.
    if (part !== this.#last[1] + 1 && !(part === 1 && seq > this.#last[0])) this.#gap = true;
    this.#last = [seq, part];
    if (this.#gap || data.parent_tool_use_id !== null || data.delta.type !== "text") return "";
    this.#told += data.delta.text;
    return data.delta.text;
  }
}
