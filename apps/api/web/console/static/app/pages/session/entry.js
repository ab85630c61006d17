// One entry of the conversation.

import * as format from "../../format.js";
import { Markdown } from "../../markdown.js";
import { Button, Copy } from "../../parts/button.js";
import { Json } from "../../parts/code.js";
import { Icon } from "../../parts/icon.js";
import { Request } from "../../parts/request.js";
import { Badge, Failure } from "../../parts/states.js";
import { to } from "../../router.js";
import { classes, html, memo } from "../../view.js";
import { Note } from "./note.js";
import { Omitted, Tool } from "./tool.js";

/** `at`: what all entries of the session share; `changes` and `status` are there to be compared. */
export const Entry = memo(function Entry({ entry, at, inner = false }) {
  const Kind = KINDS[entry.kind];
  const marked = !inner && at.marked === entry.seq;
  return html`<div class=${classes("entry", `of-${entry.kind}`, marked && "marked")} id=${inner ? undefined : `entry-${entry.key}`} data-seq=${entry.seq}>
    <${Kind} entry=${entry} at=${at} />
    ${!inner && ACTIONS.has(entry.kind) && html`<${Actions} entry=${entry} at=${at} />`}
  </div>`;
});

const ACTIONS = new Set(["prompt", "text"]);

function Actions({ entry, at }) {
  const text = entry.text ?? entry.blocks.map((block) => block.text ?? "").join("\n");
  return html`<div class="entry-actions" role="group" aria-label="Actions">
    <${Copy} text=${text} label="Copy the text" />
    <${Copy} text=${() => new URL(to(`/sessions/${at.session}`, { event: entry.seq }), location.href).href} icon="link" label="Copy a link to this event" />
    ${at.writes && html`<${Button} kind="quiet" small icon="fork" label=${entry.kind === "prompt" ? "Fork before this prompt" : "Fork from here"} onClick=${() => at.fork(entry)} />`}
  </div>`;
}

function Prompt({ entry, at }) {
  const pictures = at.pictures.get(entry.run) ?? [];
  let number = 0;
  return html`<div class="said-by">You</div><div class="bubble">
    ${entry.blocks.map((block) => {
      if (block.type === "text") return html`<p class="pre">${block.text}</p>`;
      const own = block.type === "image" && pictures[number++];
      return own ? html`<img class="picture" src=${own} alt="A picture that was sent" />` : html`<${Omitted} block=${block} />`;
    })}
  </div>`;
}

function Told({ entry }) {
  return html`<details class="fold"><summary><${Icon} name="right" /><span class="soft">Told to the agent</span></summary>
    ${entry.blocks.map((block) => (block.type === "text" ? html`<p class="pre soft">${block.text}</p>` : html`<${Omitted} block=${block} />`))}</details>`;
}

function Said({ entry }) {
  return html`<${Markdown} text=${entry.text} />`;
}

function Thinking({ entry }) {
  return html`<details class="fold thinking"><summary><${Icon} name="right" /><${Icon} name="thought" /><span class="soft">Thought</span></summary><div class="thought"><${Markdown} text=${entry.text ?? ""} /></div></details>`;
}

function Call({ entry, at }) {
  const draft = at.drafts?.get(entry.id);
  const inside = () => (entry.children.length > 0 || draft) && html`<div class="tool-children" aria-label="What the subagent said" role="group">
    ${entry.children.map((one) => html`<${Entry} key=${one.key} entry=${one} changes=${one.changes} at=${at} inner />`)}
    ${draft && html`<${Draft} blocks=${draft} />`}
  </div>`;
  return html`<${Tool} tool=${entry} at=${at} inside=${inside} />`;
}

function Asked({ entry, at }) {
  const { request } = entry;
  if (request.status === "open") return html`<${Request} request=${request} answered=${at.refresh} cwd=${at.cwd} />`;
  const who = request.by?.key_name ?? (request.by?.reason ? format.words(request.by.reason) : "");
  const what = request.type === "permission" ? request.tool_name : request.type === "question" ? request.questions?.map((one) => one.question).join(" ") : request.tool_name;
  const answers = Object.values(request.resolution?.answers ?? {}).flat().join(", ");
  return html`<div class="resolved"><${Badge} status=${request.decision} />
    <span class="grow break"><span class="soft">${what}</span>${answers && html` → ${answers}`}${request.resolution?.message && html` · “${request.resolution.message}”`}${request.resolution?.rules?.length ? html` · from now on: <code>${request.resolution.rules.join(", ")}</code>` : null}</span>
    <span class="small quiet nowrap">${who}${request.ended && ` · ${format.duration(request.ended - entry.at)}`}</span></div>`;
}

function Outcome({ entry }) {
  const { run } = entry;
  const facts = [run.started && format.duration(run.ended - (run.started ?? run.began)), run.cost !== undefined && run.cost !== null && format.money(run.cost), run.turns && format.plural(run.turns, "turn")].filter(Boolean);
  return html`<div class="outcome">
    ${run.error && html`<${Failure} error=${run.error} />`}
    ${run.structured !== undefined && run.structured !== null && html`<${Json} value=${run.structured} label="structured output" />`}
    <p class="outcome-line"><${Badge} status=${run.status} /><span class="small quiet num">${facts.join(" · ")}</span></p>
  </div>`;
}

function Cut({ entry }) {
  return html`<div class="cut"><${Markdown} text=${entry.block.text} /><p class="small quiet">Cut off: this was being written when the run ended.</p></div>`;
}

function Block({ entry }) {
  return html`<${Json} value=${entry.block} label=${entry.block.type ?? "a block"} />`;
}

const KINDS = { prompt: Prompt, told: Told, text: Said, thinking: Thinking, tool: Call, request: Asked, note: Note, outcome: Outcome, cut: Cut, block: Block };

/** What is being written at this moment; the message that it becomes takes its place. */
export function Draft({ blocks }) {
  return [...blocks.entries()].map(([index, { type, text }]) => {
    if (type === "thinking") return html`<div key=${index} class="thought live"><p class="row small soft"><span class="spinner"></span>Thinking</p><p class="pre soft">${text}</p></div>`;
    if (type === "input_json") return html`<p key=${index} class="row small quiet"><span class="spinner"></span>Writes a call, ${format.count(text.length)} characters</p>`;
    return html`<div key=${index} class="draft"><${Markdown} text=${text} /></div>`;
  });
}
