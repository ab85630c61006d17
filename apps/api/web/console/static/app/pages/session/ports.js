// What programs of the agent serve.

import { get, path } from "../../api.js";
import { useLoad, usePoll } from "../../hooks.js";
import { ButtonLink, Copy } from "../../parts/button.js";
import { Empty, Loaded } from "../../parts/states.js";
import { html } from "../../view.js";

export function Ports({ id, session, log, writes }) {
  const open = log.state.ports ?? session.ports;
  // A link lets everybody in, so it takes a key that may write.
  const found = useLoad(async (signal) => (writes ? (await get(path`/sessions/${id}/ports`, {}, signal)).data : open.map((port) => ({ port }))), [id, open.join()]);
  usePoll(found.reload, 30_000);
  return html`<${Loaded} from=${found}>${(ports) => (ports.length
    ? html`<div class="stack tight"><ul class="lines">${ports.map(({ port, url }) => html`<li key=${port} class="line-item">
        <code class="grow">localhost:${port}</code>
        ${url && html`<${Copy} text=${url} label="Copy the link" /><${ButtonLink} small icon="right" href=${url} target="_blank" rel="noopener noreferrer">Open</>`}
      </li>`)}</ul>
      <p class="small soft">${writes ? "A link lets whoever has it look for 12 hours. What it shows was made by the agent." : "Links take a key that may write."}</p></div>`
    : html`<${Empty} icon="link" title="No open ports">When the agent starts a web server, it can be looked at from here.</>`)}</>`;
}
