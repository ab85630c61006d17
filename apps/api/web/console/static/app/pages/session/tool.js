// One call of a tool: what it was asked, what came of it, and what a subagent said meanwhile.

import { blob, filePath } from "../../api.js";
import * as format from "../../format.js";
import { useNow } from "../../hooks.js";
import { Given } from "../../parts/call.js";
import { Code, Json } from "../../parts/code.js";
import { Icon } from "../../parts/icon.js";
import { Badge, Failure } from "../../parts/states.js";
import { classes, html, useEffect, useState } from "../../view.js";

const PICTURE_BYTES = 20_000_000; // of a larger one there would be a part
const PICTURE = /\.(png|jpe?g|gif|webp)$/i;

/** `inside` draws what a subagent said, if this call is one's. */
export function Tool({ tool, at, inside }) {
  const [open, set] = useState(false);
  const ended = tool.result !== undefined;
  return html`<details class=${classes("tool", tool.failed && "failed")} open=${open} onToggle=${(event) => event.target === event.currentTarget && set(event.currentTarget.open)}>
    <summary>
      <${Icon} name="right" />
      <span class="tool-name">${tool.name}</span>
      <code class="tool-what clip">${format.toolSummary(tool.input, at.cwd)}</code>
      ${tool.children.length > 0 && html`<span class="small quiet nowrap">${format.plural(tool.children.length, "entry", "entries")}</span>`}
      <${State} tool=${tool} ended=${ended} at=${at} />
    </summary>
    ${open && html`<div class="tool-body">
      <${Given} input=${tool.input} cwd=${at.cwd} />
      <${Picture} tool=${tool} at=${at} />
      ${tool.task && html`<p class="small soft break"><${Badge} status=${tool.task.status} /> ${tool.task.summary ?? tool.task.description}</p>`}
      ${inside()}
      ${ended && html`<${Result} tool=${tool} />`}
    </div>`}
  </details>`;
}

function State({ tool, ended, at }) {
  if (ended) {
    return html`<span class=${classes("small num nowrap", tool.failed ? "bad-text" : "quiet")}>${tool.failed && "failed · "}${format.duration(tool.ended - tool.at)}</span>`;
  }
  return at.live ? html`<${Running} since=${tool.at} />` : html`<span class="small quiet nowrap">no result</span>`;
}

function Running({ since }) {
  const now = useNow();
  return html`<span class="row small quiet nowrap num"><span class="spinner"></span>${format.duration(now - since)}</span>`;
}

function Result({ tool }) {
  const blocks = typeof tool.result === "string" ? [{ type: "text", text: tool.result }] : Array.isArray(tool.result) ? tool.result : [tool.result];
  return html`<div class=${classes("tool-result", tool.failed && "failed")}>
    <p class="small soft">${tool.failed ? "It failed" : "Result"}</p>
    ${blocks.map((block) => block?.type === "text"
      ? html`<${Code} text=${block.text || "(nothing)"} label="the result" tall />`
      : block?.type === "image" ? html`<${Omitted} block=${block} />` : html`<${Json} value=${block} label="the result" />`)}
  </div>`;
}

/** Events tell the size of a picture, and leave it out. */
export function Omitted({ block }) {
  return html`<span class="omitted"><${Icon} name=${block.type === "image" ? "image" : "file"} />${block.title ?? block.source?.media_type ?? block.type}${block.bytes ? ` · ${format.bytes(block.bytes)}` : ""}</span>`;
}

/** A picture of the workspace that a tool has read or written. */
function Picture({ tool, at }) {
  const path = format.inWorkspace(tool.input?.file_path, at.cwd);
  const shown = tool.result !== undefined && !tool.failed && typeof path === "string" && !path.startsWith("/") && PICTURE.test(path);
  const [state, set] = useState({});
  useEffect(() => {
    if (!shown) return undefined;
    const controller = new AbortController();
    let url;
    blob(filePath(at.session, at.base ? `${at.base}/${path}` : path), { first: PICTURE_BYTES, signal: controller.signal }).then(
      (found) => {
        if (found.size === PICTURE_BYTES) return;
        url = URL.createObjectURL(new Blob([found], { type: `image/${path.split(".").pop().toLowerCase().replace("jpg", "jpeg")}` }));
        set({ url });
      },
      (error) => !controller.signal.aborted && set({ error }),
    );
    return () => {
      controller.abort();
      URL.revokeObjectURL(url);
    };
  }, [shown, path]);
  if (!shown) return null;
  if (state.error) return html`<${Failure} error=${state.error} />`;
  return state.url ? html`<img class="picture" src=${state.url} alt=${path} />` : null;
}
