// The key that is signed in: what it may, and what binds it.

import { get } from "../api.js";
import { account } from "../auth.js";
import * as format from "../format.js";
import { useLoad, useTitle } from "../hooks.js";
import { Budgets } from "../parts/budgets.js";
import { Page } from "../parts/page.js";
import { Facts, Id, Loaded } from "../parts/states.js";
import { useStore } from "../store.js";
import { html } from "../view.js";

export function Key() {
  const facts = useStore(account);
  const limits = useLoad((signal) => get("/limits", {}, signal));
  useTitle("This key");
  return html`<${Page} title="This key" wide=${false}>
    <${Facts} rows=${[
      ["Name", facts.key_name],
      ["Begins with", html`<code>${facts.key_prefix}</code>`],
      ["Tenant", facts.tenant],
      ["Scopes", facts.scopes.join(", ")],
      ["Profiles", facts.profiles ? facts.profiles.join(", ") : "any"],
      ["Networks", facts.networks ? facts.networks.join(", ") : "any"],
      ["Expires", facts.expires_at ? format.time(facts.expires_at) : "never"],
      ["Id", html`<${Id} value=${facts.key_id} what="key's id" />`],
      ["Tenant's id", html`<${Id} value=${facts.tenant_id} what="tenant's id" />`],
    ]} />
    <${Loaded} from=${limits}>${({ data }) => (data.length ? html`<${Budgets} rows=${data} title="Limits" />` : html`<p class="soft">No limits of its own.</p>`)}</>
  </>`;
}
