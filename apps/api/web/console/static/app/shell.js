// What is around each page: the menu, who is signed in, and which page it is.

import { account, may, signOut } from "./auth.js";
import { inbox } from "./inbox.js";
import { usePoll } from "./hooks.js";
import { Button } from "./parts/button.js";
import { Icon } from "./parts/icon.js";
import { Empty, Failure } from "./parts/states.js";
import { Toasts } from "./parts/toast.js";
import { GROUPS, ROUTES } from "./pages/index.js";
import { SignIn } from "./pages/signin.js";
import { match, to, usePlace } from "./router.js";
import { useStore } from "./store.js";
import { nextTheme, theme } from "./theme.js";
import { classes, html, useEffect, useErrorBoundary, useRef, useState } from "./view.js";

export function App() {
  const facts = useStore(account);
  return html`${facts ? html`<${Shell} key=${facts.key_id} facts=${facts} />` : html`<${SignIn} />`}<${Toasts} />`;
}

function Shell({ facts }) {
  const { path } = usePlace();
  const [open, set] = useState(false);
  const main = useRef();
  const first = useRef(true);
  useEffect(() => {
    inbox.clear();
    inbox.refresh();
  }, []);
  usePoll(inbox.refresh, 6000);
  // Another page begins at its title, for who reads by ear or by keyboard.
  useEffect(() => {
    set(false);
    if (!first.current) (main.current.querySelector("h1") ?? main.current).focus({ preventScroll: true });
    first.current = false;
    main.current.scrollTop = 0;
  }, [path]);
  const found = match(ROUTES, path);
  const allowed = found && may(facts, found.page.needs ?? "read");
  return html`<div class="shell">
    <a class="skip" href="#main" onClick=${(event) => (event.preventDefault(), main.current.focus())}>Skip to the content</a>
    <header class="top-bar">
      <${Button} kind="quiet" icon=${open ? "close" : "menu"} label=${open ? "Close the menu" : "Open the menu"} aria-expanded=${open ? "true" : "false"} onClick=${() => set(!open)} />
      <a class="brand" href=${to("/sessions")}><span class="brand-mark"><${Icon} name="brand" /></span>Claude Agent API</a>
    </header>
    <aside class=${classes("side", open && "open")} aria-label="Menu">
      <a class="brand" href=${to("/sessions")}><span class="brand-mark"><${Icon} name="brand" /></span>Claude Agent API</a>
      <nav aria-label="Pages"><${Menu} facts=${facts} path=${path} /></nav>
      <${Who} facts=${facts} />
    </aside>
    ${open && html`<div class="veil" onClick=${() => set(false)}></div>`}
    <main id="main" ref=${main} tabindex="-1">
      ${!found ? html`<${Empty} title="There is no such page"><a href=${to("/sessions")}>Sessions</a></>`
        : !allowed ? html`<${Empty} icon="key" title="This key may not see that page">It needs the scope <code>${found.page.needs}</code>.</>`
          : html`<${Guarded} key=${path} draw=${found.page.draw} params=${found.params} />`}
    </main>
  </div>`;
}

/** A mistake in one page leaves the menu as it is. */
function Guarded({ draw: Draw, params }) {
  const [error, reset] = useErrorBoundary();
  if (error) return html`<div class="page"><${Failure} error=${{ code: "console_error", message: String(error.message ?? error) }} retry=${reset} /></div>`;
  return html`<${Draw} ...${params} />`;
}

function Menu({ facts, path }) {
  const { rows } = useStore(inbox.state);
  return GROUPS.map(([title, pages]) => {
    const shown = pages.filter((page) => may(facts, page.needs ?? "read"));
    return shown.length > 0 && html`<div class="menu-group"><p class="menu-title" id="menu-${title}">${title}</p><ul aria-labelledby="menu-${title}">${shown.map((page) => {
      const here = path === page.path || path.startsWith(`${page.path}/`) || (page.path === "/sessions" && path === "/");
      return html`<li><a href=${to(page.path)} class=${classes("menu-link", here && "here")} aria-current=${here ? "page" : undefined}><${Icon} name=${page.icon} /><span class="grow">${page.name}</span>
        ${page.path === "/inbox" && rows?.length > 0 && html`<span class="count hot" aria-label="${rows.length} open">${rows.length}</span>`}</a></li>`;
    })}</ul></div>`;
  });
}

const THEMES = { system: ["system", "Theme: as the system"], light: ["sun", "Theme: light"], dark: ["moon", "Theme: dark"] };

function Who({ facts }) {
  const [icon, label] = THEMES[useStore(theme)];
  return html`<div class="who">
    <a class="grow who-text" href=${to("/key")}><span class="clip">${facts.key_name}</span><span class="clip small quiet">${facts.tenant}</span></a>
    <${Button} kind="quiet" small icon=${icon} label=${label} onClick=${nextTheme} />
    <${Button} kind="quiet" small icon="out" label="Sign out" onClick=${() => signOut()} />
  </div>`;
}
