// Where the next prompt is written.

import * as format from "../../format.js";
import { useAction } from "../../hooks.js";
import { Button } from "../../parts/button.js";
import { Icon } from "../../parts/icon.js";
import { Failure } from "../../parts/states.js";
import { html, useEffect, useRef, useState } from "../../view.js";

const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];
const MOST_BYTES = 3_900_000; // as base64 it must have at most 5242880 characters

const BUSY = [
  ["enqueue", "Queue behind it"],
  ["steer", "Tell it meanwhile"],
  ["interrupt", "Interrupt it"],
  ["reject", "Refuse if busy"],
];

async function base64(file) {
  const bytes = new Uint8Array(await file.arrayBuffer());
  let text = "";
  for (let i = 0; i < bytes.length; i += 0x8000) text += String.fromCharCode(...bytes.subarray(i, i + 0x8000));
  return btoa(text);
}

/** `send` is given the content of the prompt, the policy and the pictures' addresses, and promises that it was accepted. */
export function Composer({ busy: atWork, send, first, stop, stopping }) {
  const [text, setText] = useState(first ?? "");
  const [policy, setPolicy] = useState("enqueue");
  const [pictures, setPictures] = useState([]);
  const [refused, refuse] = useState(null);
  const area = useRef();
  const chooser = useRef();
  const [run, { busy, error }] = useAction(async (text) => {
    const images = await Promise.all(pictures.map(async ({ file }) => ({
      type: "image", source: { type: "base64", media_type: file.type, data: await base64(file) },
    })));
    const content = images.length ? [...images, ...(text.trim() ? [{ type: "text", text }] : [])] : text;
    await send(content, policy, text, pictures.map(({ url }) => url));
    setText("");
    setPictures([]);
  });
  const submit = (event) => {
    event.preventDefault();
    const written = area.current.value; // what was typed a moment ago may not have been drawn yet
    if (!busy && (written.trim() || pictures.length)) run(written);
  };
  const take = (files) => {
    const known = [...files].filter((file) => PICTURES.includes(file.type));
    const large = known.find((file) => file.size > MOST_BYTES);
    refuse(large ? { code: "too_large", message: `${large.name} has ${format.bytes(large.size)}; a picture in a prompt may have ${format.bytes(MOST_BYTES)}. Put it into the files of the session instead.` } : null);
    setPictures((old) => [...old, ...known.filter((file) => file.size <= MOST_BYTES).map((file) => ({ file, url: URL.createObjectURL(file) }))]);
    return known.length > 0;
  };
  const keys = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
  };
  const paste = (event) => {
    if (event.clipboardData.files.length && take(event.clipboardData.files)) event.preventDefault();
  };
  useEffect(() => {
    area.current.style.height = "auto";
    area.current.style.height = `${Math.min(area.current.scrollHeight + 2, 240)}px`;
  }, [text]);
  return html`<form class="composer" onSubmit=${submit}>
    <${Failure} error=${error ?? refused} />
    ${pictures.length > 0 && html`<div class="row wrap">${pictures.map((picture) => html`<span class="attached"><img src=${picture.url} alt=${picture.file.name} />
      <${Button} kind="quiet" small icon="close" label=${`Leave out ${picture.file.name}`} onClick=${() => setPictures(pictures.filter((one) => one !== picture))} /></span>`)}</div>`}
    <div class="composer-box">
      <label class="sr-only" for="prompt">Prompt</label>
      <textarea id="prompt" ref=${area} rows="1" value=${text} placeholder="Write a prompt" aria-describedby="prompt-hint"
        onInput=${(event) => setText(event.currentTarget.value)} onKeyDown=${keys} onPaste=${paste}></textarea>
      <div class="row composer-row">
        <input ref=${chooser} type="file" id="pictures" class="sr-only" tabindex="-1" aria-label="Pictures" accept=${PICTURES.join(",")} multiple onChange=${(event) => (take(event.currentTarget.files), (event.currentTarget.value = ""))} />
        <${Button} kind="quiet" small icon="image" label="Add pictures" onClick=${() => chooser.current.click()} />
        <label class="on-busy small"><span class="soft">If busy</span>
          <select id="on_busy" value=${policy} onChange=${(event) => setPolicy(event.currentTarget.value)}>${BUSY.map(([value, name]) => html`<option value=${value}>${name}</option>`)}</select>
        </label>
        <span class="grow small quiet wide-only" id="prompt-hint">Enter sends, Shift+Enter begins a line</span>
        <span class="grow narrow-gap"></span>
        ${atWork && html`<${Button} kind="danger" small icon="stop" busy=${stopping} onClick=${stop}>Interrupt</>`}
        <${Button} type="submit" kind="primary" small busy=${busy} disabled=${!text.trim() && !pictures.length}>Send</>
      </div>
    </div>
  </form>`;
}
