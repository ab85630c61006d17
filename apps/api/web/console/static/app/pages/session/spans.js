// Stored events as rows of a timeline: what each was, when it began, and when it was over. Nothing here draws.

import * as format from "../../format.js";
import { noteText } from "./note.js";

const textOf = (content) => (typeof content === "string" ? content : (content ?? []).map((block) => block.text ?? block.thinking ?? "").join(" ")).replace(/\s+/g, " ").trim().slice(0, 300);

/** [{ run, rows: [{ seq, kind, name, text, from, to, failed, frame, inner }] }], the newest run last. */
export function spans(log) {
  const groups = [];
  let before = 0; // when the model was asked: after a prompt, or a result
  for (const frame of log.frames) {
    const run = log.runs.get(frame.data.run_id);
    let group = groups.at(-1);
    if (!group || group.run?.id !== run?.id) {
      group = { key: `${run?.id ?? "between"}-${frame.seq}`, run, rows: [] };
      groups.push(group);
    }
    const row = (more) => group.rows.push({ seq: frame.seq, frame, from: frame.at, to: frame.at, ...more });
    before = take(log, frame, run, row, before);
  }
  return groups;
}

function take(log, { event, data, at }, run, row, before) {
  const inner = Boolean(data.parent_tool_use_id);
  switch (event) {
    case "queued":
      row({ kind: "wait", name: "Queued", text: `place ${data.position}`, to: run?.started ?? at });
      return before;
    case "init":
      row({ kind: "point", name: "Agent ready", text: `${data.model} · ${data.permission_mode}` });
      return at;
    case "message":
      return message(log, data, at, run, row, before, inner);
    case "permission_request":
    case "question":
    case "client_tool_call": {
      const asked = log.requests.get(data.request_id);
      const name = { permission_request: "Permission", question: "Question", client_tool_call: "Your tool" }[event];
      row({ kind: "person", name, text: data.tool_name ?? textOf((data.questions ?? []).map((one) => ({ text: one.question }))), to: asked?.ended ?? run?.ended ?? null, failed: asked?.decision === "deny" });
      return before;
    }
    case "action_resolved":
      row({ kind: "point", name: "Answer", text: `${format.words(data.decision)}${data.by?.key_name ? ` by ${data.by.key_name}` : data.by?.reason ? `: ${format.words(data.by.reason)}` : ""}` });
      return before;
    case "task":
      row({ kind: "point", name: "Task", text: `${data.status} ${data.description ?? data.summary ?? ""}`, inner: true });
      return before;
    case "checkpoint":
      row({ kind: "point", name: "Checkpoint", text: "files can be rewound to here" });
      return before;
    case "status":
    case "files":
    case "network_denied":
    case "hook":
    case "steered": {
      const status = event === "status" ? data.status : event;
      row({ kind: "point", name: format.words(status === "hook" ? data.hook_event : status), text: noteText(status, data), failed: status === "network_denied" });
      return before;
    }
    case "result":
      row({ kind: "point", name: "Result", text: [format.money(data.total_cost_usd), format.plural(data.num_turns ?? 0, "turn")].join(" · "), failed: data.is_error });
      return before;
    case "error":
      row({ kind: "point", name: "Error", text: `${data.code}: ${data.message}`, failed: true });
      return before;
    case "done":
      row({ kind: "point", name: "Done", text: data.status, failed: data.status === "failed" });
      return before;
    default:
      row({ kind: "point", name: format.words(event), text: "" });
      return before;
  }
}

function message(log, data, at, run, row, before, inner) {
  const blocks = typeof data.content === "string" ? [{ type: "text", text: data.content }] : (data.content ?? []);
  if (data.role !== "assistant") {
    if (!blocks.some((block) => block.type === "tool_result")) row({ kind: "point", name: inner ? "Told" : "Prompt", text: textOf(blocks), inner });
    return inner ? before : at;
  }
  const said = blocks.filter((block) => block.type === "text" || block.type === "thinking");
  if (said.length) row({ kind: "model", name: said.every((block) => block.type === "thinking") ? "Thinking" : "Message", text: textOf(said), from: inner ? at : before || at, inner });
  for (const block of blocks) {
    if (block.type !== "tool_use" && block.type !== "server_tool_use") continue;
    const tool = log.tools.get(block.id);
    row({ kind: "tool", name: block.name, text: format.toolSummary(block.input, log.state.cwd), to: tool?.ended ?? run?.ended ?? null, failed: tool?.failed, inner });
  }
  return inner ? before : at;
}
