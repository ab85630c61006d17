// Who you are: a key, which stays in the memory of this page.

import { farewell, signIn } from "../auth.js";
import { useAction, useTitle } from "../hooks.js";
import { Button } from "../parts/button.js";
import { Icon } from "../parts/icon.js";
import { Failure } from "../parts/states.js";
import { useStore } from "../store.js";
import { html, useEffect, useRef, useState } from "../view.js";

export function SignIn() {
  const [key, setKey] = useState("");
  const [name, setName] = useState("");
  const why = useStore(farewell);
  const field = useRef();
  const [run, { busy, error }] = useAction(() => signIn(key.trim()));
  useTitle("Sign in");
  useEffect(() => field.current.focus(), []);
  const submit = (event) => {
    event.preventDefault();
    if (key.trim()) run();
  };
  return html`<main class="sign-in">
    <form class="sign-in-box stack" onSubmit=${submit}>
      <div class="brand large"><span class="brand-mark"><${Icon} name="brand" size=${20} /></span><h1>Claude Agent API</h1></div>
      <p class="soft">Sign in with an API key of this server.</p>
      <div class="field wide"><label for="api-key">API key</label>
        <input id="api-key" ref=${field} name="password" type="password" autocomplete="current-password" spellcheck="false" required value=${key} onInput=${(event) => setKey(event.currentTarget.value)} aria-describedby="key-hint" />
        <p class="hint" id="key-hint">It stays in the memory of this page, and goes to this server only. A reload asks again.</p></div>
      <details class="more"><summary>Several keys?</summary><div class="field wide"><label for="key-name">Name of this key</label>
        <input id="key-name" name="username" type="text" autocomplete="username" spellcheck="false" value=${name} onInput=${(event) => setName(event.currentTarget.value)} />
        <p class="hint">For your password manager, to tell keys apart. It is not sent.</p></div></details>
      <${Failure} error=${error ?? why} />
      <${Button} type="submit" kind="primary" busy=${busy} disabled=${!key.trim()} class="block">Sign in</>
    </form>
  </main>`;
}
