// Keys of all tenants: for administrators.

import { all, call, path, post } from "../api.js";
import { account } from "../auth.js";
import * as format from "../format.js";
import { useLoad, usePages, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { FormDialog } from "../parts/dialog.js";
import { Check, Select, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Secret } from "../parts/secret.js";
import { Ago, Badge, Empty } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { setQuery, usePlace } from "../router.js";
import { useStore } from "../store.js";
import { html, useState } from "../view.js";
import { fromTexts, Limits, toTexts } from "./limits.js";

const SCOPES = [["read", "read: look at everything of the tenant"], ["write", "write: run agents, change things"], ["admin", "admin: tenants and keys of the whole server"]];

const stateOf = (key) => (key.revoked_at ? "revoked" : key.expires_at && Date.parse(key.expires_at) < Date.now() ? "expired" : "active");

export function useTenants() {
  const found = useLoad((signal) => all("/admin/tenants", { limit: 200 }, { signal }));
  return found.data ?? [];
}

export function Keys() {
  const { query } = usePlace();
  const tenant = query.get("tenant") ?? "";
  const tenants = useTenants();
  const own = useStore(account)?.key_id;
  const list = usePages("/admin/keys", { tenant, limit: 50 });
  const [asked, ask] = useState(null);
  const close = () => ask((now) => (now === asked ? null : now));
  useTitle("Keys");
  const columns = [
    { name: "Key", of: (row) => html`<span class="break">${row.name}</span><p class="small quiet"><code>${row.prefix}…</code>${row.key_id === own && " this one"}</p>` },
    { name: "Tenant", of: (row) => html`<span class="soft break">${row.tenant}</span>` },
    { name: "Status", of: (row) => html`<${Badge} status=${stateOf(row)} />` },
    { name: "Scopes", wide: true, of: (row) => html`<span class="soft small">${row.scopes.join(", ")}${row.profiles && html`<br />profiles: ${row.profiles.join(", ")}`}${row.networks && html`<br />networks: ${row.networks.join(", ")}`}</span>` },
    { name: "Last used", kind: "num", wide: true, of: (row) => html`<span class="soft">${row.last_used_at ? html`<${Ago} at=${row.last_used_at} />` : "never"}</span>` },
    { name: "Actions", kind: "end", of: (row) => !row.revoked_at && html`<span class="row"><${Button} small kind="quiet" icon="edit" label=${`Edit ${row.name}`} onClick=${() => ask({ kind: "edit", row })} /><${Button} small kind="quiet" icon="refresh" label=${`Rotate ${row.name}`} onClick=${() => ask({ kind: "rotate", row })} /><${Button} small kind="quiet" icon="close" label=${`Revoke ${row.name}`} onClick=${() => ask({ kind: "revoke", row })} /></span>` },
  ];
  return html`<${Page} title="Keys" actions=${html`<${Button} kind="primary" icon="plus" onClick=${() => ask({ kind: "edit" })}>New key</>`}>
    <div class="filters"><${Select} label="Tenant" none="All" value=${tenant} set=${(value) => setQuery({ tenant: value })} options=${tenants.map((one) => one.name)} /></div>
    <${Pages} from=${list} columns=${columns} label="Keys" keyOf=${(row) => row.key_id} dim=${(row) => row.revoked_at} empty=${html`<${Empty} icon="key" title="No keys" />`} />
    ${asked?.kind === "edit" && html`<${Edit} row=${asked.row} tenants=${tenants} tenant=${tenant} close=${close} saved=${(made) => (list.reload(), made.secret && ask({ kind: "secret", made }))} />`}
    ${asked?.kind === "rotate" && html`<${Rotate} row=${asked.row} close=${close} saved=${(made) => (list.reload(), ask({ kind: "secret", made }))} />`}
    ${asked?.kind === "revoke" && html`<${FormDialog} title="Revoke the key" action="Revoke" kind="danger" close=${close} submit=${async () => (await post(path`/admin/keys/${asked.row.key_id}/revoke`), list.reload())}>
      <p class="break"><strong>${asked.row.name}</strong> of ${asked.row.tenant}</p><p class="soft">It is refused from now on, for good. What it has started goes on.</p>
      ${asked.row.key_id === own && html`<p class="bad-text">This is the key that you are signed in with.</p>`}</>`}
    ${asked?.kind === "secret" && html`<${Secret} title=${`The secret of ${asked.made.name}`} value=${asked.made.secret} close=${close}>${asked.made.previous_expires_at && `The old one is valid until ${format.time(asked.made.previous_expires_at)}.`}</>`}
  </>`;
}

const list = (text) => {
  const found = text.split(",").map((one) => one.trim()).filter(Boolean);
  return found.length ? found : null;
};

function Edit({ row, tenants, tenant, close, saved }) {
  const [form, set] = useState({ tenant: tenant || tenants[0]?.name || "", name: row?.name ?? "", scopes: row?.scopes ?? ["write", "read"], profiles: row?.profiles?.join(", ") ?? "", networks: row?.networks?.join(", ") ?? "", expires: row?.expires_at?.slice(0, 10) ?? "" });
  const [limits, setLimits] = useState(toTexts(row?.limits));
  const field = (name) => ({ value: form[name], set: (value) => set({ ...form, [name]: value }) });
  const submit = async () => {
    const expires = form.expires && form.expires !== row?.expires_at?.slice(0, 10) ? `${form.expires}T23:59:59Z` : (form.expires && row?.expires_at) || null;
    const body = { name: form.name, scopes: form.scopes, profiles: list(form.profiles), networks: list(form.networks), limits: fromTexts(limits), expires_at: expires };
    saved(row ? await call("PATCH", path`/admin/keys/${row.key_id}`, { body }) : await post("/admin/keys", { tenant: form.tenant, ...body }));
  };
  return html`<${FormDialog} title=${row ? "Edit the key" : "New key"} action="Save" close=${close} submit=${submit} disabled=${!form.name || !form.scopes.length || (!row && !form.tenant)} wide>
    <div class="fields">
      ${!row && html`<${Select} ...${field("tenant")} label="Tenant" options=${tenants.map((one) => one.name)} />`}
      <${Text} ...${field("name")} label="Name" required />
      <${Text} ...${field("expires")} label="Expires after" type="date" hint="Empty: never" />
    </div>
    <fieldset class="options"><legend>Scopes</legend>${SCOPES.map(([scope, text]) => html`<${Check} label=${text} value=${form.scopes.includes(scope)} set=${(on) => set({ ...form, scopes: SCOPES.map(([one]) => one).filter((one) => (one === scope ? on : form.scopes.includes(one))) })} />`)}</fieldset>
    <div class="fields">
      <${Text} ...${field("profiles")} label="Profiles" hint="The default first, with commas between. Empty: any." />
      <${Text} ...${field("networks")} label="Networks" hint="Such as 10.1.0.0/16, with commas between. Empty: any." />
    </div>
    <details class="more"><summary>Limits</summary><${Limits} texts=${limits} set=${setLimits} /></details>
  </>`;
}

const OVERLAPS = [["0", "not at all"], ["3600", "an hour"], ["86400", "a day"], ["604800", "a week"]];

function Rotate({ row, close, saved }) {
  const [overlap, set] = useState("3600");
  return html`<${FormDialog} title="Rotate the key" action="Rotate" close=${close} submit=${async () => saved(await post(path`/admin/keys/${row.key_id}/rotate`, { overlap_seconds: Number(overlap) }))}>
    <p class="break"><strong>${row.name}</strong> gets a new secret, which is shown once.</p>
    <${Select} label="The old one is valid for" value=${overlap} set=${set} options=${OVERLAPS} />
  </>`;
}
