import { html } from "../view.js";

/** A page with its title, what can be done at its top, and its content. */
export function Page({ title, back, actions, children, wide = true }) {
  return html`<div class=${wide ? "page" : "page narrow"}>
    <header class="page-head"><div class="row grow">${back && html`${back}<span class="quiet" aria-hidden="true">/</span>`}<h1 tabindex="-1">${title}</h1></div>${actions && html`<div class="row wrap">${actions}</div>`}</header>
    ${children}
  </div>`;
}
