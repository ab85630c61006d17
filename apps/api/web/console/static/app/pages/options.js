// Options of an agent, as fields of a form: for a new session, and for presets.

import { all, get } from "../api.js";
import { useLoad } from "../hooks.js";
import { Area, Check, Select, Text } from "../parts/field.js";
import { html } from "../view.js";

export const MODES = [
  ["default", "default: a person is asked"],
  ["acceptEdits", "acceptEdits: files may be changed"],
  ["plan", "plan: only looks"],
  ["dontAsk", "dontAsk: what no rule allows is refused"],
  ["auto", "auto: the model's API judges"],
  ["bypassPermissions", "bypassPermissions: everything runs"],
];

const EFFORTS = ["low", "medium", "high", "xhigh", "max"];

/** Names of models that the server offers. */
export function useModels() {
  const found = useLoad((signal) => get("/models", {}, signal));
  return found.data?.data.map((model) => model.model) ?? [];
}

export function useProfiles() {
  const found = useLoad((signal) => get("/profiles", {}, signal));
  return found.data?.data.filter((profile) => profile.usable) ?? [];
}

export function usePresets() {
  const found = useLoad((signal) => all("/agents", { limit: 200 }, { signal }));
  return found.data ?? [];
}

const TEXTS = ["model", "fallback_model", "permission_mode", "effort", "system_prompt", "system_prompt_append"];
const LISTS = ["tools", "allowed_tools", "ask_tools", "disallowed_tools"];
const NUMBERS = ["max_turns", "max_budget_usd", "max_session_usd"];
const FLAGS = ["unattended", "enable_file_checkpointing"];

const EMPTY = Object.fromEntries([...TEXTS, ...LISTS, ...NUMBERS].map((name) => [name, ""]));

/** Options → what is in the fields; those without a field are JSON in `more`. */
export function toForm(config = {}) {
  const form = { ...EMPTY, more: "" };
  const rest = {};
  for (const [name, value] of Object.entries(config)) {
    if (value === null) continue;
    if (TEXTS.includes(name)) form[name] = value;
    else if (LISTS.includes(name)) form[name] = value.length ? value.join("\n") : "(none)";
    else if (NUMBERS.includes(name)) form[name] = String(value);
    else if (FLAGS.includes(name)) form[name] = value;
    else rest[name] = value;
  }
  if (Object.keys(rest).length) form.more = JSON.stringify(rest, null, 2);
  return form;
}

/** What is in the fields → { config, wrong }: `wrong` says by field what cannot be read. */
export function fromForm(form) {
  const config = {};
  const wrong = {};
  for (const name of TEXTS) if (form[name]) config[name] = form[name];
  for (const name of LISTS) {
    const text = form[name].trim();
    if (text === "(none)") config[name] = [];
    else if (text) config[name] = text.split("\n").map((line) => line.trim()).filter(Boolean);
  }
  for (const name of NUMBERS) {
    if (!form[name]) continue;
    config[name] = Number(form[name]);
    if (Number.isNaN(config[name])) wrong[name] = "This is not a number.";
  }
  for (const name of FLAGS) if (form[name] !== undefined) config[name] = form[name];
  if (form.more.trim()) {
    try {
      const more = JSON.parse(form.more);
      if (typeof more !== "object" || more === null || Array.isArray(more)) wrong.more = "This is not a JSON object.";
      else Object.assign(config, more);
    } catch (error) {
      wrong.more = `This is not JSON: ${error.message}`;
    }
  }
  return { config, wrong };
}

/**
 * The fields.
 *
 * @param wrong by field, what is wrong with it.
 */
export function Options({ form, set, wrong, models }) {
  const field = (name) => ({ value: form[name], set: (value) => set({ ...form, [name]: value }), error: wrong[name] });
  return html`
    <div class="fields">
      <${Select} ...${field("model")} label="Model" none="the server's default" options=${models} />
      <${Select} ...${field("permission_mode")} label="Permission mode" none="the default" options=${MODES} />
    </div>
    <${Area} ...${field("system_prompt_append")} label="Added to the system prompt" rows="2" />
    <details class="more"><summary>Tools and rules</summary><div class="stack tight">
      <${Area} ...${field("tools")} label="Tools that exist" hint="A line each. Empty: the usual ones. (none): none." rows="3" class="mono" spellcheck="false" placeholder="Read" />
      <${Area} ...${field("allowed_tools")} label="What runs without asking" hint="A rule each line, such as Bash(git status:*)" rows="2" class="mono" spellcheck="false" />
      <${Area} ...${field("ask_tools")} label="What always waits for a person" rows="2" class="mono" spellcheck="false" />
      <${Area} ...${field("disallowed_tools")} label="What never runs" rows="2" class="mono" spellcheck="false" />
      <${Check} value=${Boolean(form.unattended)} set=${(value) => set({ ...form, unattended: value || undefined })} label="Nobody is there to be asked (unattended)" />
    </div></details>
    <details class="more"><summary>Limits and the rest</summary><div class="stack tight">
      <div class="fields">
        <${Text} ...${field("max_turns")} label="Most turns per prompt" inputmode="numeric" />
        <${Text} ...${field("max_session_usd")} label="Most USD of the session" inputmode="decimal" />
        <${Text} ...${field("max_budget_usd")} label="Most USD of one process" inputmode="decimal" />
        <${Select} ...${field("effort")} label="Effort" none="the model's own" options=${EFFORTS} />
        <${Select} ...${field("fallback_model")} label="If the model is overloaded" none="no other model" options=${models} />
      </div>
      <${Check} value=${Boolean(form.enable_file_checkpointing)} set=${(value) => set({ ...form, enable_file_checkpointing: value || undefined })} label="Keep checkpoints of files, for rewinds" />
      <${Area} ...${field("system_prompt")} label="System prompt, in place of the agent's own" rows="2" />
      <${Area} ...${field("more")} label="Other options, as a JSON object" rows="4" class="mono" spellcheck="false" placeholder='{"mcp_servers": {}, "env": {}}' />
    </div></details>`;
}
