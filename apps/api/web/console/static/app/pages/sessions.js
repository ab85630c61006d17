// All sessions of the tenant, the newest first.

import { useMay } from "../auth.js";
import * as format from "../format.js";
import { usePages, usePoll, useSettled, useTitle } from "../hooks.js";
import { ButtonLink, Button } from "../parts/button.js";
import { Select, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Ago, Badge, Empty } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { navigate, to, usePlace } from "../router.js";
import { html, useEffect, useState } from "../view.js";

const STATUS = [["running", "Running"], ["requires_action", "Requires action"], ["queued", "Queued"], ["idle", "Idle"]];
const FILTERS = ["search", "status", "tag", "agent"];

const COLUMNS = [
  { name: "Session", of: (row) => html`<a class="row-link" href=${to(`/sessions/${row.session_id}`)}><span class="clip-2">${format.sessionTitle(row)}</span></a>
      <span class="small quiet row wrap">${row.title && html`<code>${format.id(row.session_id)}</code>`}${row.tags.map((tag) => html`<span class="tag">${tag}</span>`)}</span>` },
  { name: "Status", of: (row) => html`<${Badge} status=${row.status} />${row.queued_runs > 0 && html` <span class="small quiet nowrap">+${row.queued_runs} queued</span>`}` },
  { name: "Agent", wide: true, of: (row) => html`<span class="soft">${row.agent ? `${row.agent.name}@${row.agent.version}` : row.model}</span>` },
  { name: "Turns", kind: "num", wide: true, of: (row) => format.count(row.num_turns) },
  { name: "Cost", kind: "num", of: (row) => format.money(row.total_cost_usd) },
  { name: "Last active", kind: "num", of: (row) => html`<span class="soft"><${Ago} at=${row.last_active_at} /></span>` },
];

export function Sessions() {
  const { query } = usePlace();
  const writes = useMay("write");
  const given = Object.fromEntries(FILTERS.map((name) => [name, query.get(name) ?? ""]));
  const [typed, type] = useState(given);
  const settled = useSettled(typed, 300);
  // Only what was typed: whoever has clicked on a link meanwhile is not led back.
  useEffect(() => {
    if (FILTERS.some((name) => given[name] !== settled[name])) navigate("/sessions", settled, { replace: true });
  }, [settled]);
  // Somebody has followed a link to another choice.
  useEffect(() => {
    if (FILTERS.some((name) => given[name] !== settled[name])) type(given);
  }, [query]);
  useTitle("Sessions");
  const list = usePages("/sessions", { ...settled, limit: 50 });
  usePoll(list.refresh, 4000);
  const filtered = FILTERS.some((name) => typed[name]);
  const field = (name) => ({ value: typed[name], set: (value) => type({ ...typed, [name]: value }) });
  const none = filtered
    ? html`<${Empty} icon="sessions" title="No session is like that"><${Button} small onClick=${() => type(Object.fromEntries(FILTERS.map((name) => [name, ""])))}>Clear the filters</></>`
    : html`<${Empty} icon="sessions" title="No sessions yet">${writes ? html`<p>A session is a conversation with an agent, and the files it works on.</p><${ButtonLink} kind="primary" icon="plus" href=${to("/new")}>Start a session</>` : "Sessions of this tenant are listed here."}</>`;
  return html`<${Page} title="Sessions" actions=${writes && html`<${ButtonLink} kind="primary" icon="plus" href=${to("/new")}>New session</>`}>
    <div class="filters" role="search">
      <${Text} ...${field("search")} label="Title" type="search" placeholder="Part of the title" />
      <${Select} ...${field("status")} label="Status" none="Any" options=${STATUS} />
      <${Text} ...${field("tag")} label="Tag" placeholder="Any" />
      <${Text} ...${field("agent")} label="Preset" placeholder="Any" />
    </div>
    <${Pages} from=${list} columns=${COLUMNS} label="Sessions" keyOf=${(row) => row.session_id} empty=${none} />
  </>`;
}
