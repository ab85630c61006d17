// What the session has cost.

import { get, path } from "../../api.js";
import * as format from "../../format.js";
import { useLoad } from "../../hooks.js";
import { Budgets } from "../../parts/budgets.js";
import { Facts, Loaded } from "../../parts/states.js";
import { Table } from "../../parts/table.js";
import { html } from "../../view.js";

const COLUMNS = [
  { name: "Model", of: (row) => row.model },
  { name: "Runs", kind: "num", of: (row) => format.count(row.runs) },
  { name: "Read", kind: "num", of: (row) => format.short(format.tokens(row).read) },
  { name: "Written", kind: "num", of: (row) => format.short(row.output_tokens) },
  { name: "Cost", kind: "num", of: (row) => format.money(row.cost_usd) },
];

export function Spent({ id, session }) {
  const found = useLoad((signal) => get(path`/sessions/${id}/usage`, {}, signal), [id, session.total_cost_usd, session.num_turns]);
  return html`<${Loaded} from=${found}>${({ data, totals, unmeasured_runs: unmeasured, budgets }) => html`<div class="stack">
    <${Facts} rows=${[
      ["Cost", format.money(totals.cost_usd)],
      ["Runs", format.count(totals.runs)],
      ["Turns", format.count(session.num_turns)],
      ["Tokens read", format.count(totals.input_tokens)],
      ["… from the cache", format.count(totals.cache_read_input_tokens)],
      ["… into the cache", format.count(totals.cache_creation_input_tokens)],
      ["Tokens written", format.count(totals.output_tokens)],
    ]} />
    ${data.length > 0 && html`<${Table} label="Cost by model" columns=${COLUMNS} rows=${data} keyOf=${(row) => row.model} />`}
    ${unmeasured > 0 && html`<p class="small soft">${format.plural(unmeasured, "run")} ended without telling what ${unmeasured === 1 ? "it" : "they"} used.</p>`}
    <${Budgets} rows=${budgets} />
  </div>`}</>`;
}
