// What is worth a line beside the conversation.

import * as format from "../../format.js";
import { Icon } from "../../parts/icon.js";
import { classes, html } from "../../view.js";

const SERIOUS = new Set(["model_retry", "network_denied", "workspace_not_stored", "workspace_missing", "conversation_expired", "turn_forgotten", "resync_lost", "rate_limit"]);

const TEXTS = {
  files: ({ counts = {} }) => `Files: ${["created", "changed", "deleted"].filter((name) => counts[name]).map((name) => `${counts[name]} ${name}`).join(", ") || "none changed"}`,
  network_denied: ({ host, port, reason }) => `The network refused ${host}${port ? `:${port}` : ""}: ${format.words(reason).toLowerCase()}`,
  hook: ({ hook_event: event, decision, error, duration_ms: ms }) => `Hook ${event}: ${error ?? decision}${ms ? `, ${format.duration(ms)}` : ""}`,
  steered: ({ state }) => (state === "taken" ? "The turn has taken this prompt" : "The turn has not taken this prompt: its run begins"),
  model_retry: ({ attempt, max_retries: most, error_status: status, error }) => `The model is asked again (${attempt} of ${most}): ${status ?? error ?? "no answer"}`,
  model_fallback: ({ original_model: from, fallback_model: into }) => `${into} answers in place of ${from}`,
  compacting: () => "The conversation is being compacted",
  compacted: () => "The conversation was compacted",
  reconfigured: ({ model, permission_mode: mode }) => `Changed: ${[model && `model ${model}`, mode && `permission mode ${mode}`].filter(Boolean).join(", ") || "options"}`,
  reset: ({ mode }) => (mode === "hard" ? "A new conversation begins here" : "A new agent process, with the same conversation"),
  rewound: () => "The files were rewound",
  parked: () => "Parked: nothing runs until there is an answer",
  resumed: () => "Goes on with the answer",
  background_turn: () => "The agent began a turn by itself",
  conversation_expired: () => "What the agent remembered was removed for its age: it begins anew",
  turn_forgotten: () => "The agent was made to forget this turn, since the model would refuse it every time",
  workspace_not_stored: () => "The files of this run could not be stored",
  workspace_missing: () => "The files of the session are gone",
  workspace_restored: () => "The files were brought to this instance",
  restoring: () => "The files are brought to this instance",
  cloning: () => "The repository is being cloned",
  cloned: () => "The repository was cloned",
  resync_lost: () => "The server has lost events that were shown here; they were taken out",
  resync_expired: () => "Older events were removed for their age",
  rate_limit: ({ state, limit }) => `The model's account: ${state ?? "limited"}${limit ? ` (${limit})` : ""}`,
};

export const noteText = (status, data) => TEXTS[status]?.(data) ?? format.words(status);

export function Note({ entry, at }) {
  const names = entry.status === "files" ? [...(entry.data.created ?? []), ...(entry.data.changed ?? [])] : [];
  return html`<div class=${classes("note", SERIOUS.has(entry.status) && "serious")}>
    <${Icon} name=${SERIOUS.has(entry.status) ? "warn" : entry.status === "files" ? "file" : "info"} />
    <span class="break">${noteText(entry.status, entry.data)}</span>
    ${names.slice(0, 6).map((name) => html`<button type="button" class="link-button" onClick=${() => at.show("files", { path: name })}><code>${format.visible(name)}</code></button>`)}
    ${names.length > 6 && html`<button type="button" class="link-button" onClick=${() => at.show("changes")}>${names.length - 6} more</button>`}
  </div>`;
}
