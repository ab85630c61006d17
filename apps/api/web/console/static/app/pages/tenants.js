// Tenants, with their limits and how long their data is kept: for administrators.

import { call, get, path, post } from "../api.js";
import { account } from "../auth.js";
import * as format from "../format.js";
import { useAction, useLoad, usePages, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { FormDialog } from "../parts/dialog.js";
import { Choice, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Ago, Badge, Empty, Facts, Failure, Id, Loaded } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { toast } from "../parts/toast.js";
import { navigate, to } from "../router.js";
import { useStore } from "../store.js";
import { html, useEffect, useState } from "../view.js";
import { fromTexts, Limits, toTexts } from "./limits.js";

const stateOf = (tenant) => (tenant.deleting_at ? "deleting" : tenant.suspended_at ? "suspended" : "active");

const COLUMNS = [
  { name: "Tenant", of: (row) => html`<a class="row-link" href=${to(`/tenants/${encodeURIComponent(row.name)}`)}>${row.name}</a>` },
  { name: "Status", of: (row) => html`<${Badge} status=${stateOf(row)} />` },
  { name: "Keys", kind: "num", of: (row) => html`<a href=${to("/keys", { tenant: row.name })}>${format.count(row.keys)}</a>` },
  { name: "Made", kind: "num", of: (row) => html`<span class="soft"><${Ago} at=${row.created_at} /></span>` },
];

export function Tenants() {
  const list = usePages("/admin/tenants", { limit: 50 });
  const [making, make] = useState(false);
  const [name, setName] = useState("");
  useTitle("Tenants");
  const submit = async () => {
    await post("/admin/tenants", { name });
    navigate(`/tenants/${encodeURIComponent(name)}`);
  };
  return html`<${Page} title="Tenants" actions=${html`<${Button} kind="primary" icon="plus" onClick=${() => make(true)}>New tenant</>`}>
    <${Pages} from=${list} columns=${COLUMNS} label="Tenants" keyOf=${(row) => row.tenant_id} empty=${html`<${Empty} icon="tenant" title="No tenants" />`} />
    ${making && html`<${FormDialog} title="New tenant" action="Make" close=${() => make(false)} submit=${submit} disabled=${!name}><${Text} label="Name" wide value=${name} set=${setName} spellcheck="false" /></>`}
  </>`;
}

export function Tenant({ name }) {
  const at = path`/admin/tenants/${name}`;
  const found = useLoad((signal) => get(at, {}, signal), [name]);
  const own = useStore(account)?.tenant === name;
  const [asked, ask] = useState("");
  const [act, { busy, error, clear }] = useAction(async (what) => {
    await post(`${at}/${what}`);
    found.reload();
  });
  useTitle(name);
  const tenant = found.data;
  const back = html`<a class="crumb" href=${to("/tenants")}>Tenants</a>`;
  return html`<${Page} title=${name} back=${back} actions=${tenant && !own && !tenant.deleting_at && html`
      ${tenant.suspended_at ? html`<${Button} busy=${busy} onClick=${() => act("resume")}>Resume</>` : html`<${Button} busy=${busy} onClick=${() => ask("suspend")}>Suspend</>`}
      <${Button} kind="danger" icon="trash" onClick=${() => ask("delete")}>Delete</>`}>
    <${Failure} error=${error} close=${clear} />
    <${Loaded} from=${found}>${(shown) => html`<${Facts} rows=${[
      ["Status", html`<${Badge} status=${stateOf(shown)} />`], ["Keys", html`<a href=${to("/keys", { tenant: name })}>${format.plural(shown.keys, "key")}</a>`],
      ["Made", format.time(shown.created_at)], ["Suspended", shown.suspended_at && format.time(shown.suspended_at)], ["Id", html`<${Id} value=${shown.tenant_id} what="tenant's id" />`],
    ]} />
    <div class="halves"><${TenantLimits} at=${at} /><div class="stack"><${Retention} at=${at} /><${Credential} at=${at} /></div></div>`}</>
    ${asked === "suspend" && html`<${FormDialog} title="Suspend the tenant" action="Suspend" kind="danger" close=${() => ask("")} submit=${async () => (await post(`${at}/suspend`), found.reload())}><p>Its keys are refused, its runs are ended, and nothing new starts. Nothing is removed: it can be resumed.</p></>`}
    ${asked === "delete" && html`<${Delete} name=${name} at=${at} close=${() => ask("")} done=${found.reload} />`}
  </>`;
}

function Delete({ name, at, close, done }) {
  const [typed, type] = useState("");
  const submit = async () => {
    const { status } = await call("DELETE", at);
    toast(status === "deleted" ? `${name} was deleted.` : `${name} is being deleted.`);
    if (status === "deleted") navigate("/tenants");
    else done();
  };
  return html`<${FormDialog} title="Delete the tenant" action="Delete for good" kind="danger" close=${close} submit=${submit} disabled=${typed !== name}>
    <p>Its keys, sessions, files, usage and all else are removed. There is no way back.</p>
    <${Text} label=${`Write ${name} to go on`} wide value=${typed} set=${type} autocomplete="off" spellcheck="false" />
  </>`;
}

/** A form of values that are loaded first, and saved as a whole. */
function Values({ title, load, save, fields, hint }) {
  const found = useLoad(load);
  const [texts, set] = useState(null);
  useEffect(() => set(found.data ?? null), [found.data]);
  const [run, { busy, error }] = useAction(async () => {
    await save(texts);
    toast("Saved.");
    found.reload();
  });
  const submit = (event) => {
    event.preventDefault();
    run();
  };
  return html`<section class="card stack tight" aria-label=${title}><h2>${title}</h2>${hint && html`<p class="hint">${hint}</p>`}
    <${Loaded} from=${found}>${() => texts && html`<form class="stack tight" onSubmit=${submit}>${fields(texts, set)}<${Failure} error=${error} /><div><${Button} type="submit" kind="primary" busy=${busy}>Save</></div></form>`}</>
  </section>`;
}

function TenantLimits({ at }) {
  return html`<${Values} title="Limits" hint="For all keys of the tenant together. Empty: no limit."
    load=${async (signal) => toTexts((await get(`${at}/limits`, {}, signal)).limits)} save=${(texts) => call("PUT", `${at}/limits`, { body: fromTexts(texts) })}
    fields=${(texts, set) => html`<${Limits} texts=${texts} set=${set} />`} />`;
}

const KEPT = [["events_days", "Events"], ["transcripts_days", "What agents remember"], ["workspaces_days", "Files"], ["idle_sessions_days", "Idle sessions"], ["usage_days", "Usage"]];

function Retention({ at }) {
  const load = async (signal) => {
    const { retention } = await get(`${at}/retention`, {}, signal);
    return Object.fromEntries(KEPT.map(([name]) => [name, retention[name] === undefined ? "" : retention[name] === null ? "ever" : String(retention[name])]));
  };
  const save = (texts) => {
    const body = {};
    for (const [name, label] of KEPT) {
      const text = texts[name].trim();
      if (!text) continue;
      body[name] = text === "ever" ? null : Number(text);
      if (Number.isNaN(body[name])) throw Object.assign(new Error(`${label}: write a number of days, "ever", or nothing.`), { code: name });
    }
    return call("PUT", `${at}/retention`, { body });
  };
  return html`<${Values} title="Kept for" hint='Days, or "ever". Empty: as the server has it.' load=${load} save=${async (texts) => save(texts)}
    fields=${(texts, set) => html`<div class="fields">${KEPT.map(([name, label]) => html`<${Text} label=${label} value=${texts[name]} set=${(value) => set({ ...texts, [name]: value })} placeholder="as the server" />`)}</div>`} />`;
}

function Credential({ at }) {
  const found = useLoad(async (signal) => {
    try {
      return await get(`${at}/model-credential`, {}, signal);
    } catch (error) {
      if (error.code === "model_credential_not_found") return { kind: null };
      throw error;
    }
  });
  const [kind, choose] = useState("api_key");
  const [value, set] = useState("");
  const [run, { busy, error }] = useAction(async (work) => {
    await work();
    set("");
    found.reload();
  });
  const submit = (event) => {
    event.preventDefault();
    run(() => call("PUT", `${at}/model-credential`, { body: { [kind]: value } }));
  };
  return html`<section class="card stack tight" aria-label="Model credential"><h2>Model credential of its own</h2>
    <${Loaded} from=${found}>${(state) => html`<p class="soft">${state.kind ? html`${format.words(state.kind)}, set <${Ago} at=${state.updated_at} />` : "None: its calls use the server's."}</p>
      <form class="stack tight" onSubmit=${submit}>
        <${Choice} label="Kind" value=${kind} set=${choose} options=${[["api_key", "API key"], ["auth_token", "Token"]]} />
        <${Text} label="Value" type="password" wide value=${value} set=${set} autocomplete="off" hint="It is encrypted, and never shown again." />
        <${Failure} error=${error} />
        <div class="row wrap"><${Button} type="submit" busy=${busy} disabled=${!value}>Set</>${state.kind && html`<${Button} kind="danger" busy=${busy} onClick=${() => run(() => call("DELETE", `${at}/model-credential`))}>Remove</>`}</div>
      </form>`}</>
  </section>`;
}
