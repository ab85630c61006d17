// What is there, what is not, what is wrong, and how things stand.

import * as format from "../format.js";
import { useNow } from "../hooks.js";
import { classes, html, useEffect, useState } from "../view.js";
import { Button, Copy } from "./button.js";
import { Icon } from "./icon.js";

/** Shown only when it takes longer than a blink. */
export function Loading({ what = "Loading" }) {
  const [late, set] = useState(false);
  useEffect(() => {
    const timer = setTimeout(() => set(true), 150);
    return () => clearTimeout(timer);
  }, []);
  return html`<div class="loading" role="status">${late && html`<span class="spinner"></span>${what} …`}</div>`;
}

export function Empty({ icon = "info", title, children }) {
  return html`<div class="empty"><span class="empty-icon"><${Icon} name=${icon} size=${20} /></span>
    <p class="empty-title">${title}</p>${children && html`<div class="empty-text">${children}</div>`}</div>`;
}

/** An error with its code, its message and the id of the request, for whoever looks into the server's log. */
export function Failure({ error, retry, close }) {
  if (!error) return null;
  const listed = error.details?.errors ?? [];
  return html`<div class="failure" role="alert">
    <${Icon} name="warn" />
    <div class="grow">
      <p class="break"><code class="failure-code">${error.code ?? "failed"}</code> ${error.message}</p>
      ${listed.length > 1 && html`<ul>${listed.map((one) => html`<li class="break"><code>${one.field}</code> ${one.reason}</li>`)}</ul>`}
      ${error.requestId && html`<p class="failure-id small"><span class="break">Request <code>${error.requestId}</code></span><${Copy} text=${error.requestId} label="Copy the id of the request" /></p>`}
    </div>
    ${retry && html`<${Button} small onClick=${retry}>Try again</>`}
    ${close && html`<${Button} kind="quiet" small icon="close" label="Dismiss" onClick=${close} />`}
  </div>`;
}

/** What useLoad has: its error, that it is coming, or what is to be drawn of it. */
export function Loaded({ from, children, what }) {
  if (from.data === undefined) return from.error ? html`<${Failure} error=${from.error} retry=${from.reload} />` : html`<${Loading} what=${what} />`;
  return html`<${Failure} error=${from.error} retry=${from.reload} />${children(from.data)}`;
}

const TONES = {
  running: "busy", starting: "busy", pending: "busy", queued: "wait", deleting: "wait", draining: "wait",
  requires_action: "warn", open: "warn", degraded: "warn", suspended: "warn", disabled: "warn", accepted: "warn",
  succeeded: "good", delivered: "good", ok: "good", alive: "good", answered: "good", allow: "good", enabled: "good", active: "good", applied: "good", completed: "good",
  failed: "bad", unhealthy: "bad", deny: "bad", unavailable: "bad", dead: "bad", revoked: "bad", expired: "bad",
};

/** How something stands, as a word with a colour. */
export function Badge({ status, children }) {
  const tone = TONES[status] ?? "none";
  return html`<span class=${classes("badge", tone)}><span class=${classes("dot", (status === "running" || status === "starting") && "pulse")}></span>${children ?? format.words(status)}</span>`;
}

export function Tag({ children }) {
  return html`<span class="tag">${children}</span>`;
}

/** How long ago, and when exactly. */
export function Ago({ at }) {
  const now = useNow(10_000);
  return html`<time class="nowrap" datetime=${at} title=${format.time(at)}>${format.distance(at, now)}</time>`;
}

export function When({ at }) {
  return html`<time class="nowrap num" datetime=${at}>${format.time(at)}</time>`;
}

/** An id, shortened, with a way to take all of it. */
export function Id({ value, href, what = "id" }) {
  if (!value) return html`<span class="quiet">—</span>`;
  const text = html`<code title=${value}>${format.id(value)}</code>`;
  return html`<span class="id">${href ? html`<a href=${href}>${text}</a>` : text}<${Copy} text=${value} label=${`Copy the ${what}`} /></span>`;
}

/** Names and values. Rows without a value are left out. */
export function Facts({ rows }) {
  const shown = rows.filter(([, value]) => value !== undefined && value !== null && value !== "");
  return html`<dl class="facts">${shown.map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`;
}

/** How much of something is used. */
export function Meter({ used, limit, label }) {
  const share = limit > 0 ? Math.min(used / limit, 1) : 0;
  return html`<span class="meter" role="meter" aria-label=${label} aria-valuemin="0" aria-valuemax=${limit} aria-valuenow=${Math.min(used, limit)}>
    <span class=${classes("meter-bar", share >= 1 ? "bad" : share > 0.8 && "warn")} style=${{ width: `${share * 100}%` }}></span></span>`;
}
