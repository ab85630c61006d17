import { APIError, ConnectionFailed, endOf } from "./errors.js";
import { eventsIn } from "./sse.js";
import { pause, pauseAfter, type CallOptions, type Transport } from "./transport.js";
import type { Event } from "./schema.js";

/** How to follow a stream of events. */
export interface FollowOptions extends CallOptions {
  query?: object;
  /** The position to begin after; the first event if left out. */
  after?: string | null;
  /** The answer to begin with, in place of asking for one. */
  first?: Response | null;
  /** The run at whose `done` it ends. */
  until?: string;
}

const SILENCE = 45_000; // milliseconds; the server breaks a silence every 15 s
const STEADY = 10_000; // of a connection that counts as one, though no event came

/**
 * Events, each once and in order, over any number of broken connections: whenever one breaks, the next is asked for what
 * came after the last event, of whichever instance answers.
 *
 * It ends with the `done` of the run, or when the server says that nothing will come.
 *
 * @throws APIError that no repeat mends, or by which the server ends the stream; ConnectionFailed after
 *   `maxRetrySeconds` without a connection.
 */
export async function* follow(
  transport: Transport,
  path: string,
  { query, after = null, first = null, until, signal }: FollowOptions,
): AsyncGenerator<Event, void, undefined> {
  let position = after;
  let failures = 0;
  let alive = Date.now();
  let answer = first;
  for (;;) {
    const begun = Date.now();
    let cause: unknown = new ConnectionFailed("The stream was cut.");
    try {
      answer ??= await ask(transport, path, position, query, signal);
      if (answer.status === 204 || !answer.body) return; // nothing is left, and nothing will come
      let fresh = false;
      for await (const event of eventsIn(answer.body, signal)) {
        if (event.event === "error" && event.id === null) throw endOf(event.data);
        // Where something on the way does not pass the position on, the stream begins anew.
        if (!fresh && event.event !== "resync" && !isAfter(event.id, position)) continue;
        fresh = true;
        position = event.id ?? position;
        yield event;
        if (event.event === "done" && event.data.run_id === until) return;
        [failures, alive] = [0, Date.now()];
      }
    } catch (error) {
      if (!mends(error)) throw error;
      cause = error;
    }
    if (signal?.aborted) throw signal.reason;
    answer = null;
    if (Date.now() - begun > STEADY) [failures, alive] = [0, Date.now()];
    const wait = pauseAfter(failures, cause);
    if (Date.now() + wait > alive + transport.options.maxRetrySeconds * 1000) throw cause;
    failures += 1;
    await pause(wait, signal);
  }
}

async function ask(
  transport: Transport,
  path: string,
  position: string | null,
  query: object | undefined,
  signal: AbortSignal | undefined,
): Promise<Response> {
  const headers = { Accept: "text/event-stream", ...(position === null ? {} : { "Last-Event-ID": position }) };
  return transport.once("GET", path, { query, headers, signal, silence: SILENCE });
}

function isAfter(id: string | null, position: string | null): boolean {
  if (id === null || position === null) return true;
  const place = (one: string) => one.split("-").map(Number);
  const [[seq = 0, part = 0], [own = 0, ownPart = 0]] = [place(id), place(position)];
  return seq > own || (seq === own && part > ownPart);
}

function mends(error: unknown): boolean {
  // Too many streams are open: some of them end.
  return error instanceof ConnectionFailed || (error instanceof APIError && (error.retryable || error.status === 429));
}
