// Small pictures, drawn with lines of the text's colour.

import { html } from "../view.js";

const PATHS = {
  sessions: "M3 4h10M3 8h10M3 12h6",
  inbox: "M2.5 9.5 4 3.5h8l1.5 6v3h-11zM2.5 9.5h3.2a2.4 2.4 0 0 0 4.6 0h3.2",
  plus: "M8 3v10M3 8h10",
  preset: "M3 4.5h6M12 4.5h1M3 11.5h1M7 11.5h6M10.5 3v3M5.5 10v3",
  clock: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M8 4.500v3.500l2.500 1.500",
  usage: "M3 13V8M8 13V3M13 13v-7M2 13.5h12",
  webhook: "M6.2 6.5a2.5 2.5 0 1 1 3.5-.3l2 3.7M9.4 11.5a2.5 2.5 0 1 0 2.3-3.6M6.3 6.6l-2 3.6M4.3 8a2.5 2.5 0 1 0 2 3.5h3",
  key: "M9.5 9.5a3.5 3.5 0 1 0-3-3L2.5 10.500v3h3v-1.800h1.700v-1.700zM11 5h.01",
  fleet: "M2.5 3h11v4h-11zM2.5 9h11v4h-11zM5 5h.01M5 11h.01",
  tenant: "M3 13.500V3.500l5-1.500v11.500M8 6l5 1v6.500M2 13.500h12M5 6h1M5 9h1M10.5 9.500h.5",
  audit: "M4 2.500h8v11H4zM6 5.500h4M6 8h4M6 10.500h2",
  sun: "M8 5.200a2.8 2.8 0 1 0 0 5.6 2.8 2.8 0 0 0 0-5.600M8 1.500v1.200M8 13.300v1.200M1.5 8h1.200M13.3 8h1.200M3.4 3.400l.9.9M11.7 11.700l.9.9M3.4 12.600l.9-.9M11.7 4.300l.9-.9",
  moon: "M13 9.500A5.5 5.5 0 0 1 6.5 3a5.5 5.5 0 1 0 6.5 6.500z",
  system: "M2.5 3h11v7.500h-11zM6 13.500h4M8 10.500v3",
  out: "M6.5 3h-4v10h4M6 8h7.500M10.5 5l3 3-3 3",
  menu: "M2.5 4.500h11M2.5 8h11M2.5 11.500h11",
  close: "M4 4l8 8M12 4l-8 8",
  copy: "M5.5 5.500h8v8h-8zM10.5 5.500v-3h-8v8h3",
  check: "M3 8.500l3.2 3.200L13 5",
  right: "M6 3.5 10.5 8 6 12.5",
  stop: "M4.5 4.500h7v7h-7z",
  fork: "M4.5 2.500v11M4.5 10c0-3 7-1.5 7-5M11.5 5V2.500M3 3.800l1.5-1.500L6 3.8",
  file: "M4 2h5l3 3v9H4zM9 2v3h3",
  folder: "M2 4h4l1.5 1.500H14v7.500H2z",
  link: "M7 9.500l3-3M6 7.5 4 9.500a2 2 0 0 0 2.8 2.800L8.8 10.300M10 8.500l2-2A2 2 0 0 0 9.2 3.700L7.2 5.7",
  up: "M8 13V3.500M4 7l4-4 4 4",
  down: "M8 3v9.500M4 9l4 4 4-4",
  trash: "M3 4.500h10M6.5 4V2.500h3V4M4.5 4.500l.5 9h6l.5-9",
  edit: "M3 13l.6-2.800L10.8 3l2.2 2.2-7.2 7.200z",
  refresh: "M13 8a5 5 0 1 1-1.5-3.500M13 2.500v2.700h-2.7",
  image: "M2.5 3h11v10h-11zM2.5 11l3.5-3.5 3 3 2-2 2.5 2.500M10.5 5.500h.01",
  tool: "M9.7 2.800a3.3 3.3 0 0 0-3.5 4.600L2.6 11l2.4 2.4 3.6-3.600a3.3 3.3 0 0 0 4.6-3.500l-2 2-2-.5-.5-2z",
  thought: "M8 2.500a4 4 0 0 0-2.5 7.100v1.900h5V9.600A4 4 0 0 0 8 2.500M6.2 13.500h3.6",
  ask: "M2.5 3h11v8h-6l-3 2.500V11h-2z",
  warn: "M8 2.5 14.5 13.500h-13zM8 6.500v3.500M8 11.800h.01",
  info: "M8 2a6 6 0 1 0 0 12A6 6 0 0 0 8 2M8 7.500v3.500M8 5h.01",
  play: "M5 3l8 5-8 5z",
  brand: "M3.5 4l4.5 4-4.5 4M8.5 12.500H13",
};

/** A picture beside text, which says the same: so it is hidden from who listens. */
export function Icon({ name, size = 16 }) {
  return html`<svg class="icon" width=${size} height=${size} viewBox="0 0 16 16" fill="none" stroke="currentColor"
    stroke-width="1.3" stroke-linecap="round" stroke-linejoin="round" aria-hidden="true" focusable="false"><path d=${PATHS[name]} /></svg>`;
}
