// Fields of forms. Each has a label, may have a hint, and shows what is wrong with it.

import { classes, html, useId } from "../view.js";

export function Field({ label, hint, error, children, wide }) {
  const id = useId();
  const told = [hint && `${id}-hint`, error && `${id}-error`].filter(Boolean).join(" ") || undefined;
  return html`<div class=${classes("field", wide && "wide", error && "wrong")}>
    <label for=${id}>${label}</label>
    ${children({ id, "aria-describedby": told, "aria-invalid": error ? "true" : undefined })}
    ${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}
    ${error && html`<p class="wrong-text" id="${id}-error">${error}</p>`}
  </div>`;
}

const taken = (set) => (event) => set(event.currentTarget.value);

export function Text({ label, hint, error, wide, value, set, type = "text", ...more }) {
  return html`<${Field} label=${label} hint=${hint} error=${error} wide=${wide}>
    ${(at) => html`<input ...${at} ...${more} type=${type} value=${value} onInput=${taken(set)} />`}
  </>`;
}

export function Area({ label, hint, error, wide = true, value, set, rows = 3, ...more }) {
  return html`<${Field} label=${label} hint=${hint} error=${error} wide=${wide}>
    ${(at) => html`<textarea ...${at} ...${more} rows=${rows} value=${value} onInput=${taken(set)}></textarea>`}
  </>`;
}

/** options: texts, or [value, text]. `none` is the text of no choice. */
export function Select({ label, hint, error, wide, value, set, options, none, ...more }) {
  const rows = options.map((one) => (Array.isArray(one) ? one : [one, one]));
  const unknown = value && !rows.some(([known]) => known === value);
  return html`<${Field} label=${label} hint=${hint} error=${error} wide=${wide}>
    ${(at) => html`<select ...${at} ...${more} value=${value} onChange=${taken(set)}>
      ${none !== undefined && html`<option value="" selected=${!value}>${none}</option>`}
      ${unknown && html`<option value=${value} selected>${value}</option>`}
      ${rows.map(([one, text]) => html`<option value=${one} selected=${one === value}>${text}</option>`)}
    </select>`}
  </>`;
}

export function Check({ label, value, set, hint, ...more }) {
  const id = useId();
  return html`<div class="check"><input ...${more} id=${id} type="checkbox" checked=${value} aria-describedby=${hint ? `${id}-hint` : undefined}
    onChange=${(event) => set(event.currentTarget.checked)} /><label for=${id}>${label}</label>${hint && html`<p class="hint" id="${id}-hint">${hint}</p>`}</div>`;
}

/** One of few, all of them shown. */
export function Choice({ label, value, set, options }) {
  const name = useId();
  return html`<fieldset class="choice"><legend class="sr-only">${label}</legend>
    ${options.map(([one, text]) => html`<label class=${classes(one === value && "chosen")}><input type="radio" name=${name} class="sr-only" value=${one} checked=${one === value} onChange=${() => set(one)} />${text}</label>`)}
  </fieldset>`;
}
