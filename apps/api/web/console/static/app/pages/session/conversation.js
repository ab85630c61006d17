// The conversation as it goes on, with what is to be answered and what waits in the queue.

import { path, post } from "../../api.js";
import * as format from "../../format.js";
import { useAction } from "../../hooks.js";
import { Button } from "../../parts/button.js";
import { Icon } from "../../parts/icon.js";
import { Badge, Empty, Failure, Loading } from "../../parts/states.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../../view.js";
import { Draft, Entry } from "./entry.js";
import { open } from "./log.js";

const NEAR = 80; // pixels from the end at which new entries are followed

export function Conversation({ log, at, ready, earlier, pending }) {
  const box = useRef();
  const [away, setAway] = useState(false);
  const follows = useRef(true);
  const look = () => {
    const { scrollHeight, scrollTop, clientHeight } = box.current;
    follows.current = scrollHeight - scrollTop - clientHeight < NEAR;
    setAway(!follows.current);
  };
  const down = () => {
    if (box.current) box.current.scrollTop = box.current.scrollHeight;
  };
  useLayoutEffect(() => {
    if (follows.current && !at.marked) down();
  });
  useEffect(() => {
    // Pictures and folded calls grow after they were drawn.
    const grown = new ResizeObserver(() => follows.current && !at.marked && down());
    grown.observe(box.current.firstElementChild);
    return () => grown.disconnect();
  }, [at.marked]);
  const found = ready && at.marked ? log.entries.find((entry) => entry.seq >= at.marked) : undefined;
  useEffect(() => {
    if (!found) return;
    follows.current = false;
    document.getElementById(`entry-${found.key}`)?.scrollIntoView({ block: "center" });
  }, [found?.key]);

  const queued = [...log.runs.values()].filter((run) => run.status === "queued" && !pending.some((one) => one.run === run.id));
  const nothing = ready && !log.entries.length && !log.drafts.size && !pending.length && !queued.length;
  return html`<div class="conversation">
    <div class="scroll" ref=${box} onScroll=${look} tabindex="0" role="log" aria-label="Conversation" aria-busy=${at.live ? "true" : "false"}>
      <div class="thread">
        ${earlier && html`<${Earlier} earlier=${earlier} />`}
        ${!ready && html`<${Loading} what="Reading events" />`}
        ${nothing && html`<${Empty} icon="ask" title="Nothing has been said yet">${at.writes ? "Write the first prompt below." : "The first prompt will be shown here."}</>`}
        ${log.entries.map((entry) => html`<${Entry} key=${entry.key} entry=${entry} at=${entry.kind === "tool" && entry.result === undefined ? at : at.still} changes=${entry.changes} status=${entry.request?.status} />`)}
        ${log.drafts.get("") && html`<div class="entry"><${Draft} blocks=${log.drafts.get("")} /></div>`}
        ${log.runs.size > 0 && at.live && !log.drafts.size && !open(log).length && html`<${Working} log=${log} />`}
        ${pending.map((one) => html`<${Waiting} key=${one.run} run=${log.runs.get(one.run) ?? { id: one.run }} text=${one.text} at=${at} />`)}
        ${queued.map((run) => html`<${Waiting} key=${run.id} run=${run} at=${at} />`)}
        ${log.over && html`<${Failure} error=${log.over} />`}
      </div>
    </div>
    ${away && html`<button type="button" class="to-end" onClick=${() => (down(), look())}><${Icon} name="down" /> Latest</button>`}
  </div>`;
}

function Earlier({ earlier }) {
  const [load, { busy, error }] = useAction(earlier);
  return html`<div class="earlier"><${Button} small busy=${busy} onClick=${load}>Show earlier events</><${Failure} error=${error} /></div>`;
}

function Working({ log }) {
  const tool = [...log.tools.values()].reverse().find((one) => one.result === undefined);
  return html`<p class="row small quiet working"><span class="spinner"></span>${tool ? `${tool.name} runs` : "Waits for the model"}</p>`;
}

/** A prompt whose run has not begun. */
function Waiting({ run, text, at }) {
  const [cancel, { busy, error }] = useAction(() => post(path`/runs/${run.id}/cancel`));
  return html`<div class="entry of-prompt waiting"><div class="said-by">You</div><div class="bubble">
      ${text && html`<p class="pre">${text}</p>`}
      <p class="row wrap small"><${Badge} status="queued">${run.position ? `Queued, place ${format.count(run.position)}` : "Queued"}</>
        ${at.writes && html`<${Button} small kind="quiet" busy=${busy} onClick=${cancel}>Cancel</>`}</p>
    </div><${Failure} error=${error} /></div>`;
}
