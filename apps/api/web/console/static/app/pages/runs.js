// Runs of all sessions, the newest first: what has become of each prompt.

import * as format from "../format.js";
import { usePages, usePoll, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { Select, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Ago, Badge, Empty, Id } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { setQuery, to, usePlace } from "../router.js";
import { html } from "../view.js";
import { usePresets } from "./options.js";

const STATUS = ["queued", "running", "requires_action", "succeeded", "failed", "interrupted"].map((status) => [status, format.words(status)]);
const FILTERS = ["status", "agent", "since", "until"];

const took = (row) => (row.started_at && row.finished_at ? format.duration(Date.parse(row.finished_at) - Date.parse(row.started_at)) : "");

const COLUMNS = [
  { name: "Run", of: (row) => html`<${Id} value=${row.run_id} href=${to(`/sessions/${row.session_id}`, { event: row.first_seq })} what="run's id" />${row.kind !== "prompt" && html` <span class="tag">${row.kind}</span>`}` },
  { name: "Status", of: (row) => html`<${Badge} status=${row.status} />${row.error && html`<p class="small quiet break"><code>${row.error.code}</code></p>`}` },
  { name: "Session", wide: true, of: (row) => html`<a href=${to(`/sessions/${row.session_id}`)}><code>${format.id(row.session_id)}</code></a>` },
  { name: "What it said", wide: true, of: (row) => html`<span class="clip-2 soft small">${row.result?.result ?? row.error?.message}</span>` },
  { name: "Took", kind: "num", wide: true, of: took },
  { name: "Cost", kind: "num", of: (row) => format.money(row.total_cost_usd) },
  { name: "Asked", kind: "num", of: (row) => html`<span class="soft"><${Ago} at=${row.created_at} /></span>` },
];

export function Runs() {
  const { query } = usePlace();
  const given = (name) => query.get(name) ?? "";
  const presets = usePresets();
  const day = (name, time) => (given(name) ? `${given(name)}T${time}Z` : "");
  const list = usePages("/runs", { status: given("status"), agent: given("agent"), created_after: day("since", "00:00:00"), created_before: day("until", "23:59:59"), limit: 50 });
  usePoll(list.refresh, 4000);
  useTitle("Runs");
  const field = (name) => ({ value: given(name), set: (value) => setQuery({ [name]: value }) });
  const none = FILTERS.some(given)
    ? html`<${Empty} icon="play" title="No run is like that"><${Button} small onClick=${() => setQuery(Object.fromEntries(FILTERS.map((name) => [name, ""])))}>Clear the filters</></>`
    : html`<${Empty} icon="play" title="No runs yet">A run is what an agent does with one prompt.</>`;
  return html`<${Page} title="Runs">
    <div class="filters" role="search">
      <${Select} ...${field("status")} label="Status" none="Any" options=${STATUS} />
      <${Select} ...${field("agent")} label="Preset" none="Any" options=${presets.map((preset) => preset.name)} />
      <${Text} ...${field("since")} label="Since" type="date" />
      <${Text} ...${field("until")} label="Until" type="date" />
    </div>
    <${Pages} from=${list} columns=${COLUMNS} label="Runs" keyOf=${(row) => row.run_id} empty=${none} />
  </>`;
}
