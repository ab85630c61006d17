import { Pages, type Paging } from "./pages.js";
import { filePath, path, type CallOptions, type MakingOptions, type Transport } from "./transport.js";
import type * as api from "./schema.js";

/** What a file is made of. A stream is sent once; the others again when a connection breaks. */
export type Content = string | Blob | ArrayBuffer | Uint8Array<ArrayBuffer> | ReadableStream<Uint8Array>;

export interface PutOptions extends CallOptions {
  /** Replace only the file with this `etag`. */
  ifMatch?: string;
  /** Make only a new file. */
  onlyNew?: boolean;
}

export interface UploadOptions extends MakingOptions {
  name: string;
  mediaType?: string;
  expires_in_seconds?: number;
}

const PATIENCE = 15 * 60 * 1000; // milliseconds that a file may take to come, as the server has it

/** Files of sessions' workspaces, and files of the tenant, which prompts name in `resources`. */
export class Files {
  constructor(private readonly transport: Transport) {}

  /** What is in a workspace, or in the directory `path` of it. */
  list(
    sessionId: string,
    query: Paging & { path?: string; recursive?: boolean } = {},
    options: CallOptions = {},
  ): Pages<api.FileState> {
    return new Pages(this.transport, path`/sessions/${sessionId}/files`, query, options);
  }

  /** Store a file in a workspace; directories on the way are made. */
  async put(
    sessionId: string,
    name: string,
    content: Content,
    { ifMatch, onlyNew = false, ...options }: PutOptions = {},
  ): Promise<api.FileState> {
    const body = await sendable(content);
    const headers: Record<string, string> = {};
    if (ifMatch !== undefined) headers["If-Match"] = ifMatch;
    if (onlyNew) headers["If-None-Match"] = "*";
    const repeatable = !(body instanceof ReadableStream) && ifMatch === undefined && !onlyNew;
    const sent = { content: { body, mediaType: "application/octet-stream" }, headers, repeatable, silence: PATIENCE };
    return this.transport.json("PUT", filePath(sessionId, name), { ...sent, ...options });
  }

  /** A file of a workspace, as an answer whose body is still to be read: `.text()`, `.blob()`, `.body`. */
  get(sessionId: string, name: string, options: CallOptions = {}): Promise<Response> {
    return this.transport.open("GET", filePath(sessionId, name), { headers: ANYTHING, ...options });
  }

  /** Remove a file or an empty directory; with `recursive` any directory. */
  async delete(sessionId: string, name: string, options: CallOptions & { recursive?: boolean } = {}): Promise<void> {
    const { recursive, signal } = options;
    await this.transport.json("DELETE", filePath(sessionId, name), { query: { recursive }, signal, done: [404] });
  }

  move(sessionId: string, body: api.Move, options: CallOptions = {}): Promise<api.FileState> {
    return this.transport.json("POST", path`/sessions/${sessionId}/files/move`, { json: body, ...options });
  }

  /** All files of a workspace, or those in `path`, packed. */
  archive(
    sessionId: string,
    query: { path?: string; format?: "tar.gz" | "zip" } = {},
    options: CallOptions = {},
  ): Promise<Response> {
    return this.transport.open("GET", path`/sessions/${sessionId}/archive`, { query, headers: ANYTHING, ...options });
  }

  /** Keep a file for sessions and prompts of the tenant. */
  async upload(content: Content, options: UploadOptions): Promise<api.FileObject> {
    const { name, mediaType, expires_in_seconds, ...more } = options;
    const body = await sendable(content);
    const type = mediaType ?? (content instanceof Blob && content.type ? content.type : "application/octet-stream");
    return this.transport.json("POST", "/files", {
      query: { name, expires_in_seconds },
      content: { body, mediaType: type },
      making: true,
      repeatable: !(body instanceof ReadableStream),
      silence: PATIENCE,
      ...more,
    });
  }

  /** Files of the tenant, newest first. */
  uploads(paging: Paging = {}, options: CallOptions = {}): Pages<api.FileObject> {
    return new Pages(this.transport, "/files", paging, options);
  }

  uploadState(fileId: string, options: CallOptions = {}): Promise<api.FileObject> {
    return this.transport.json("GET", path`/files/${fileId}`, options);
  }

  /** A file of the tenant, as an answer whose body is still to be read. */
  download(fileId: string, options: CallOptions = {}): Promise<Response> {
    return this.transport.open("GET", path`/files/${fileId}/content`, { headers: ANYTHING, ...options });
  }

  async deleteUpload(fileId: string, options: CallOptions = {}): Promise<void> {
    await this.transport.json("DELETE", path`/files/${fileId}`, { done: [404], ...options });
  }
}

const ANYTHING = { Accept: "*/*" };

/** Browsers send a stream over HTTP/2 at best: there it is read first, to memory or disk as the browser likes. */
async function sendable(content: Content): Promise<BodyInit> {
  const inBrowser = "document" in globalThis || "WorkerGlobalScope" in globalThis;
  return content instanceof ReadableStream && inBrowser ? new Response(content).blob() : content;
}
