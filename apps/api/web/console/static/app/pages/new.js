// A new session: what it is to be, what would run, and how a program says the same.

import { path, post } from "../api.js";
import { useMay } from "../auth.js";
import * as format from "../format.js";
import { useAction, useLoad, useSettled, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { Code } from "../parts/code.js";
import { Area, Choice, Select, Text } from "../parts/field.js";
import { Icon } from "../parts/icon.js";
import { Page } from "../parts/page.js";
import { Facts, Failure, Loading } from "../parts/states.js";
import { navigate, SERVER, usePlace } from "../router.js";
import { curl, python } from "../samples.js";
import { html, useMemo, useState } from "../view.js";
import { fromForm, Options, toForm, useModels, usePresets, useProfiles } from "./options.js";

// Claude does it, and so does the demo model; by default either asks before it writes.
const MOST_OF_A_TITLE = 80;
const EXAMPLE = "write hello.txt: Hello from an agent!";

export function New() {
  const { query } = usePlace();
  const [form, set] = useState({ ...toForm(), agent: query.get("agent") ?? "", profile: "", title: "", tags: "", prompt: query.get("prompt") ?? "" });
  const models = useModels();
  const presets = usePresets();
  const profiles = useProfiles();
  const writes = useMay("write");
  useTitle("New session");
  const { body, wrong } = useMemo(() => request(form), [form]);
  const settled = useSettled(JSON.stringify(body), 600);
  const dry = useLoad((signal) => (writes ? post("/agents/preview", JSON.parse(settled), { signal }) : Promise.resolve(null)), [settled, writes]);
  const problems = [...(dry.data?.problems ?? []), ...(dry.error?.details?.errors ?? [])];
  const told = { ...Object.fromEntries(problems.map(({ field, reason }) => [field.split(".")[0], reason])), ...wrong };
  const [start, { busy, error }] = useAction(async () => {
    const { prompt, ...session } = body;
    session.title ??= [...(prompt?.trim().split("\n")[0] ?? "")].slice(0, MOST_OF_A_TITLE).join("") || undefined; // by which it is found again
    const made = await post("/sessions", session, { once: true });
    if (prompt) await post(path`/sessions/${made.session_id}/query`, { prompt }, { once: true });
    navigate(`/sessions/${made.session_id}`);
  });
  const field = (name) => ({ value: form[name], set: (value) => set({ ...form, [name]: value }), error: told[name] });
  const submit = (event) => {
    event.preventDefault();
    start();
  };
  return html`<${Page} title="New session">
    <div class="split">
      <form class="stack" onSubmit=${submit}>
        <${Area} ...${field("prompt")} label="Prompt" rows="5" placeholder="What the agent is to do. Empty: the session waits for its first prompt." />
        ${writes && !form.prompt && html`<p class="small soft">Nothing in mind? <button type="button" class="link-button" onClick=${() => set({ ...form, prompt: EXAMPLE })}>Use an example</button></p>`}
        <div class="fields">
          <${Select} ...${field("agent")} label="Preset" none="none" options=${presets.map((preset) => [preset.name, preset.name])} />
          <${Select} ...${field("profile")} label="Profile" none="the key's default" options=${profiles.map((profile) => [profile.name, profile.name])} />
        </div>
        <${Options} form=${form} set=${set} wrong=${told} models=${models} />
        <div class="fields"><${Text} ...${field("title")} label="Title" maxlength="200" placeholder="Else the beginning of the prompt" /><${Text} ...${field("tags")} label="Tags" placeholder="With commas between" /></div>
        <${Failure} error=${error} />
        ${writes ? html`<div class="row wrap"><${Button} type="submit" kind="primary" busy=${busy} disabled=${Object.keys(wrong).length > 0}>${form.prompt.trim() ? "Start" : "Create"}</>
          ${dry.data && !dry.data.ok && html`<span class="small bad-text">As it is, this would be refused.</span>`}</div>` : html`<p class="soft">This key may read only.</p>`}
      </form>
      <aside class="stack" aria-label="What would run"><${Preview} dry=${dry} /><${Samples} body=${body} /></aside>
    </div>
  </>`;
}

/** What the form says, as the body of POST /query. */
function request(form) {
  const { config, wrong } = fromForm(form);
  const body = {};
  if (form.prompt.trim()) body.prompt = form.prompt;
  for (const name of ["agent", "profile", "title"]) if (form[name]) body[name] = form[name];
  const tags = form.tags.split(",").map((tag) => tag.trim()).filter(Boolean);
  if (tags.length) body.tags = tags;
  return { body: { ...body, ...config }, wrong };
}

function Preview({ dry }) {
  const { data } = dry;
  const refused = dry.error && !dry.error.details?.errors ? dry.error : null;
  return html`<section class="card stack tight" aria-label="Dry run">
    <div class="row between"><h2>What would run</h2><span role="status" class="small soft row">${dry.loading ? html`<span class="spinner"></span>Asking` : data && html`<span class=${data.ok ? "plus row" : "minus row"}><${Icon} name=${data.ok ? "check" : "warn"} />${data.ok ? "It would be accepted" : "It would be refused"}</span>`}</span></div>
    <${Failure} error=${refused} retry=${dry.reload} />
    ${!data && !dry.error && html`<${Loading} />`}
    <${Findings} rows=${[...(data?.problems ?? []), ...(dry.error?.details?.errors ?? [])]} kind="bad" />
    <${Findings} rows=${data?.warnings ?? []} kind="warn" />
    ${data && html`<${Facts} rows=${[
      ["Model", data.model],
      ["Permission mode", data.permission_mode],
      ["Profile", data.profile],
      ["Preset", data.agent && `version ${data.agent.version}`],
      ["Tools", data.tools.join(", ") || "none"],
      ["Without asking", data.allowed_tools.join(", ")],
      ["Never", data.disallowed_tools.join(", ")],
      ["MCP servers", data.mcp_servers.map((server) => server.name).join(", ")],
      ["Hooks", data.hooks.map((hook) => hook.event).join(", ")],
      ["Missing secrets", data.missing_secrets.join(", ")],
      ["Prompt", `${format.count(data.prompt_size.total.characters)} characters in all`],
    ]} />`}
  </section>`;
}

function Findings({ rows, kind }) {
  if (!rows.length) return null;
  return html`<ul class="stack tight">${rows.map((one) => html`<li class=${kind === "bad" ? "failure" : "warning"}><${Icon} name="warn" /><span class="break"><code>${one.field}</code> ${one.reason} <span class="small quiet">${one.code}</span></span></li>`)}</ul>`;
}

function Samples({ body }) {
  const [kind, choose] = useState("curl");
  const text = kind === "curl" ? curl(SERVER.href, body) : python(SERVER.href, body);
  return html`<section class="card stack tight" aria-label="The same by a program">
    <div class="row between wrap"><h2>The same by a program</h2><${Choice} label="Language" value=${kind} set=${choose} options=${[["curl", "curl"], ["python", "Python"]]} /></div>
    <${Code} text=${text} label=${`the ${kind} example`} tall />
    <p class="hint">The key is read from the variable <code>API_KEY</code>.</p>
  </section>`;
}
