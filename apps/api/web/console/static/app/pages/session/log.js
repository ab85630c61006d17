// A session's events, as what is shown of them. Each event is applied once, in its order; nothing here draws.

const KINDS = { permission_request: "permission", question: "question", client_tool_call: "client_tool" };

/** An empty log. `version` is another number after each change. */
export function begin() {
  return {
    version: 0,
    seq: 0, // of the last stored event
    place: "", // position of the last event, stored or not
    frames: [], // stored events: { seq, event, data, at }
    entries: [], // the conversation
    tools: new Map(), // tool_use_id → entry
    drafts: new Map(), // parent_tool_use_id or "" → Map(index → block), of messages that are being written
    requests: new Map(),
    runs: new Map(),
    tasks: new Map(),
    state: {}, // what the newest events say of the session: model, mode, ports, cwd
    over: null, // why there will be no more
  };
}

const order = (place) => place.split("-").map(Number);

/** Whether a position comes after another one. */
function later(place, than) {
  const [a, b = 0] = order(place);
  const [c, d = 0] = order(than);
  return a > c || (a === c && b > d);
}

/** Apply one event of the stream. Returns whether it says anything new. */
export function apply(log, { id, event, data }) {
  if (event === "resync") return resync(log, data);
  if (!id) {
    if (event === "error") log.over = data;
    log.version++;
    return true;
  }
  if (log.place && !later(id, log.place)) return false;
  log.place = id;
  log.version++;
  if (event === "partial") {
    draft(log, data);
    return true;
  }
  const frame = { seq: data.seq, event, data, at: Date.parse(data.created_at) };
  log.seq = data.seq;
  log.frames.push(frame);
  store(log, frame);
  return true;
}

/** Put stored events before those that are there: the same as if they had come first. */
export function before(log, frames) {
  return replay([...frames.map(({ event, data }) => ({ seq: data.seq, event, data, at: Date.parse(data.created_at) })), ...log.frames], log);
}

function replay(frames, old) {
  const log = { ...begin(), version: old.version + 1, drafts: old.drafts };
  for (const frame of frames) {
    log.seq = frame.seq;
    log.frames.push(frame);
    store(log, frame, true);
  }
  log.place = old.place;
  return Object.assign(old, log);
}

// The session has lost events that we hold, or does not have those any more that we ask for.
function resync(log, data) {
  if (data.reason === "lost") {
    const kept = log.frames.filter((frame) => frame.seq <= data.seq);
    log.drafts = new Map();
    replay(kept, log);
  }
  log.seq = data.seq;
  log.place = String(data.seq);
  log.entries.push({ kind: "note", key: `resync-${data.seq}-${log.version}`, seq: data.seq, status: `resync_${data.reason ?? "lost"}`, data });
  log.version++;
  return true;
}

function draft(log, { index, delta, parent_tool_use_id: parent }) {
  const blocks = at(log.drafts, parent ?? "", () => new Map());
  const block = at(blocks, index, () => ({ type: delta.type, text: "" }));
  block.text += delta[delta.type] ?? "";
}

function at(map, key, make) {
  if (!map.has(key)) map.set(key, make());
  return map.get(key);
}

function store(log, frame, again = false) {
  const { event, data, at: when } = frame;
  const run = data.run_id ? at(log.runs, data.run_id, () => ({ id: data.run_id, began: when, first: frame.seq, status: "running" })) : null;
  switch (event) {
    case "queued":
      Object.assign(run, { status: "queued", position: data.position });
      break;
    case "init":
      Object.assign(run, { status: "running", started: when });
      Object.assign(log.state, { model: data.model, permission_mode: data.permission_mode, cwd: data.cwd, tools: data.tools, mcp_servers: data.mcp_servers });
      break;
    case "message":
      message(log, frame, again);
      break;
    case "permission_request":
    case "question":
    case "client_tool_call":
      request(log, frame, run);
      break;
    case "action_resolved":
      resolved(log, data, run);
      break;
    case "task":
      task(log, frame);
      break;
    case "status":
      if (data.status === "ports") log.state.ports = data.ports;
      else log.entries.push({ kind: "note", key: frame.seq, seq: frame.seq, at: when, status: data.status, data });
      if (data.status === "reconfigured") Object.assign(log.state, pick(data, "model", "permission_mode"));
      break;
    case "files":
    case "network_denied":
    case "hook":
    case "steered":
      log.entries.push({ kind: "note", key: frame.seq, seq: frame.seq, at: when, status: event, data });
      break;
    case "checkpoint":
      Object.assign(run, { checkpoint: data.checkpoint_id });
      break;
    case "result":
      Object.assign(run, { cost: data.total_cost_usd, turns: data.num_turns, structured: data.structured_output });
      break;
    case "error":
      if (run) run.error = data;
      break;
    case "done":
      finish(log, frame, run, again);
      break;
    default: // what is new in a later release is in the list of events
  }
}

