import { follow } from "./follow.js";
import { Pages, type Paging } from "./pages.js";
import { path, type CallOptions, type MakingOptions, type Transport } from "./transport.js";
import { Turn, type Callbacks } from "./turn.js";
import type * as api from "./schema.js";

/** Filters of `sessions.list`; metadata as `"metadata.NAME"`. */
export interface SessionFilter extends Paging {
  status?: api.SessionState["status"];
  tag?: string;
  search?: string;
  agent?: string;
  end_user?: string;
  created_after?: string;
  [metadata: `metadata.${string}`]: string;
}

/** Filters of `runs.list`. */
export interface RunFilter extends Paging {
  status?: api.RunState["status"];
  session_id?: string;
  agent?: string;
  end_user?: string;
  error_code?: api.ErrorCode;
  created_after?: string;
  created_before?: string;
}

export interface EventsOptions extends CallOptions {
  /** The position to begin after; the first event if left out. */
  after?: string;
}

/** A prompt: text, or blocks of text, images and documents. */
export type Prompt = api.PromptBody["prompt"];

export interface DiffQuery {
  since?: "run" | "checkpoint";
  checkpoint_id?: string;
}

type NextFields = Partial<Omit<api.NextPromptBody, "prompt">>;

type ForkFields = Omit<api.ForkBody, "prompt">;

/** Sessions: conversations, each with a workspace and options of its own. */
export class Sessions {
  constructor(private readonly transport: Transport) {}

  /** A session in which nothing runs until its first prompt. */
  create(body: Partial<api.SessionBody> = {}, options: MakingOptions = {}): Promise<api.SessionState> {
    return this.transport.json("POST", "/sessions", { json: body, making: true, ...options });
  }

  get(sessionId: string, options: CallOptions = {}): Promise<api.SessionState> {
    return this.transport.json("GET", path`/sessions/${sessionId}`, options);
  }

  /** Newest first. */
  list(filter: SessionFilter = {}, options: CallOptions = {}): Pages<api.SessionState> {
    return new Pages(this.transport, "/sessions", filter, options);
  }

  /** Change title, tags or metadata. */
  update(sessionId: string, body: api.PatchBody, options: CallOptions = {}): Promise<api.SessionState> {
    return this.transport.json("PATCH", path`/sessions/${sessionId}`, { json: body, ...options });
  }

  /** What a browser or an app of an end user gets in place of a key: for this session, for a while. */
  clientToken(sessionId: string, body: api.TokenBody = {}, options: CallOptions = {}): Promise<api.ClientToken> {
    const exchange = { json: body, repeatable: true, ...options };
    return this.transport.json("POST", path`/sessions/${sessionId}/client-tokens`, exchange);
  }

  /** Remove a session with all that it has. Undefined: an attempt whose answer was lost has removed it. */
  delete(sessionId: string, options: CallOptions = {}): Promise<api.SessionRemoved | undefined> {
    return this.transport.json("DELETE", path`/sessions/${sessionId}`, { done: ["session_deleted", 404], ...options });
  }

  /** Queue a prompt, and do not wait for it; `runs.follow` does. */
  prompt(sessionId: string, prompt: Prompt, body: NextFields = {}, options: MakingOptions = {}): Promise<api.Accepted> {
    const json = { ...body, prompt };
    return this.transport.json("POST", path`/sessions/${sessionId}/query`, { json, making: true, ...options });
  }

  /** A session that begins with what this one has said and made. To prompt it at once: `prompt` with `fork_session`. */
  fork(sessionId: string, body: ForkFields = {}, options: MakingOptions = {}): Promise<api.SessionState> {
    return this.transport.json("POST", path`/sessions/${sessionId}/fork`, { json: body, making: true, ...options });
  }

  /** Bring the files back to what they were before a prompt. `Accepted`: its turn has not come in 30 s, see its run. */
  rewind(
    sessionId: string,
    body: api.RewindBody,
    options: MakingOptions = {},
  ): Promise<api.Rewound | api.Accepted> {
    return this.transport.json("POST", path`/sessions/${sessionId}/rewind`, { json: body, making: true, ...options });
  }

  checkpoints(sessionId: string, paging: Paging = {}, options: CallOptions = {}): Pages<api.Checkpoint> {
    return new Pages(this.transport, path`/sessions/${sessionId}/checkpoints`, paging, options);
  }

  /** Stop what the session runs, or the given run only. Undefined: an attempt whose answer was lost has stopped it. */
  interrupt(sessionId: string, runId?: string, options: CallOptions = {}): Promise<api.Applied | undefined> {
    // Without the id, a repeat could stop the run after the one that is meant.
    const [json, repeatable] = runId === undefined ? [{}, false] : [{ run_id: runId }, true];
    const where = path`/sessions/${sessionId}/interrupt`;
    return this.transport.json("POST", where, { json, repeatable, done: ["no_live_run"], ...options });
  }

  /** A new agent process; `hard`: with a new conversation. */
  reset(sessionId: string, body: api.ResetBody, options: MakingOptions = {}): Promise<api.Applied> {
    return this.transport.json("POST", path`/sessions/${sessionId}/reset`, { json: body, making: true, ...options });
  }

  /** Change the live agent: its mode, its model, its tasks and MCP servers. */
  control(sessionId: string, body: api.ControlBody, options: CallOptions = {}): Promise<api.Applied> {
    return this.transport.json("POST", path`/sessions/${sessionId}/control`, { json: body, ...options });
  }

  /** The conversation, oldest first. */
  messages(sessionId: string, paging: Paging = {}, options: CallOptions = {}): Pages<api.Message> {
    return new Pages(this.transport, path`/sessions/${sessionId}/messages`, paging, options);
  }

