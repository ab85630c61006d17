// Limits of keys and tenants, as fields of a form.

import { Text } from "../parts/field.js";
import { html } from "../view.js";

const LIMITS = [
  ["runs_per_minute", "Prompts per minute"],
  ["concurrent_runs", "Runs at a time"],
  ["queued_runs", "Runs that wait"],
  ["live_sessions", "Sessions with a process"],
  ["streams", "Streams per instance"],
  ["workspace_bytes", "Bytes of workspaces"],
  ["file_bytes", "Bytes of uploaded files"],
  ["usd_per_day", "USD per day"],
  ["usd_per_month", "USD per month"],
  ["tokens_per_day", "Tokens per day"],
  ["tokens_per_month", "Tokens per month"],
];

/** Limits → texts of the fields. */
export function toTexts(limits = {}) {
  const texts = Object.fromEntries(LIMITS.map(([name]) => [name, limits[name] === null || limits[name] === undefined ? "" : String(limits[name])]));
  return { ...texts, models: limits.models?.join(", ") ?? "" };
}

/** Texts → limits; what is empty is no limit. Throws what says which is no number. */
export function fromTexts(texts) {
  const limits = {};
  for (const [name, label] of LIMITS) {
    if (!texts[name].trim()) continue;
    limits[name] = Number(texts[name]);
    if (Number.isNaN(limits[name])) throw Object.assign(new Error(`${label}: "${texts[name]}" is not a number.`), { code: name });
  }
  const models = texts.models.split(",").map((model) => model.trim()).filter(Boolean);
  if (models.length) limits.models = models;
  return limits;
}

export function Limits({ texts, set }) {
  return html`<div class="fields">
    ${LIMITS.map(([name, label]) => html`<${Text} label=${label} value=${texts[name]} set=${(value) => set({ ...texts, [name]: value })} inputmode="decimal" placeholder="no limit" />`)}
    <${Text} label="Models" wide value=${texts.models} set=${(value) => set({ ...texts, models: value })} placeholder="all; or names with commas between" />
  </div>`;
}
