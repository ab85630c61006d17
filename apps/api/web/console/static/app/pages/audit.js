// Who has changed what: for administrators.

import * as format from "../format.js";
import { usePages, useSettled, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { Json } from "../parts/code.js";
import { Dialog } from "../parts/dialog.js";
import { Select, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Empty, When } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { setQuery, usePlace } from "../router.js";
import { html, useState } from "../view.js";
import { useTenants } from "./keys.js";

const ACTIONS = [
  ..."tenant.created tenant.suspended tenant.resumed tenant.limited tenant.retention tenant.exported tenant.imported tenant.deleted tenant.removed".split(" "),
  ..."key.created key.changed key.rotated key.revoked model_credential.put model_credential.deleted secret.put secret.deleted".split(" "),
  ..."mcp_server.put mcp_server.deleted preset.created preset.changed preset.deleted preset.archived environment.created environment.changed environment.archived environment.deleted vault.created vault.changed vault.archived vault.deleted credential.put credential.archived credential.deleted skill.put skill.deleted command.put command.deleted".split(" "),
  ..."webhook.created webhook.changed webhook.rotated webhook.deleted request.answered run.repaired session.deleted session.exported session.imported".split(" "),
];

export function Audit() {
  const { query } = usePlace();
  const given = (name) => query.get(name) ?? "";
  const [actor, type] = useState(given("actor"));
  const settled = useSettled(actor.trim(), 400);
  const tenants = useTenants();
  const day = (name, time) => (given(name) ? `${given(name)}T${time}Z` : "");
  const list = usePages("/admin/audit", { tenant: given("tenant"), action: given("action"), actor: settled, since: day("since", "00:00:00"), until: day("until", "23:59:59"), limit: 50 });
  const [shown, show] = useState(null);
  useTitle("Audit");
  const columns = [
    { name: "When", of: (row) => html`<${When} at=${row.created_at} />` },
    { name: "Action", of: (row) => html`<code>${row.action}</code>` },
    { name: "Of", of: (row) => html`<span class="soft break">${row.tenant ?? format.id(row.tenant_id)}</span><p class="small quiet break">${row.details?.name ?? row.target}</p>` },
    { name: "By", wide: true, of: (row) => html`<span class="break">${row.actor.key_name ?? row.actor.type}</span><p class="small quiet">${row.actor.address}</p>` },
    { name: "Details", kind: "end", of: (row) => html`<${Button} small kind="quiet" icon="info" label="All of the line" onClick=${() => show(row)} />` },
  ];
  const field = (name) => ({ value: given(name), set: (value) => setQuery({ [name]: value }) });
  return html`<${Page} title="Audit">
    <div class="filters five" role="search">
      <${Select} ...${field("tenant")} label="Tenant" none="All" options=${tenants.map((one) => one.name)} />
      <${Select} ...${field("action")} label="Action" none="All" options=${ACTIONS} />
      <${Text} label="By" value=${actor} set=${type} placeholder="A key's id, cli, system" spellcheck="false" />
      <${Text} ...${field("since")} label="Since" type="date" />
      <${Text} ...${field("until")} label="Until" type="date" />
    </div>
    <${Pages} from=${list} columns=${columns} label="Lines of the audit log" keyOf=${(row) => row.line_id} empty=${html`<${Empty} icon="audit" title="No line is like that" />`} />
    ${shown && html`<${Dialog} title=${shown.action} close=${() => show(null)} wide><${Json} value=${shown} label="the line" tall /></>`}
  </>`;
}
