import { classes, html, useRef } from "../view.js";

/** tabs: [[name, text, count?], …]. The panel is drawn by the caller, with `panelOf`'s properties. */
export function Tabs({ label, tabs, chosen, choose, of }) {
  const list = useRef();
  const keys = (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const at = tabs.findIndex(([name]) => name === chosen);
    const next = event.key === "Home" ? 0 : event.key === "End" ? tabs.length - 1 : step ? (at + step + tabs.length) % tabs.length : -1;
    if (next < 0) return;
    event.preventDefault();
    choose(tabs[next][0]);
    list.current.children[next].focus();
  };
  return html`<div class="tabs" role="tablist" aria-label=${label} ref=${list} onKeyDown=${keys}>
    ${tabs.map(([name, text, count]) => html`<button type="button" role="tab" id="${of}-tab-${name}" aria-controls="${of}-panel"
      aria-selected=${name === chosen ? "true" : "false"} tabindex=${name === chosen ? 0 : -1} class=${classes("tab", name === chosen && "chosen")}
      onClick=${() => choose(name)}>${text}${count ? html` <span class="count">${count}</span>` : null}</button>`)}
  </div>`;
}

export const panelOf = (of, chosen) => ({ id: `${of}-panel`, role: "tabpanel", "aria-labelledby": `${of}-tab-${chosen}`, tabindex: 0 });
