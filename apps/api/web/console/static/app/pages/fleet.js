// Instances, what they do, and runs that are stuck: for administrators.

import { get, path, post } from "../api.js";
import * as format from "../format.js";
import { useAction, useLoad, usePoll, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { Json } from "../parts/code.js";
import { Text } from "../parts/field.js";
import { Icon } from "../parts/icon.js";
import { Page } from "../parts/page.js";
import { Ago, Badge, Empty, Facts, Failure, Id, Loaded, Meter } from "../parts/states.js";
import { Table } from "../parts/table.js";
import { to } from "../router.js";
import { html, useState } from "../view.js";

const stateOf = (row) => (!row.alive ? "dead" : row.draining ? "draining" : "alive");

const COLUMNS = [
  { name: "Instance", of: (row) => html`<span class="break">${row.hostname}</span><p class="small"><${Id} value=${row.instance_id} what="instance's id" /></p>` },
  { name: "Status", of: (row) => html`<${Badge} status=${stateOf(row)} />` },
  { name: "Slots", of: (row) => html`<div class="slots"><span class="num small">${row.running} of ${row.slots}</span><${Meter} used=${row.running} limit=${row.slots} label="Slots that are taken" /></div>` },
  { name: "Sessions", kind: "num", of: (row) => format.count(row.sessions) },
  { name: "Version", wide: true, of: (row) => html`<span class="soft">${row.version}</span>` },
  { name: "Started", kind: "num", wide: true, of: (row) => html`<span class="soft"><${Ago} at=${row.started_at} /></span>` },
  { name: "Lease until", kind: "num", wide: true, of: (row) => html`<span class="soft"><${Ago} at=${row.lease_expires_at} /></span>` },
];

const waiting = (queue) => (queue === undefined ? "…" : `${format.count(queue.queued)}${queue.queued ? `, ${format.duration(queue.oldest_seconds * 1000)}` : ""}`);

export function Fleet() {
  const instances = useLoad((signal) => get("/admin/instances", {}, signal));
  const queue = useLoad((signal) => get("/admin/queue", {}, signal));
  const health = useLoad((signal) => get("/health", {}, signal));
  usePoll(() => (instances.reload(), queue.reload(), health.reload()), 4000);
  useTitle("Fleet");
  return html`<${Page} title="Fleet">
    <${Failure} error=${queue.error} retry=${queue.reload} />
    <${Loaded} from=${instances}>${({ data }) => {
      const alive = data.filter((row) => row.alive);
      const sum = (name) => alive.reduce((whole, row) => whole + row[name], 0);
      const figures = [["Instances alive", `${alive.length} of ${data.length}`], ["Runs executed", format.count(sum("running"))], ["Free slots", format.count(sum("slots") - sum("running"))], ["Runs that wait", waiting(queue.data)], ["Sessions owned", format.count(sum("sessions"))]];
      return html`<div class="stack"><dl class="cards">${figures.map(([name, value]) => html`<div class="figure"><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
        <${Table} label="Instances" columns=${COLUMNS} rows=${data} keyOf=${(row) => row.instance_id} dim=${(row) => !row.alive} /></div>`;
    }}</>
    <div class="halves"><${Health} health=${health} /><${Repair} /></div>
  </>`;
}

/** Of whichever instance has answered. */
function Health({ health }) {
  return html`<section class="card stack tight" aria-label="Health"><h2>Health of an instance</h2>
    <${Loaded} from=${health}>${(state) => html`<${Facts} rows=${[
      ["Status", html`<${Badge} status=${state.status} />`],
      ["Instance", html`<${Id} value=${state.instance_id} what="instance's id" />`],
      ...Object.entries(state.dependencies).map(([name, how]) => [format.words(name), html`<${Badge} status=${how} />`]),
      ["Default model", format.words(state.default_model)],
      ["Isolation", state.isolation],
      ["Loops that fail", state.failing_loops.join(", ")],
      ["Unfit", state.unfit.join("; ")],
    ]} />
    ${state.warnings.map((warning) => html`<p class="warning"><${Icon} name="warn" /><span class="break">${warning}</span></p>`)}`}</>
  </section>`;
}

function Repair() {
  const [id, set] = useState("");
  const [done, tell] = useState(null);
  const [run, { busy, error }] = useAction(async () => {
    tell(null);
    tell(await post(path`/admin/runs/${id.trim()}/repair`));
  });
  const submit = (event) => {
    event.preventDefault();
    if (id.trim()) run();
  };
  return html`<section class="card stack tight" aria-label="Repair"><h2>A run that is stuck</h2>
    <p class="soft small">Dead instances are found by themselves. This looks at one run: it is taken from a dead owner, or it is said why it is as it should be.</p>
    <form class="stack tight" onSubmit=${submit}><${Text} label="Run" value=${id} set=${set} wide spellcheck="false" placeholder="its id" class="mono" /><div><${Button} type="submit" busy=${busy} disabled=${!id.trim()}>Repair</></div></form>
    <${Failure} error=${error} />
    ${error?.code === "nothing_to_repair" && html`<${Json} value=${error.details} label="the details" />`}
    ${done && html`<p role="status" class="break"><${Badge} status="applied">Repaired</> ${done.action} <a href=${to(`/sessions/${done.session_id}`)}>Session ${format.id(done.session_id)}</a></p>`}
  </section>`;
}
