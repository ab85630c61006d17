// Back to what the files were before a prompt: first look, then do it.

import { get, path, post } from "../../api.js";
import * as format from "../../format.js";
import { useAction, useLoad, usePages } from "../../hooks.js";
import { Button } from "../../parts/button.js";
import { Dialog } from "../../parts/dialog.js";
import { Diff } from "../../parts/diff.js";
import { Ago, Empty, Failure, Loading } from "../../parts/states.js";
import { toast } from "../../parts/toast.js";
import { html, useEffect, useState } from "../../view.js";

export function Checkpoints({ id, log, writes }) {
  const list = usePages(path`/sessions/${id}/checkpoints`, {});
  const [chosen, choose] = useState(null);
  const newest = log.frames.findLast((frame) => frame.event === "checkpoint")?.seq;
  useEffect(() => {
    if (list.rows && newest) list.reload();
  }, [newest]);
  if (list.rows === undefined) return list.error ? html`<${Failure} error=${list.error} retry=${list.reload} />` : html`<${Loading} />`;
  if (!list.rows.length) {
    return html`<${Empty} icon="refresh" title="No checkpoints">With <code>enable_file_checkpointing</code> the agent keeps a copy of each file before its tools change it, and the files can be brought back to before any prompt.</>`;
  }
  return html`<div class="stack tight">
    <p class="small soft">Files as they were before a prompt. Only what the tools Write, Edit and NotebookEdit change is kept; the conversation goes on.</p>
    <ol class="lines">${list.rows.map((one) => html`<li key=${one.checkpoint_id} class="line-item">
      <div class="grow"><p class="clip">${one.prompt}</p><p class="small quiet"><${Ago} at=${one.created_at} /> · event ${one.seq}</p></div>
      ${writes && html`<${Button} small onClick=${() => choose(one)}>Rewind …</>`}
    </li>`)}</ol>
    ${list.more && html`<div><${Button} small busy=${list.loading} onClick=${list.more}>Show more</></div>`}
    ${chosen && html`<${Rewind} id=${id} checkpoint=${chosen} close=${() => choose(null)} />`}
  </div>`;
}

const ask = async (id, checkpoint, dry) => {
  const answer = await post(path`/sessions/${id}/rewind`, { checkpoint_id: checkpoint.checkpoint_id, dry_run: dry }, { once: true });
  if (answer.status === "accepted") throw Object.assign(new Error("The session is busy: the rewind waits in its queue, and the timeline will tell of it."), { code: "accepted" });
  return answer;
};

function Rewind({ id, checkpoint, close }) {
  const dry = useLoad(() => ask(id, checkpoint, true), [checkpoint.checkpoint_id]);
  const [run, { busy, error }] = useAction(async () => {
    const done = await ask(id, checkpoint, false);
    toast(`${format.plural(done.files_changed.length, "file")} rewound.`);
    close();
  });
  return html`<${Dialog} title="Rewind the files" close=${close} wide>
    <div class="stack">
      <p class="break">To before: <strong>${checkpoint.prompt}</strong></p>
      ${dry.loading && html`<${Loading} what="Finding out what would change" />`}
      <${Failure} error=${dry.error ?? error} retry=${dry.error ? dry.reload : undefined} />
      ${dry.data && (dry.data.files_changed.length
        ? html`<p class="soft">${format.plural(dry.data.files_changed.length, "file")} would change: ${format.plural(dry.data.insertions, "line")} added, ${format.count(dry.data.deletions)} removed.</p><${Diff} patch=${dry.data.diff ?? ""} />`
        : html`<p class="soft">The files are as they were then: nothing would change.</p>`)}
      ${dry.data?.diff_omitted && html`<p class="small soft">Some of it is too large to be shown: ${dry.data.files_changed.join(", ")}</p>`}
      ${dry.data?.not_restored?.length > 0 && html`<p class="small bad-text">Could not be restored: ${dry.data.not_restored.join(", ")}</p>`}
      <div class="row end"><${Button} onClick=${close}>Cancel</><${Button} kind="danger" busy=${busy} disabled=${!dry.data?.files_changed.length} onClick=${run}>Rewind</></div>
    </div>
  </>`;
}
