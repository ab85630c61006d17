// What has just happened, told for some seconds.

import { store, useStore } from "../store.js";
import { html } from "../view.js";

const told = store([]);
let number = 0;

export function toast(text) {
  const one = { number: ++number, text };
  told.set([...told.get(), one]);
  setTimeout(() => told.set(told.get().filter((other) => other !== one)), 4000);
}

export function Toasts() {
  const shown = useStore(told);
  return html`<div class="toasts" role="status" aria-live="polite">${shown.map((one) => html`<div key=${one.number} class="toast">${one.text}</div>`)}</div>`;
}
