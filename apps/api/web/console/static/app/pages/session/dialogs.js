// What is asked before a session is forked, named anew, or deleted.

import { call, path, post } from "../../api.js";
import * as format from "../../format.js";
import { FormDialog } from "../../parts/dialog.js";
import { Area, Text } from "../../parts/field.js";
import { toast } from "../../parts/toast.js";
import { navigate } from "../../router.js";
import { html, useState } from "../../view.js";

/** A new session with the conversation so far, or up to one entry of it. */
export function ForkDialog({ session, entry, run, close }) {
  const before = entry?.kind === "prompt";
  const at = before ? (run?.first ?? entry.seq) - 1 : entry?.seq; // before all of a prompt's run
  const asked = before ? entry.blocks.map((block) => block.text ?? "").join("\n") : "";
  const [title, setTitle] = useState(session.title ? `${session.title} (fork)`.slice(0, 200) : "");
  const [prompt, setPrompt] = useState(asked);
  const submit = async () => {
    const body = { ...(title && { title }) };
    if (entry) body.at_seq = at;
    const made = await post(path`/sessions/${session.session_id}/fork`, body, { once: true });
    if (prompt.trim()) await post(path`/sessions/${made.session_id}/query`, { prompt }, { once: true });
    toast("Forked. This is the new session.");
    navigate(`/sessions/${made.session_id}`);
  };
  const from = !entry ? "with the whole conversation" : before ? "with what was before that prompt" : `with the conversation up to event ${entry.seq}`;
  return html`<${FormDialog} title="Fork the session" action="Fork" close=${close} submit=${submit}>
    <p class="soft">A new session ${from}, and with the files as they were stored last. This one stays as it is.</p>
    <${Text} label="Title" value=${title} set=${setTitle} maxlength="200" wide />
    <${Area} label="First prompt (optional)" value=${prompt} set=${setPrompt} rows="4" />
  </>`;
}

export function EditLabels({ session, close }) {
  const [title, setTitle] = useState(session.title ?? "");
  const [tags, setTags] = useState(session.tags.join(", "));
  const [metadata, setMetadata] = useState(Object.entries(session.metadata).map(([name, value]) => `${name}=${value}`).join("\n"));
  const submit = async () => {
    const pairs = metadata.split("\n").filter((line) => line.trim()).map((line) => {
      const [, name, value] = /^([^=]+)=(.*)$/.exec(line) ?? [];
      if (!name) throw Object.assign(new Error(`"${line}" has no "=".`), { code: "metadata" });
      return [name.trim(), value.trim()];
    });
    const body = { title: title || null, tags: tags.split(",").map((tag) => tag.trim()).filter(Boolean), metadata: Object.fromEntries(pairs) };
    await call("PATCH", path`/sessions/${session.session_id}`, { body });
  };
  return html`<${FormDialog} title="Title and labels" action="Save" close=${close} submit=${submit}>
    <${Text} label="Title" value=${title} set=${setTitle} maxlength="200" wide />
    <${Text} label="Tags" hint="With commas between" value=${tags} set=${setTags} wide />
    <${Area} label="Metadata" hint="A line each: name=value" value=${metadata} set=${setMetadata} rows="4" class="mono" />
  </>`;
}

export function DeleteSession({ session, close }) {
  const submit = async () => {
    await call("DELETE", path`/sessions/${session.session_id}`);
    toast(`${format.sessionTitle(session)} was deleted.`);
    navigate("/sessions");
  };
  return html`<${FormDialog} title="Delete the session" action="Delete" kind="danger" close=${close} submit=${submit}>
    <p class="break"><strong>${format.sessionTitle(session)}</strong></p>
    <p class="soft">Its run is stopped. Its conversation, events and files are removed for good; what it has cost stays in the usage.</p>
  </>`;
}
