// Named configurations, each with its versions.

import { call, get, path, post } from "../api.js";
import { useMayConfigure } from "../auth.js";
import * as format from "../format.js";
import { useAction, useLoad, usePages, useSettled, useTitle } from "../hooks.js";
import { Button, ButtonLink } from "../parts/button.js";
import { Json } from "../parts/code.js";
import { FormDialog } from "../parts/dialog.js";
import { Area, Select, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Ago, Empty, Facts, Failure, Loaded } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { toast } from "../parts/toast.js";
import { navigate, setQuery, to, usePlace } from "../router.js";
import { classes, html, useState } from "../view.js";
import { fromForm, Options, toForm, useModels, useProfiles } from "./options.js";

const COLUMNS = [
  { name: "Preset", of: (row) => html`<a class="row-link" href=${to(`/presets/${encodeURIComponent(row.name)}`)}>${row.name}</a><p class="small quiet break">${row.description}</p>` },
  { name: "Version", kind: "num", of: (row) => row.version },
  { name: "Profile", wide: true, of: (row) => html`<span class="soft">${row.profile ?? "—"}</span>` },
  { name: "Changed", kind: "num", of: (row) => html`<span class="soft"><${Ago} at=${row.updated_at} /></span>` },
];

export function Presets() {
  const [search, type] = useState("");
  const settled = useSettled(search, 300);
  const list = usePages("/agents", { search: settled, limit: 50 });
  const [making, make] = useState(false);
  const configures = useMayConfigure();
  useTitle("Presets");
  const none = settled ? html`<${Empty} icon="preset" title="No preset is like that" />` : html`<${Empty} icon="preset" title="No presets yet"><p>A preset is a configuration of an agent under a name. Sessions that begin with it keep its version.</p>${configures && html`<${Button} kind="primary" icon="plus" onClick=${() => make(true)}>Make a preset</>`}</>`;
  return html`<${Page} title="Presets" actions=${configures && html`<${Button} kind="primary" icon="plus" onClick=${() => make(true)}>New preset</>`}>
    <div class="filters" role="search"><${Text} label="Search" type="search" value=${search} set=${type} placeholder="Part of the name or description" /></div>
    <${Pages} from=${list} columns=${COLUMNS} label="Presets" keyOf=${(row) => row.agent_id} empty=${none} />
    ${making && html`<${Edit} close=${() => make(false)} />`}
  </>`;
}

/** A form for a new preset, or for a new version of one. */
function Edit({ preset, close, saved }) {
  const [form, set] = useState({ ...toForm(preset?.config), name: preset?.name ?? "", description: preset?.description ?? "", profile: preset?.profile ?? "" });
  const [told, tell] = useState({});
  const models = useModels();
  const profiles = useProfiles();
  const field = (name) => ({ value: form[name], set: (value) => set({ ...form, [name]: value }), error: told[name] });
  const submit = async () => {
    const { config, wrong } = fromForm(form);
    tell(wrong);
    if (Object.keys(wrong).length) throw Object.assign(new Error("Some fields cannot be read."), { code: "fields" });
    const body = { ...config, ...(form.description && { description: form.description }), ...(form.profile && { profile: form.profile }) };
    try {
      const made = preset ? await call("PATCH", path`/agents/${preset.name}`, { body: changes(preset, body) }) : await post("/agents", { name: form.name, ...body }, { once: true });
      toast(`${made.name}@${made.version} was saved.`);
      if (preset) saved();
      else navigate(`/presets/${encodeURIComponent(made.name)}`);
    } catch (error) {
      tell(Object.fromEntries((error.details?.errors ?? []).map(({ field: name, reason }) => [name.split(".")[0], reason])));
      throw error;
    }
  };
  return html`<${FormDialog} title=${preset ? `A new version of ${preset.name}` : "New preset"} action="Save" close=${close} submit=${submit} wide>
    <div class="fields">
      ${!preset && html`<${Text} ...${field("name")} label="Name" required spellcheck="false" />`}
      <${Select} ...${field("profile")} label="Profile" none="none" options=${profiles.map((profile) => [profile.name, profile.name])} />
    </div>
    <${Text} ...${field("description")} label="Description" wide />
    <${Options} form=${form} set=${set} wrong=${told} models=${models} />
    ${preset && html`<p class="hint">Sessions that have begun keep their version.</p>`}
  </>`;
}

