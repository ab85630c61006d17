import * as format from "../format.js";
import { html } from "../view.js";
import { Ago, Meter } from "./states.js";

/** Money has names of its own: `limit_usd` is text, `limit` a number. */
function figures(row) {
  if (row.limit_usd !== undefined && row.limit_usd !== null) return { limit: row.limit_usd, used: row.used_usd, say: format.money };
  return { limit: row.limit, used: row.used, say: /bytes/.test(row.name) ? format.bytes : format.count };
}

/** Budgets and limits: how much of each is used. */
export function Budgets({ rows: told, title = "Budgets" }) {
  if (!told?.length) return null;
  const rows = told.map((row) => ({ ...row, ...figures(row) }));
  return html`<section class="stack tight" aria-label=${title}><h2>${title}</h2><ul class="lines">${rows.map((row) => html`<li class="budget">
    <div class="row between"><span>${format.words(row.name)} <span class="quiet small">of the ${row.scope}</span></span>
      <span class="num small">${row.used === null || row.used === undefined ? "" : `${row.say(row.used)} of `}${Array.isArray(row.limit) ? row.limit.join(", ") : row.say(row.limit)}</span></div>
    ${!Array.isArray(row.limit) && row.used !== null && row.used !== undefined && html`<${Meter} used=${Number(row.used)} limit=${Number(row.limit)} label=${format.words(row.name)} />`}
    ${row.resets_at && html`<p class="small quiet">Begins anew <${Ago} at=${row.resets_at} /></p>`}
  </li>`)}</ul></section>`;
}
