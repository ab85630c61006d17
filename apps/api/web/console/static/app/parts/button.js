import { classes, html, useEffect, useRef, useState } from "../view.js";
import { Icon } from "./icon.js";

/** kind: "plain", "primary", "quiet" or "danger". `icon` alone needs a `label`. */
export function Button({ kind = "plain", icon, label, busy = false, small = false, children, type = "button", disabled, ...more }) {
  const bare = !children;
  return html`<button ...${more} type=${type} disabled=${disabled || busy} aria-label=${bare ? label : undefined}
    title=${bare ? label : more.title} aria-busy=${busy || undefined}
    class=${classes("button", kind, small && "small", bare && "bare", more.class)}>
    ${icon && html`<${Icon} name=${icon} />`}${children}
  </button>`;
}

/** A link that looks like a button. */
export function ButtonLink({ kind = "plain", icon, small, children, ...more }) {
  return html`<a ...${more} class=${classes("button", kind, small && "small")}>${icon && html`<${Icon} name=${icon} />`}${children}</a>`;
}

/** Copies a text, and says that it has. */
export function Copy({ text, label = "Copy", icon = "copy", children }) {
  const [done, set] = useState(false);
  const timer = useRef();
  useEffect(() => () => clearTimeout(timer.current), []);
  const copy = async () => {
    await put(typeof text === "function" ? text() : text);
    set(true);
    clearTimeout(timer.current);
    timer.current = setTimeout(() => set(false), 1500);
  };
  return html`<${Button} kind="quiet" small icon=${done ? "check" : icon} label=${done ? "Copied" : label} onClick=${copy}>${children}</>`;
}

async function put(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  // Pages that came without TLS have no clipboard, but may copy what is selected.
  const field = Object.assign(document.createElement("textarea"), { value: text });
  document.body.append(field);
  field.select();
  document.execCommand("copy");
  field.remove();
}
