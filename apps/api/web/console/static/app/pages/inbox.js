// What waits for a person, in all sessions of the tenant.

import * as format from "../format.js";
import { useTitle } from "../hooks.js";
import { inbox } from "../inbox.js";
import { Page } from "../parts/page.js";
import { Request } from "../parts/request.js";
import { Ago, Empty, Failure, Loading } from "../parts/states.js";
import { toast } from "../parts/toast.js";
import { to } from "../router.js";
import { useStore } from "../store.js";
import { html, useEffect } from "../view.js";

export function Inbox() {
  const { rows, error } = useStore(inbox.state);
  useTitle("Inbox");
  useEffect(() => void inbox.refresh(), []);
  return html`<${Page} title="Inbox" wide=${false}>
    <${Failure} error=${error} retry=${inbox.refresh} />
    ${rows === undefined && !error && html`<${Loading} />`}
    ${rows?.length === 0 && html`<${Empty} icon="inbox" title="Nothing waits for you">When an agent asks for permission, or has a question, it is shown here at once.</>`}
    <div class="stack">${rows?.map((request) => html`<${Request} key=${request.request_id} request=${request} answered=${(refused) => answered(request, refused)}>
      <p class="small soft row wrap"><a href=${to(`/sessions/${request.session_id}`)}>Session ${format.id(request.session_id)}</a><span>asked <${Ago} at=${request.created_at} /></span></p>
    </>`)}</div>
  </>`;
}

function answered(request, refused) {
  inbox.forget(request.request_id);
  toast(refused ? `${format.id(request.session_id)}: ${refused.message}` : "Answered. The agent goes on.");
}
