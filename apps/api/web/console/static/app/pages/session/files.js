// Files of the workspace: look, take, put.

import { blob, call, download, filePath, path, upload } from "../../api.js";
import * as format from "../../format.js";
import { useAction, useLoad, usePages } from "../../hooks.js";
import { Button } from "../../parts/button.js";
import { Code } from "../../parts/code.js";
import { FormDialog } from "../../parts/dialog.js";
import { Icon } from "../../parts/icon.js";
import { Ago, Empty, Failure, Loaded, Loading } from "../../parts/states.js";
import { toast } from "../../parts/toast.js";
import { setQuery, usePlace } from "../../router.js";
import { classes, html, useEffect, useRef, useState } from "../../view.js";

const SHOWN_BYTES = 256_000;
const PICTURE_BYTES = 20_000_000;
const PICTURES = { png: "image/png", jpg: "image/jpeg", jpeg: "image/jpeg", gif: "image/gif", webp: "image/webp" };

const parent = (name) => (name.includes("/") ? name.slice(0, name.lastIndexOf("/")) : "");
const join = (directory, name) => (directory ? `${directory}/${name}` : name);

export function Files({ id, log, writes }) {
  const { query } = usePlace();
  const shown = query.get("path") ?? ""; // a file
  const [directory, enter] = useState(parent(shown));
  const list = usePages(path`/sessions/${id}/files`, { path: directory, limit: 200 });
  const chooser = useRef();
  const [over, setOver] = useState(false);
  const [removing, remove] = useState(null);
  const changed = log.frames.findLast((frame) => frame.event === "files")?.seq;
  const first = useRef(true);
  useEffect(() => {
    if (!first.current) list.refresh().catch(() => {});
    first.current = false;
  }, [changed]);
  const [put, { busy, error }] = useAction(async (files) => {
    for (const file of files) await upload(filePath(id, join(directory, file.name)), file);
    toast(files.length === 1 ? `${files[0].name} was uploaded.` : `${format.plural(files.length, "file")} were uploaded.`);
    list.reload();
  });
  const [archive, archiving] = useAction(() => download(path`/sessions/${id}/archive`, `${format.id(id)}.zip`, { path: directory, format: "zip" }));
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    if (writes && event.dataTransfer.files.length) put([...event.dataTransfer.files]);
  };
  const parts = directory ? directory.split("/") : [];
  return html`<div class=${classes("stack tight files", over && "over")} onDragOver=${(event) => (event.preventDefault(), writes && setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${drop}>
    <div class="row between wrap">
      <nav class="path row wrap" aria-label="Directory">
        <button type="button" class="link-button" onClick=${() => enter("")}>workspace</button>
        ${parts.map((part, i) => html`<span aria-hidden="true" class="quiet">/</span><button type="button" class="link-button" onClick=${() => enter(parts.slice(0, i + 1).join("/"))}>${format.visible(part)}</button>`)}
      </nav>
      <div class="row">
        <${Button} small icon="refresh" label="Refresh" onClick=${list.reload} />
        <${Button} small icon="down" busy=${archiving.busy} onClick=${archive}>All as zip</>
        ${writes && html`<input ref=${chooser} id="upload" type="file" multiple class="sr-only" tabindex="-1" aria-label="Files to upload" onChange=${(event) => (put([...event.currentTarget.files]), (event.currentTarget.value = ""))} />
        <${Button} small icon="up" busy=${busy} onClick=${() => chooser.current.click()}>Upload</>`}
      </div>
    </div>
    <${Failure} error=${error ?? archiving.error ?? list.error} retry=${list.error ? list.reload : undefined} />
    ${list.rows === undefined && !list.error && html`<${Loading} what="Reading the directory" />`}
    ${list.rows?.length === 0 && html`<${Empty} icon="folder" title="No files here">${writes ? "What the agent makes is shown here. Drop files to put some." : "What the agent makes is shown here."}</>`}
    ${list.rows?.length > 0 && html`<ul class="file-list">
      ${directory && html`<li><button type="button" class="file" onClick=${() => enter(parent(directory))}><${Icon} name="folder" /><span class="grow">..</span></button></li>`}
      ${list.rows.map((file) => html`<li key=${file.path} class=${file.path === shown ? "chosen" : ""}>
        <button type="button" class="file" aria-current=${file.path === shown ? "true" : undefined} onClick=${() => (file.type === "directory" ? enter(file.path) : setQuery({ tab: "files", path: file.path }))}>
          <${Icon} name=${file.type === "directory" ? "folder" : file.type === "link" ? "link" : "file"} />
          <span class="grow clip">${format.visible(file.path.split("/").pop())}${file.leads && html` <span class="quiet">→ ${format.visible(file.leads)}</span>`}</span>
          <span class="small quiet num nowrap">${file.type === "file" ? format.bytes(file.size) : ""}</span>
          <span class="small quiet wide-only"><${Ago} at=${file.modified_at} /></span>
        </button>
        ${writes && html`<${Button} kind="quiet" small icon="trash" label=${`Delete ${file.path}`} onClick=${() => remove(file)} />`}
      </li>`)}
    </ul>`}
    ${list.more && html`<div><${Button} small busy=${list.loading} onClick=${list.more}>Show more</></div>`}
    ${shown && html`<${Preview} key=${shown} id=${id} name=${shown} version=${changed} />`}
    ${removing && html`<${RemoveFile} id=${id} file=${removing} close=${() => remove(null)} done=${() => (removing.path === shown && setQuery({ path: "" }), list.reload())} />`}
  </div>`;
}

