import { html, useId, useLayoutEffect, useRef } from "../view.js";
import { useAction } from "../hooks.js";
import { Button } from "./button.js";
import { Failure } from "./states.js";

/** Something that is to be finished, or closed, before anything else. */
export function Dialog({ title, close, children, wide = false }) {
  const box = useRef();
  const id = useId();
  useLayoutEffect(() => {
    const before = document.activeElement;
    box.current.showModal();
    return () => before?.focus?.();
  }, []);
  const outside = (event) => event.target === box.current && close();
  return html`<dialog ref=${box} class=${wide ? "dialog wide" : "dialog"} aria-labelledby=${id} onClose=${close} onMouseDown=${outside}>
    <div class="dialog-box">
      <div class="dialog-head"><h2 id=${id}>${title}</h2><${Button} kind="quiet" small icon="close" label="Close" onClick=${close} /></div>
      <div class="dialog-body">${children}</div>
    </div>
  </dialog>`;
}

/** A form in a dialog: fields, and a button that does it. `submit` may throw; else the dialog is closed. */
export function FormDialog({ title, close, action, kind = "primary", submit, children, disabled, wide }) {
  const [run, { busy, error }] = useAction(submit);
  const send = async (event) => {
    event.preventDefault();
    if (await run()) close();
  };
  return html`<${Dialog} title=${title} close=${close} wide=${wide}>
    <form class="stack" onSubmit=${send} novalidate>
      ${children}
      <${Failure} error=${error} />
      <div class="row end"><${Button} onClick=${close}>Cancel</><${Button} type="submit" kind=${kind} busy=${busy} disabled=${disabled}>${action}</></div>
    </form>
  </>`;
}
