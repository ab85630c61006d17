// Everything that has happened, run by run, with how long it took.

import * as format from "../../format.js";
import { Button, Copy } from "../../parts/button.js";
import { Json } from "../../parts/code.js";
import { Icon } from "../../parts/icon.js";
import { Badge, Empty } from "../../parts/states.js";
import { setQuery, to } from "../../router.js";
import { classes, html, useMemo } from "../../view.js";
import { spans } from "./spans.js";

const OPEN = 3; // of the newest runs

export function Timeline({ id, log, marked, earlier }) {
  const groups = useMemo(() => spans(log), [log.frames.length, log.version]);
  if (!groups.length) return html`<${Empty} icon="sessions" title="No events yet">Each event of a run is listed here, with how long it took.</>`;
  return html`<div class="timeline">
    ${earlier && html`<p class="small quiet">Older events are not loaded. <button type="button" class="link-button" onClick=${earlier}>Show earlier events</button></p>`}
    ${groups.map((group, i) => html`<${Group} key=${group.key} id=${id} group=${group} marked=${marked} open=${i >= groups.length - OPEN || group.rows.some((row) => row.seq === marked)} />`)}
  </div>`;
}

function Group({ id, group, marked, open }) {
  const { run, rows } = group;
  const from = rows[0].from;
  const end = Math.max(...rows.map((row) => row.to ?? row.from), from + 1);
  return html`<details class="run" open=${open}>
    <summary><${Icon} name="right" />
      <span class="grow clip">${run ? html`Run <code>${format.id(run.id)}</code>` : "Between runs"}</span>
      <span class="small quiet num nowrap">${format.hour(rows[0].frame.data.created_at)} · ${format.duration(end - from)}</span>
      ${run && html`<${Badge} status=${run.status} />`}
    </summary>
    <ol>${rows.map((row) => html`<${Row} key="${row.seq}-${row.name}-${row.text}" id=${id} row=${row} from=${from} span=${end - from} end=${end} chosen=${row.seq === marked} />`)}</ol>
  </details>`;
}

function Row({ id, row, from, span, end, chosen }) {
  const to_ = row.to ?? end; // still going on
  const takes = to_ - row.from;
  const bar = { left: `${((row.from - from) / span) * 100}%`, width: `${Math.max((takes / span) * 100, 0)}%` };
  return html`<li class=${classes("span", row.inner && "inner")}>
    <button type="button" class=${classes("span-row", chosen && "chosen")} aria-expanded=${chosen ? "true" : "false"} onClick=${() => setQuery({ event: chosen ? "" : row.seq, tab: "timeline" })}>
      <span class="span-seq num">${row.seq}</span>
      <span class=${classes("span-name", row.failed && "bad-text")}>${row.name}</span>
      <span class="span-text clip">${row.text}</span>
      <span class="span-track" aria-hidden="true"><span class=${classes("span-bar", row.kind, row.failed && "failed", row.to === null && "pulse")} style=${bar}></span></span>
      <span class="span-time num">${row.to === null ? "…" : takes ? format.duration(takes) : ""}</span>
    </button>
    ${chosen && html`<div class="span-body">
      <div class="row wrap small soft"><span>${row.frame.event}</span><span class="num">${format.time(row.frame.data.created_at)}</span>
        <${Copy} text=${() => new URL(to(`/sessions/${id}`, { event: row.seq }), location.href).href} icon="link" label="Copy a link to this event">Link</></div>
      <${Json} value=${row.frame.data} label="the event" tall />
    </div>`}
  </li>`;
}