/** What is different, which is all that is sent: values that are shown as *** stay as they are. */
function changes(preset, body) {
  const before = { ...preset.config, ...(preset.description && { description: preset.description }), ...(preset.profile && { profile: preset.profile }) };
  const found = {};
  for (const name of new Set([...Object.keys(before), ...Object.keys(body)])) {
    const value = body[name] ?? null;
    if (JSON.stringify(value) === JSON.stringify(before[name] ?? null)) continue;
    if (JSON.stringify(value).includes('"***"')) {
      throw Object.assign(new Error(`${name} is changed as a whole: write its hidden values (***) anew.`), { code: "hidden_values" });
    }
    found[name] = value;
  }
  return found;
}

export function Preset({ name }) {
  const { query } = usePlace();
  const version = query.get("version") ?? "";
  const found = useLoad((signal) => get(path`/agents/${name}`, { version }, signal), [name, version]);
  const versions = usePages(path`/agents/${name}/versions`, { limit: 50 });
  const configures = useMayConfigure();
  const [asked, ask] = useState("");
  useTitle(name);
  const preset = found.data;
  const back = html`<a class="crumb" href=${to("/presets")}>Presets</a>`;
  return html`<${Page} title=${name} back=${back} actions=${preset && html`
      <${ButtonLink} kind="primary" icon="play" href=${to("/new", { agent: preset.version === preset.newest_version ? preset.name : `${preset.name}@${preset.version}` })}>Start a session</>
      ${configures && html`<${Button} icon="edit" onClick=${() => ask("edit")}>Edit</><${Button} icon="trash" label="Delete" onClick=${() => ask("delete")} />`}`}>
    <div class="split">
      <${Loaded} from=${found}>${(shown) => html`<div class="stack">
        <${Facts} rows=${[["Version", `${shown.version}${shown.version === shown.newest_version ? ", the newest" : ` of ${shown.newest_version}`}`], ["Description", shown.description], ["Profile", shown.profile], ["Id", html`<code>${shown.agent_id}</code>`], ["Changed", format.time(shown.updated_at)]]} />
        <section class="stack tight"><h2>Options</h2><${Json} value=${shown.config} label="the options" tall /></section>
      </div>`}</>
      <section class="stack tight" aria-label="Versions"><h2>Versions</h2>
        <${Failure} error=${versions.error} retry=${versions.reload} />
        <ol class="lines">${versions.rows?.map((one) => html`<li key=${one.version} class="line-item">
          <button type="button" class=${classes("link-button grow", one.version === preset?.version && "here")} aria-current=${one.version === preset?.version ? "true" : undefined} onClick=${() => setQuery({ version: one.version })}>Version ${one.version}</button>
          <span class="small quiet"><${Ago} at=${one.updated_at} /></span></li>`)}</ol>
        ${versions.more && html`<div><${Button} small busy=${versions.loading} onClick=${versions.more}>Show more</></div>`}
        <p class="small"><a href=${to("/sessions", { agent: name })}>Sessions that began with it</a></p>
      </section>
    </div>
    ${asked === "edit" && html`<${Edit} preset=${preset} close=${() => ask("")} saved=${() => (setQuery({ version: "" }), found.reload(), versions.reload())} />`}
    ${asked === "delete" && html`<${Remove} name=${name} close=${() => ask("")} />`}
  </>`;
}

function Remove({ name, close }) {
  const submit = async () => {
    await call("DELETE", path`/agents/${name}`);
    toast(`${name} was deleted.`);
    navigate("/presets");
  };
  return html`<${FormDialog} title="Delete the preset" action="Delete" kind="danger" close=${close} submit=${submit}>
    <p><strong>${name}</strong>, all versions. Sessions that began with it keep what they have.</p>
  </>`;
}