  runs(sessionId: string, paging: Paging = {}, options: CallOptions = {}): Pages<api.RunState> {
    return new Pages(this.transport, path`/sessions/${sessionId}/runs`, paging, options);
  }

  /** Stored and live events of all its runs, without an end; `until` `idle`: until nothing is queued or running. */
  events(
    sessionId: string,
    { after, until, signal }: EventsOptions & { until?: "idle" } = {},
  ): AsyncGenerator<api.Event, void, undefined> {
    const options = { after: after ?? null, query: { until }, signal };
    return follow(this.transport, path`/sessions/${sessionId}/events`, options);
  }

  /** How full the context window is, as the live agent says. */
  context(sessionId: string, options: CallOptions = {}): Promise<api.ContextUse> {
    return this.transport.json("GET", path`/sessions/${sessionId}/context`, options);
  }

  /** What has changed in the workspace, as a patch. */
  diff(sessionId: string, query: DiffQuery = {}, options: CallOptions = {}): Promise<api.Difference> {
    return this.transport.json("GET", path`/sessions/${sessionId}/diff`, { query, ...options });
  }
}

/** Runs: what came of a prompt. */
export class Runs {
  constructor(private readonly transport: Transport) {}

  get(runId: string, options: CallOptions = {}): Promise<api.RunState> {
    return this.transport.json("GET", path`/runs/${runId}`, options);
  }

  /** Of all sessions, newest first. */
  list(filter: RunFilter = {}, options: CallOptions = {}): Pages<api.RunState> {
    return new Pages(this.transport, "/runs", filter, options);
  }

  /** The run's events up to its `done`, from the first one or after a position. */
  events(runId: string, { after, signal }: EventsOptions = {}): AsyncGenerator<api.Event, void, undefined> {
    return follow(this.transport, path`/runs/${runId}/events`, { after: after ?? null, until: runId, signal });
  }

  /** A run that was begun elsewhere, as `prompt` gives one. */
  async follow(runId: string, options: Callbacks & CallOptions = {}): Promise<Turn> {
    const run = await this.get(runId, options);
    return new Turn(this.transport, run.session_id, run.run_id, options);
  }

  /** Stop the run, whether it has begun or waits. Undefined: an attempt whose answer was lost has stopped it. */
  interrupt(runId: string, options: CallOptions = {}): Promise<api.Applied | undefined> {
    const done: api.ErrorCode[] = ["no_live_run"];
    return this.transport.json("POST", path`/runs/${runId}/cancel`, { repeatable: true, done, ...options });
  }
}

/** Requests: what agents ask of persons and programs. */
export class Requests {
  constructor(private readonly transport: Transport) {}

  get(requestId: string, options: CallOptions = {}): Promise<api.RequestState> {
    return this.transport.json("GET", path`/requests/${requestId}`, options);
  }

  /** Those that wait, of all sessions or of one; others with `status`. */
  list(
    { session_id, ...filter }: Paging & { session_id?: string; status?: "open" | "answered" | "closed" | "all" } = {},
    options: CallOptions = {},
  ): Pages<api.RequestState> {
    const where = session_id === undefined ? "/requests" : path`/sessions/${session_id}/requests`;
    return new Pages(this.transport, where, filter, options);
  }

  /**
   * Allow a tool call, or deny it. The first answer counts: a later one is a Conflict, `request_resolved`. Undefined: an
   * attempt whose answer was lost has done it.
   */
  decide(
    sessionId: string,
    requestId: string,
    decision: api.DecisionBody,
    options: CallOptions = {},
  ): Promise<api.Answered | undefined> {
    const where = path`/sessions/${sessionId}/permissions/${requestId}`;
    return this.transport.json("POST", where, { json: decision, ...ANSWERING, ...options });
  }

  /** Answer questions, by their texts; as `decide`. */
  answer(
    sessionId: string,
    requestId: string,
    answers: api.AnswerBody["answers"],
    options: CallOptions = {},
  ): Promise<api.Answered | undefined> {
    const json = { request_id: requestId, answers };
    return this.transport.json("POST", path`/sessions/${sessionId}/answer`, { json, ...ANSWERING, ...options });
  }

  /** The result of a tool of your own program, for which a `client_tool_call` waits; as `decide`. */
  toolResult(
    sessionId: string,
    requestId: string,
    result: api.ToolResultBody,
    options: CallOptions = {},
  ): Promise<api.Answered | undefined> {
    const where = path`/sessions/${sessionId}/tool-results/${requestId}`;
    return this.transport.json("POST", where, { json: result, ...ANSWERING, ...options });
  }
}

const ANSWERING: { repeatable: true; done: api.ErrorCode[] } = { repeatable: true, done: ["request_resolved"] };

/** Which usage to report. */
export interface UsageFilter extends Paging {
  /** Any of `day`, `key`, `model`, `session`, `end_user`, with commas between; `day` if left out. */
  group_by?: string;
  from?: string;
  to?: string;
  session_id?: string;
  key_id?: string;
  model?: string;
  end_user?: string;
}

/** What agents have used. Money is text: a decimal of USD. */
export class Usage {
  constructor(private readonly transport: Transport) {}

  /** The first page, with the totals of all. */
  report(filter: UsageFilter = {}, options: CallOptions = {}): Promise<api.UsageReport> {
    return this.transport.json("GET", "/usage", { query: filter, ...options });
  }

  /** All rows. */
  rows(filter: UsageFilter = {}, options: CallOptions = {}): Pages<api.UsageRow, api.UsageReport> {
    return new Pages(this.transport, "/usage", filter, options);
  }

  ofSession(sessionId: string, options: CallOptions = {}): Promise<api.SessionUsage> {
    return this.transport.json("GET", path`/sessions/${sessionId}/usage`, options);
  }
}
