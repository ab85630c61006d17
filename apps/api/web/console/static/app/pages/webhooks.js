// Endpoints that are told what happens, and what became of each message.

import { call, get, path, post } from "../api.js";
import { useMayConfigure } from "../auth.js";
import * as format from "../format.js";
import { useAction, useLoad, usePages, usePoll, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { Json } from "../parts/code.js";
import { Dialog, FormDialog } from "../parts/dialog.js";
import { Check, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Secret } from "../parts/secret.js";
import { Ago, Badge, Empty, Facts, Failure, Id, Loaded } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { toast } from "../parts/toast.js";
import { navigate, to } from "../router.js";
import { html, useState } from "../view.js";

const EVENTS = ["run.queued", "run.running", "run.requires_action", "run.succeeded", "run.failed", "run.interrupted", "session.created", "session.deleted", "schedule.failed", "schedule.paused"];

const COLUMNS = [
  { name: "Endpoint", of: (row) => html`<a class="row-link" href=${to(`/webhooks/${row.webhook_id}`)}>${row.url}</a><p class="small quiet break">${row.description}</p>` },
  { name: "Status", of: (row) => html`<${Badge} status=${row.enabled ? (row.failing_since ? "failed" : "enabled") : "disabled"}>${row.enabled ? (row.failing_since ? "Failing" : "Enabled") : "Disabled"}</>` },
  { name: "Events", wide: true, of: (row) => html`<span class="soft small">${row.events.length === EVENTS.length ? "all" : row.events.join(", ")}</span>` },
];

export function Webhooks() {
  const list = usePages("/webhooks");
  const configures = useMayConfigure();
  const [making, make] = useState(false);
  const [secret, tell] = useState(null);
  useTitle("Webhooks");
  const none = html`<${Empty} icon="webhook" title="No webhooks yet"><p>A webhook is an endpoint of yours that is told when sessions and runs change.</p>${configures && html`<${Button} kind="primary" icon="plus" onClick=${() => make(true)}>Make a webhook</>`}</>`;
  return html`<${Page} title="Webhooks" actions=${configures && html`<${Button} kind="primary" icon="plus" onClick=${() => make(true)}>New webhook</>`}>
    <${Pages} from=${list} columns=${COLUMNS} label="Webhooks" keyOf=${(row) => row.webhook_id} empty=${none} />
    ${making && html`<${Edit} close=${() => make(false)} saved=${(made) => (list.reload(), tell(made.secret))} />`}
    ${secret && html`<${Secret} title="The webhook's secret" value=${secret} close=${() => tell(null)}>Messages are signed with it.</>`}
  </>`;
}

function Edit({ webhook, close, saved }) {
  const [url, setUrl] = useState(webhook?.url ?? "");
  const [description, setDescription] = useState(webhook?.description ?? "");
  const [events, setEvents] = useState(webhook?.events ?? EVENTS);
  const submit = async () => {
    const body = { url, events, description: description || null };
    saved(webhook ? await call("PATCH", path`/webhooks/${webhook.webhook_id}`, { body }) : await post("/webhooks", body, { once: true }));
  };
  return html`<${FormDialog} title=${webhook ? "Edit the webhook" : "New webhook"} action="Save" close=${close} submit=${submit} disabled=${!url || !events.length}>
    <${Text} label="URL" type="url" wide value=${url} set=${setUrl} required placeholder="https://example.com/hook" />
    <${Text} label="Description" wide value=${description} set=${setDescription} />
    <fieldset class="options"><legend>Events</legend><div class="fields">${EVENTS.map((event) => html`<${Check} label=${event} value=${events.includes(event)} set=${(on) => setEvents(EVENTS.filter((one) => (one === event ? on : events.includes(one))))} />`)}</div></fieldset>
  </>`;
}

export function Webhook({ id }) {
  const found = useLoad((signal) => get(path`/webhooks/${id}`, {}, signal), [id]);
  const deliveries = usePages(path`/webhooks/${id}/deliveries`, { limit: 50 });
  const configures = useMayConfigure();
  const [asked, ask] = useState(null);
  usePoll(deliveries.refresh, 4000);
  useTitle("Webhook");
  const [act, { busy, error, clear }] = useAction(async (work, text) => {
    await work();
    found.reload();
    deliveries.reload();
    toast(text);
  });
  const at = path`/webhooks/${id}`;
  const close = () => ask((now) => (now === asked ? null : now)); // unless it has led to another dialog
  const columns = [
    { name: "Message", of: (row) => html`<span class="nowrap">${row.type}</span><p class="small quiet"><${Ago} at=${row.created_at} /></p>` },
    { name: "Status", of: (row) => html`<${Badge} status=${row.status} />` },
    { name: "Attempts", kind: "num", wide: true, of: (row) => row.attempts },
    { name: "Answer", of: (row) => html`<span class="small soft break">${row.last_status ?? ""} ${row.last_error ?? ""}${row.next_attempt_at && html` next <${Ago} at=${row.next_attempt_at} />`}</span>` },
    { name: "Actions", kind: "end", of: (row) => html`<span class="row"><${Button} small kind="quiet" icon="info" label="What it said" onClick=${() => ask({ kind: "data", row })} />${configures && html`<${Button} small icon="refresh" busy=${busy} onClick=${() => act(() => post(path`/webhooks/${id}/deliveries/${row.delivery_id}/redeliver`), "It is sent once more.")}>Redeliver</>`}</span>` },
  ];
  const back = html`<a class="crumb" href=${to("/webhooks")}>Webhooks</a>`;
  return html`<${Page} title=${found.data ? new URL(found.data.url).host : "Webhook"} back=${back} actions=${found.data && configures && html`
      <${Button} kind="primary" icon="play" busy=${busy} onClick=${() => act(() => post(`${at}/test`), "A test is on its way.")}>Send a test</>
      <${Button} icon="edit" onClick=${() => ask({ kind: "edit" })}>Edit</>
      <${Button} onClick=${() => act(() => call("PATCH", at, { body: { enabled: !found.data.enabled } }), found.data.enabled ? "Disabled." : "Enabled.")}>${found.data.enabled ? "Disable" : "Enable"}</>
      <${Button} onClick=${() => ask({ kind: "rotate" })}>Rotate the secret</>
      <${Button} icon="trash" label="Delete" onClick=${() => ask({ kind: "delete" })} />`}>
    <${Failure} error=${error} close=${clear} />
    <${Loaded} from=${found}>${(webhook) => html`<${Facts} rows=${[
      ["URL", html`<code>${webhook.url}</code>`], ["Description", webhook.description],
      ["Status", html`<${Badge} status=${webhook.enabled ? "enabled" : "disabled"} />`], ["Why disabled", webhook.disabled_reason && format.words(webhook.disabled_reason)],
      ["Failing since", webhook.failing_since && format.time(webhook.failing_since)], ["Events", webhook.events.join(", ")],
      ["Previous secret until", webhook.previous_secret_expires_at && format.time(webhook.previous_secret_expires_at)], ["Id", html`<${Id} value=${webhook.webhook_id} what="webhook's id" />`],
    ]} />`}</>
    <section class="stack tight"><h2>Deliveries of the last seven days</h2>
      <${Pages} from=${deliveries} columns=${columns} label="Deliveries" keyOf=${(row) => row.delivery_id} empty=${html`<${Empty} icon="webhook" title="Nothing was sent yet">Send a test to see one.</>`} /></section>
    ${asked?.kind === "edit" && html`<${Edit} webhook=${found.data} close=${close} saved=${found.reload} />`}
    ${asked?.kind === "secret" && html`<${Secret} title="The new secret" value=${asked.secret} close=${close}>For 24 hours messages are signed with the previous one, too.</>`}
    ${asked?.kind === "data" && html`<${Dialog} title=${asked.row.type} close=${close}><${Json} value=${asked.row} label="the delivery" tall /></>`}
    ${asked?.kind === "rotate" && html`<${FormDialog} title="Rotate the secret" action="Rotate" close=${close} submit=${async () => ask({ kind: "secret", secret: (await post(`${at}/rotate`)).secret })}><p>A new secret is made and shown once. For 24 hours messages have two signatures.</p></>`}
    ${asked?.kind === "delete" && html`<${FormDialog} title="Delete the webhook" action="Delete" kind="danger" close=${close} submit=${async () => (await call("DELETE", at), toast("Deleted."), navigate("/webhooks"))}><p class="break">${found.data.url}, with its log.</p></>`}
  </>`;
}