function RemoveFile({ id, file, close, done }) {
  const submit = async () => {
    await call("DELETE", filePath(id, file.path), { query: file.type === "directory" ? { recursive: true } : {} });
    done();
  };
  return html`<${FormDialog} title="Delete from the workspace" action="Delete" kind="danger" close=${close} submit=${submit}>
    <p class="break"><code>${format.visible(file.path)}</code>${file.type === "directory" && " and all that is in it"}</p>
  </>`;
}

/** Text and pictures are shown; of a long text its beginning. */
function Preview({ id, name, version }) {
  const kind = PICTURES[name.split(".").pop().toLowerCase()];
  const found = useLoad(async (signal) => {
    const content = await blob(filePath(id, name), { first: kind ? PICTURE_BYTES : SHOWN_BYTES, signal });
    if (kind && content.size === PICTURE_BYTES) return { text: null };
    if (kind) return { url: URL.createObjectURL(new Blob([content], { type: kind })), size: content.size };
    const bytes = new Uint8Array(await content.arrayBuffer());
    const binary = bytes.subarray(0, 8000).includes(0);
    return { text: binary ? null : new TextDecoder().decode(bytes), cut: bytes.length === SHOWN_BYTES };
  }, [id, name, version]);
  useEffect(() => () => found.data?.url && URL.revokeObjectURL(found.data.url), [found.data]);
  const [take, { busy, error }] = useAction(() => download(filePath(id, name), name.split("/").pop()));
  return html`<section class="preview" aria-label="Preview">
    <div class="row between"><h2 class="clip"><code>${format.visible(name)}</code></h2><div class="row">
      <${Button} small icon="down" busy=${busy} onClick=${take}>Download</>
      <${Button} small kind="quiet" icon="close" label="Close the preview" onClick=${() => setQuery({ path: "" })} /></div></div>
    <${Failure} error=${error} />
    ${found.error?.status === 416 ? html`<p class="quiet">The file is empty.</p>` : html`<${Loaded} from=${found}>${(file) => file.url
      ? html`<img class="picture" src=${file.url} alt=${name} />`
      : file.text === null
        ? html`<p class="quiet">This file is no text, or too large to be shown. Download it to look at it.</p>`
        : html`<${Code} text=${file.text} label=${name} />${file.cut && html`<p class="small quiet">The first ${format.bytes(SHOWN_BYTES)} are shown.</p>`}`}</>`}
  </section>`;
}
