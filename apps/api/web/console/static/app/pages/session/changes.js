// What has changed in the workspace.

import { get, path } from "../../api.js";
import { useLoad } from "../../hooks.js";
import { Choice } from "../../parts/field.js";
import { Diff } from "../../parts/diff.js";
import { Empty, Failure, Loaded } from "../../parts/states.js";
import { html, useState } from "../../view.js";

export function Changes({ id, log }) {
  const [since, choose] = useState("run");
  const newest = log.frames.findLast((frame) => frame.event === "files")?.seq;
  const found = useLoad((signal) => get(path`/sessions/${id}/diff`, { since }, signal), [id, since, newest]);
  return html`<div class="stack tight">
    <${Choice} label="Since" value=${since} set=${choose} options=${[["run", "Since the last run began"], ["checkpoint", "Since the last checkpoint"]]} />
    ${found.error?.code === "checkpointing_off" || found.error?.code === "checkpoint_not_found"
      ? html`<${Empty} icon="file" title="No checkpoints">Sessions with <code>enable_file_checkpointing</code> keep one for each prompt.</>`
      : html`<${Loaded} from=${found} what="Comparing">${(difference) => html`
        ${difference.files_changed.length === 0 && html`<${Empty} icon="check" title="Nothing has changed">Files that a run changes are compared here with what was before.</>`}
        ${difference.diff && html`<${Diff} patch=${difference.diff} />`}
        ${difference.diff_omitted && html`<p class="small soft">Large files, and what is beyond a hundred thousand characters, are left out. Changed: ${difference.files_changed.map((name, i) => html`${i ? ", " : ""}<code>${name}</code>`)}</p>`}`}</>`}
  </div>`;
}
