import { ConnectionFailed, parsed } from "./errors.js";
import type { Event } from "./schema.js";

/** Characters of one event: what an agent read or printed at once is in it, as JSON. */
const LONGEST_EVENT = 256 * 1024 * 1024;

/** The server-sent events of a body, as they come, until the signal ends it. One that is cut is left out. */
export async function* eventsIn(
  body: ReadableStream<Uint8Array>,
  signal?: AbortSignal,
): AsyncGenerator<Event, void, undefined> {
  let id: string | null = null;
  let name = "";
  let data: string[] = [];
  for await (const line of linesIn(body, signal)) {
    if (line === "") {
      if (data.length) yield { id, event: name, data: parsed(data.join("\n")) } as Event;
      [id, name, data] = [null, "", []];
      continue;
    }
    const colon = line.indexOf(":"); // at the beginning: a comment, which keeps the connection alive
    const field = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (field === "data") data.push(value);
    else if (field === "event") name = value;
    else if (field === "id") id = value;
  }
}

/** Each is looked at once, however long it is, and however many pieces it comes in. */
async function* linesIn(
  body: ReadableStream<Uint8Array>,
  signal: AbortSignal | undefined,
): AsyncGenerator<string, void, undefined> {
  const reader = body.getReader();
  const end = () => void reader.cancel(signal?.reason).catch(() => undefined);
  if (signal?.aborted) end();
  signal?.addEventListener("abort", end, { once: true });
  const decoder = new TextDecoder();
  let begun: string[] = [];
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const pieces = decoder.decode(value, { stream: true }).split("\n");
      const rest = pieces.pop() ?? "";
      for (const piece of pieces) {
        const line = begun.length ? begun.join("") + piece : piece;
        [begun, length] = [[], 0];
        yield line.endsWith("\r") ? line.slice(0, -1) : line;
      }
      if (rest) begun.push(rest);
      length += rest.length;
      if (length > LONGEST_EVENT) throw new ConnectionFailed("An event is longer than any that this client takes.");
    }
  } finally {
    signal?.removeEventListener("abort", end);
    end();
  }
}
