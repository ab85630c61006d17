import { html } from "../view.js";
import { Button } from "./button.js";
import { Code } from "./code.js";
import { Dialog } from "./dialog.js";
import { Icon } from "./icon.js";

/** Something that is shown once. */
export function Secret({ title, value, close, children }) {
  return html`<${Dialog} title=${title} close=${close}><div class="stack">
    <p class="warning"><${Icon} name="warn" /><span>It is shown this once. Keep it now.</span></p>
    <${Code} text=${value} label="the secret" />
    ${children && html`<p class="soft">${children}</p>`}
    <div class="row end"><${Button} kind="primary" onClick=${close}>I have kept it</></div>
  </div></>`;
}
