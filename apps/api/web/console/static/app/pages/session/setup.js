// How the agent is configured, and what can be changed while it lives.

import { get, path, post } from "../../api.js";
import * as format from "../../format.js";
import { useAction, useLoad } from "../../hooks.js";
import { Button } from "../../parts/button.js";
import { Json } from "../../parts/code.js";
import { FormDialog } from "../../parts/dialog.js";
import { Choice, Select } from "../../parts/field.js";
import { Badge, Facts, Failure, Id, Loading, Meter } from "../../parts/states.js";
import { toast } from "../../parts/toast.js";
import { to } from "../../router.js";
import { html, useState } from "../../view.js";
import { MODES, useModels } from "../options.js";

export function Setup({ id, session, log, writes, refresh }) {
  return html`<div class="stack">
    ${writes && html`<${Change} id=${id} session=${session} refresh=${refresh} />`}
    <${Facts} rows=${[
      ["Model", session.model],
      ["Permission mode", session.permission_mode],
      ["Preset", session.agent && html`<a href=${to(`/presets/${session.agent.name}`)}>${session.agent.name}@${session.agent.version}</a>`],
      ["Profile", session.profile],
      ["Tools", (log.state.tools ?? session.tools)?.join(", ")],
      ["Isolation", log.frames.findLast((frame) => frame.event === "init")?.data.isolation],
      ["Agent process", session.active ? "kept by an instance" : "none at this moment"],
      ["Instance", session.owner && html`<${Id} value=${session.owner} what="instance's id" />`],
      ["Began", format.time(session.created_at)],
      ["Last active", format.time(session.last_active_at)],
      ["Labels", Object.entries(session.metadata).map(([name, value]) => `${name}=${value}`).join(", ")],
    ]} />
    <${Context} id=${id} session=${session} log=${log} />
    <${Servers} id=${id} session=${session} log=${log} writes=${writes} />
    <section class="stack tight"><h2>Options</h2><${Json} value=${session.config} label="the options" /></section>
  </div>`;
}

function Change({ id, session, refresh }) {
  const models = useModels();
  const [mode, setMode] = useState(session.permission_mode);
  const [model, setModel] = useState(session.model);
  const [resetting, reset] = useState(false);
  const body = { ...(mode !== session.permission_mode && { permission_mode: mode }), ...(model !== session.model && { model }) };
  const [run, { busy, error }] = useAction(async () => {
    const { status } = await post(path`/sessions/${id}/control`, body);
    toast(status === "applied" ? "Changed." : "The agent was told, and has not answered yet.");
    refresh();
  });
  return html`<section class="stack tight"><h2>While it lives</h2>
    <div class="fields">
      <${Select} label="Permission mode" value=${mode} set=${setMode} options=${MODES} />
      <${Select} label="Model" value=${model} set=${setModel} options=${models} />
    </div>
    <${Failure} error=${error} />
    <div class="row wrap"><${Button} small kind="primary" busy=${busy} disabled=${!Object.keys(body).length} onClick=${run}>Change</>
      <${Button} small onClick=${() => reset(true)}>Reset …</></div>
    ${resetting && html`<${Reset} id=${id} close=${() => (reset(false), refresh())} />`}
  </section>`;
}

function Reset({ id, close }) {
  const [mode, setMode] = useState("soft");
  const submit = async () => {
    const { status } = await post(path`/sessions/${id}/reset`, { mode }, { once: true });
    toast(status === "applied" ? "The agent begins anew." : "The reset waits behind the runs before it.");
  };
  return html`<${FormDialog} title="Reset the agent" action="Reset" close=${close} submit=${submit}>
    <${Choice} label="What is reset" value=${mode} set=${setMode} options=${[["soft", "New process"], ["hard", "New conversation"]]} />
    <p class="soft">${mode === "soft" ? "A new agent process with the same conversation." : "The agent forgets the conversation. Events, files and totals stay."}</p>
  </>`;
}

/** What only a live agent can tell: nothing is shown where there is none. */
function Context({ id, session, log }) {
  const found = useLoad((signal) => (session.active ? get(path`/sessions/${id}/context`, {}, signal) : Promise.resolve(null)), [id, session.active, session.num_turns]);
  const { data, error } = found;
  if (error) return error.status === 409 || error.status === 503 ? null : html`<${Failure} error=${error} retry=${found.reload} />`;
  if (!data?.maxTokens) return null;
  return html`<section class="stack tight"><h2>Context window</h2>
    <div class="row between small"><span>${format.count(data.totalTokens)} of ${format.count(data.maxTokens)} tokens</span><span class="num">${data.percentage} %</span></div>
    <${Meter} used=${data.totalTokens} limit=${data.maxTokens} label="Context window" />
  </section>`;
}

function Servers({ id, session, log, writes }) {
  const asked = session.active && (log.state.mcp_servers?.length ?? 0) > 0;
  const found = useLoad((signal) => (asked ? get(path`/sessions/${id}/mcp`, {}, signal) : Promise.resolve(null)), [id, asked]);
  const [change, { busy, error }] = useAction(async (body) => {
    await post(path`/sessions/${id}/control`, body);
    found.reload();
  });
  const servers = found.data?.mcp_servers ?? log.state.mcp_servers ?? [];
  if (!servers.length) return null;
  return html`<section class="stack tight"><h2>MCP servers</h2><${Failure} error=${error} />
    ${found.loading && !found.data && asked && html`<${Loading} />`}
    <ul class="lines">${servers.map((server) => html`<li class="line-item" key=${server.name}><span class="grow clip">${server.name}</span><${Badge} status=${server.status === "connected" ? "ok" : server.status} >${format.words(server.status)}</>
      ${writes && found.data && html`<${Button} small busy=${busy} onClick=${() => change({ mcp_reconnect: server.name })}>Reconnect</>
        <${Button} small busy=${busy} onClick=${() => change({ mcp_toggle: { name: server.name, enabled: server.status === "disabled" } })}>${server.status === "disabled" ? "Enable" : "Disable"}</>`}
    </li>`)}</ul></section>`;
}
