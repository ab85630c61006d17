import * as format from "../format.js";
import { html } from "../view.js";
import { Copy } from "./button.js";

const MOST = 200_000;

/** Text as it is, with a way to take it. */
export function Code({ text, label, copy = true, tall = false }) {
  const cut = text.length > MOST;
  return html`<div class=${tall ? "code tall" : "code"}>
    ${copy && html`<div class="code-copy"><${Copy} text=${text} label=${label ? `Copy ${label}` : "Copy"} /></div>`}
    <pre tabindex="0" role="group" aria-label=${label ?? "Code"}>${format.visible(cut ? text.slice(0, MOST) : text)}</pre>
    ${cut && html`<p class="quiet small">The rest is left out here: ${format.count(text.length - MOST)} more characters.</p>`}
  </div>`;
}

export function Json({ value, label = "JSON", ...more }) {
  return html`<${Code} ...${more} text=${typeof value === "string" ? value : format.json(value)} label=${label} />`;
}
