// Prompts that are sent at times of a clock, and what came of each time.

import { call, get, path, post } from "../api.js";
import { useMay } from "../auth.js";
import * as format from "../format.js";
import { useAction, useLoad, usePages, usePoll, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { FormDialog } from "../parts/dialog.js";
import { Area, Select, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Ago, Badge, Empty, Facts, Failure, Id, Loaded } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { toast } from "../parts/toast.js";
import { navigate, to } from "../router.js";
import { html, useState } from "../view.js";
import { usePresets, useProfiles } from "./options.js";

const nameOf = (row) => format.visible(row.name || `Schedule ${format.id(row.schedule_id)}`);
const textOf = (prompt) => (typeof prompt === "string" ? prompt : prompt.map((block) => block.text ?? `[${block.type}]`).join("\n"));

const COLUMNS = [
  { name: "Schedule", of: (row) => html`<a class="row-link" href=${to(`/schedules/${row.schedule_id}`)}>${nameOf(row)}</a><p class="small quiet break">${row.agent}</p>` },
  { name: "Status", of: (row) => html`<${Badge} status=${row.status} />` },
  { name: "When", wide: true, of: (row) => html`<code class="nowrap">${row.cron ?? "by request"}</code><p class="small quiet">${row.cron && row.time_zone}</p>` },
  { name: "Last", of: (row) => row.last && html`<${Badge} status=${row.last.state} />` },
  { name: "Next", kind: "num", of: (row) => html`<span class="soft">${row.next_at ? html`<${Ago} at=${row.next_at} />` : "—"}</span>` },
];

export function Schedules() {
  const list = usePages("/schedules", { limit: 50 });
  const writes = useMay("write");
  const [making, make] = useState(false);
  usePoll(list.refresh, 4000);
  useTitle("Schedules");
  const start = html`<${Button} kind="primary" icon="plus" onClick=${() => make(true)}>New schedule</>`;
  const none = html`<${Empty} icon="clock" title="No schedules yet"><p>A schedule sends a prompt at times of a clock.</p></>`;
  return html`<${Page} title="Schedules" actions=${writes && start}>
    <${Pages} from=${list} columns=${COLUMNS} label="Schedules" keyOf=${(row) => row.schedule_id} empty=${none} />
    ${making && html`<${Edit} close=${() => make(false)} saved=${(made) => navigate(`/schedules/${made.schedule_id}`)} />`}
  </>`;
}

const NEW = { name: "", cron: "0 7 * * MON-FRI", time_zone: Intl.DateTimeFormat().resolvedOptions().timeZone ?? "UTC", prompt: "", agent: "", profile: "", session: "new", overlap: "skip" };
const PLAIN = ["name", "cron", "time_zone", "agent", "profile", "session", "overlap"];

function Edit({ schedule, close, saved }) {
  const before = schedule ? Object.fromEntries(PLAIN.map((name) => [name, schedule[name] ?? ""])) : {};
  // Blocks are not for a text field: they stay as they are.
  const blocks = schedule && typeof schedule.prompt !== "string";
  const [form, set] = useState(schedule ? { ...before, prompt: blocks ? "" : schedule.prompt } : NEW);
  const [told, tell] = useState({});
  const presets = usePresets();
  const profiles = useProfiles();
  const field = (name) => ({ value: form[name], error: told[name], set: (value) => set((now) => ({ ...now, [name]: value })) });
  const given = schedule?.session_id && schedule.session === "one";
  const submit = async () => {
    const body = Object.fromEntries(PLAIN.filter((name) => (schedule ? form[name] !== before[name] : form[name])).map((name) => [name, form[name] || null]));
    if (form.prompt && form.prompt !== schedule?.prompt) body.prompt = form.prompt;
    try {
      saved(schedule ? Object.keys(body).length ? await call("PATCH", path`/schedules/${schedule.schedule_id}`, { body }) : schedule : await post("/schedules", body, { once: true }));
    } catch (error) {
      tell(Object.fromEntries((error.details?.errors ?? []).map(({ field: name, reason }) => [name.split(".")[0], reason])));
      throw error;
    }
  };
  return html`<${FormDialog} title=${schedule ? "Edit the schedule" : "New schedule"} action="Save" close=${close} submit=${submit} disabled=${(!form.cron && before.cron !== "") || (!form.prompt && !blocks)} wide>
    <div class="fields">
      <${Text} ...${field("name")} label="Name" />
      <${Text} ...${field("cron")} label="Cron" required spellcheck="false" hint="Minute, hour, day, month, day of the week" />
      <${Text} ...${field("time_zone")} label="Time zone" required spellcheck="false" />
      ${!given && html`<${Select} ...${field("agent")} label="Preset" none="none" options=${presets.map((preset) => preset.name)} />
      <${Select} ...${field("profile")} label="Profile" none="the usual one" options=${profiles.map((profile) => profile.name)} />
      <${Select} ...${field("session")} label="Session" options=${[["new", "a new one each time"], ["one", "one that is kept"]]} />`}
      <${Select} ...${field("overlap")} label="If a run is not over" options=${[["skip", "skip the time"], ["queue", "queue it all the same"]]} />
    </div>
    <${Area} ...${field("prompt")} label="Prompt" rows=${5} required=${!blocks} hint=${blocks ? "It has pictures or documents. What is written here takes their place." : undefined} />
    ${schedule && html`<p class="hint">From now on it acts for your key.</p>`}
  </>`;
}

export function Schedule({ id }) {
  const at = path`/schedules/${id}`;
  const found = useLoad((signal) => get(at, {}, signal), [id]);
  const runs = usePages(`${at}/runs`, { limit: 50 });
  const writes = useMay("write");
  const [asked, ask] = useState("");
  usePoll(runs.refresh, 2000);
  useTitle(found.data ? nameOf(found.data) : "Schedule");
  const [act, { busy, error, clear }] = useAction(async (work, text) => {
    await work();
    found.reload();
    runs.reload();
    toast(text);
  });
  const paused = found.data?.status === "paused";
  const columns = [
    { name: "Time", of: (row) => html`<span class="nowrap">${format.time(row.fire_at)}</span>${row.origin === "request" && html` <span class="tag">by request</span>`}${row.times > 1 && html` <span class="tag">${format.plural(row.times, "time")}</span>`}` },
    { name: "State", of: (row) => html`<${Badge} status=${row.state} />${row.error && html`<p class="small quiet break"><code>${row.error.code}</code> ${row.error.message}</p>`}` },
    { name: "Session", of: (row) => row.session_id && html`<a href=${to(`/sessions/${row.session_id}`)}><code>${format.id(row.session_id)}</code></a>` },
    { name: "Fired", kind: "num", wide: true, of: (row) => html`<span class="soft"><${Ago} at=${row.created_at} /></span>` },
  ];
  const back = html`<a class="crumb" href=${to("/schedules")}>Schedules</a>`;
  return html`<${Page} title=${found.data ? nameOf(found.data) : "Schedule"} back=${back} actions=${found.data && writes && html`
      <${Button} kind="primary" icon="play" busy=${busy} onClick=${() => act(() => post(`${at}/run`, undefined, { once: true }), "It is fired.")}>Fire now</>
      <${Button} icon="edit" onClick=${() => ask("edit")}>Edit</>
      <${Button} busy=${busy} onClick=${() => act(() => post(`${at}/${paused ? "resume" : "pause"}`), paused ? "Resumed." : "Paused.")}>${paused ? "Resume" : "Pause"}</>
      <${Button} icon="trash" label="Delete" onClick=${() => ask("delete")} />`}>
    <${Failure} error=${error} close=${clear} />
    <${Loaded} from=${found}>${(schedule) => html`<${Facts} rows=${[
      ["Status", html`<${Badge} status=${schedule.status} />`], ["Why paused", schedule.paused_reason && format.words(schedule.paused_reason)],
      ["When", html`<code>${schedule.cron ?? "by request"}</code> ${schedule.cron && schedule.time_zone}`],
      ["Next times", schedule.upcoming.map(format.time).join(", ")],
      ["Prompt", html`<span class="break">${format.visible(textOf(schedule.prompt))}</span>`],
      ["Preset", schedule.agent], ["Profile", schedule.profile],
      ["Session", schedule.session_id ? html`<a href=${to(`/sessions/${schedule.session_id}`)}><code>${format.id(schedule.session_id)}</code></a>` : schedule.session === "one" ? "one, begun by the first firing" : "a new one each time"],
      ["If a run is not over", schedule.overlap === "skip" ? "the time is skipped" : "it is queued all the same"],
      ["Failures in a row", schedule.failures ? format.count(schedule.failures) : null], ["Id", html`<${Id} value=${schedule.schedule_id} what="schedule's id" />`],
    ]} />`}</>
    <section class="stack tight"><h2>Times of the last 30 days</h2>
      <${Pages} from=${runs} columns=${columns} label="Firings" keyOf=${(row) => row.firing_id} empty=${html`<${Empty} icon="clock" title="It was not fired yet">Fire it now to see what it does.</>`} /></section>
    ${asked === "edit" && html`<${Edit} schedule=${found.data} close=${() => ask("")} saved=${found.reload} />`}
    ${asked === "delete" && html`<${FormDialog} title="Delete the schedule" action="Delete" kind="danger" close=${() => ask("")} submit=${async () => (await call("DELETE", at), toast("Deleted."), navigate("/schedules"))}><p class="break">${nameOf(found.data)}, with the list of its firings. Sessions and runs stay.</p></>`}
  </>`;
}
