import * as format from "../format.js";
import { html } from "../view.js";
import { Ago, Meter } from "./states.js";

const amount = (name, value) => (/usd/.test(name) ? format.money(value) : /bytes/.test(name) ? format.bytes(value) : format.count(Number(value)));

/** Money has names of its own: `limit_usd` is text, `limit` a number. */
const figures = (row) => ({ limit: row.limit_usd ?? row.limit, used: row.used_usd ?? row.used });

/** Budgets and limits: how much of each is used. */
export function Budgets({ rows: told, title = "Budgets" }) {
  if (!told?.length) return null;
  const rows = told.map((row) => ({ ...row, ...figures(row) }));
  return html`<section class="stack tight" aria-label=${title}><h2>${title}</h2><ul class="lines">${rows.map((row) => html`<li class="budget">
    <div class="row between"><span>${format.words(row.name)} <span class="quiet small">of the ${row.scope}</span></span>
      <span class="num small">${row.used === null || row.used === undefined ? "" : `${amount(row.name, row.used)} of `}${Array.isArray(row.limit) ? row.limit.join(", ") : amount(row.name, row.limit)}</span></div>
    ${!Array.isArray(row.limit) && row.used !== null && row.used !== undefined && html`<${Meter} used=${Number(row.used)} limit=${Number(row.limit)} label=${format.words(row.name)} />`}
    ${row.resets_at && html`<p class="small quiet">Begins anew <${Ago} at=${row.resets_at} /></p>`}
  </li>`)}</ul></section>`;
}