const pick = (from, ...names) => Object.fromEntries(names.filter((name) => from[name] !== undefined).map((name) => [name, from[name]]));

const blocksOf = (content) => (typeof content === "string" ? [{ type: "text", text: content }] : (content ?? []));

/** Where entries of a message belong: into the call of the subagent that wrote it. */
function container(log, parent) {
  return (parent && log.tools.get(parent)?.children) || log.entries;
}

function message(log, { seq, data, at: when }, again) {
  const parent = data.parent_tool_use_id;
  const into = container(log, parent);
  if (data.role === "assistant" && !again) log.drafts.delete(parent ?? "");
  blocksOf(data.content).forEach((block, i) => {
    const entry = { key: `${seq}.${i}`, seq, at: when, run: data.run_id, uuid: data.uuid };
    if (block.type === "tool_result" || block.type === "server_tool_result") {
      answered(log, block, when);
    } else if (block.type === "tool_use" || block.type === "server_tool_use") {
      const tool = { ...entry, kind: "tool", id: block.id, name: block.name, input: block.input, children: [], changes: 0 };
      log.tools.set(block.id, tool);
      into.push(tool);
    } else if (data.role === "user") {
      const own = !parent && data.uuid === data.run_id;
      const last = into.at(-1);
      // One prompt is one entry, of however many blocks.
      if (i && last?.seq === seq && last.kind === (own ? "prompt" : "told")) last.blocks.push(block);
      else into.push({ ...entry, kind: own ? "prompt" : "told", blocks: [block] });
    } else if (block.type === "thinking") {
      into.push({ ...entry, kind: "thinking", text: block.thinking });
    } else if (block.type === "text") {
      into.push({ ...entry, kind: "text", text: block.text, model: data.model });
    } else {
      into.push({ ...entry, kind: "block", block });
    }
  });
  touch(log, parent);
}

/** Those who draw a tool compare `changes`, since the entry stays the same object. */
function touch(log, id) {
  for (const tool of log.tools.values()) {
    if (tool.id === id || tool.children.length) tool.changes++;
  }
}

function answered(log, block, when) {
  const tool = log.tools.get(block.tool_use_id);
  if (!tool) return;
  Object.assign(tool, { result: block.content ?? "", failed: Boolean(block.is_error), ended: when });
  touch(log, tool.id);
}

function request(log, { event, data, seq, at: when }, run) {
  const made = { ...data, type: KINDS[event], status: "open", seq };
  log.requests.set(data.request_id, made);
  log.entries.push({ kind: "request", key: seq, seq, at: when, request: made });
  if (run) run.status = "requires_action";
}

function resolved(log, data, run) {
  const made = log.requests.get(data.request_id);
  if (made) Object.assign(made, { status: data.decision === "closed" ? "closed" : "answered", decision: data.decision, by: data.by, resolution: data, ended: Date.parse(data.created_at) });
  const waits = [...log.requests.values()].some((one) => one.status === "open" && one.run_id === data.run_id);
  if (run && run.status === "requires_action" && !waits) run.status = "running";
}

function task(log, { data }) {
  const known = at(log.tasks, data.task_id, () => ({ id: data.task_id }));
  for (const [name, value] of Object.entries(data)) if (value !== null && value !== undefined) known[name] = value;
  const tool = log.tools.get(known.tool_use_id);
  if (tool) {
    tool.task = known;
    touch(log, tool.id);
  }
}

function finish(log, { seq, data, at: when }, run, again) {
  const began = run.first !== seq && run.status !== "queued"; // one that was cancelled in the queue wrote nothing
  if (!again && began) {
    // What was being written and never became a message: an agent was stopped, or its instance has died.
    for (const [parent, blocks] of log.drafts) {
      for (const [index, block] of blocks) {
        if (block.text && block.type !== "input_json") container(log, parent).push({ kind: "cut", key: `${seq}.cut.${parent}.${index}`, seq, at: when, run: data.run_id, block });
      }
    }
    log.drafts.clear();
  }
  Object.assign(run, { status: data.status, ended: when, last: seq });
  log.entries.push({ kind: "outcome", key: seq, seq, at: when, run });
}

/** Requests that wait for somebody. */
export const open = (log) => [...log.requests.values()].filter((request) => request.status === "open");

/**
 * The run that is at work, if one is. A fork may have the beginning of one that its parent went on with; one that was
 * cancelled in the queue says nothing of that before it.
 */
export function active(log, session) {
  const newest = [...log.runs.values()].reverse().find((run) => run.started || (!run.ended && run.status !== "queued"));
  const over = session.status === "idle" && session.last_seq >= log.seq;
  return newest && !newest.ended && !over ? newest : undefined;
}
