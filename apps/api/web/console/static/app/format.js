// How values look, all of them.

const NONE = "—";

const number = new Intl.NumberFormat("en-US");
const compact = new Intl.NumberFormat("en-US", { notation: "compact", maximumFractionDigits: 1 });
const day = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const moment = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", second: "2-digit" });
const clock = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit", second: "2-digit" });

/** USD, a number or a decimal string. Small amounts keep what tells them apart. */
export function money(usd) {
  if (usd === null || usd === undefined) return NONE;
  const value = Number(usd);
  if (value === 0) return "$0";
  if (Math.abs(value) < 0.00001) return "< $0.00001";
  const digits = Math.abs(value) >= 100 ? 0 : Math.abs(value) >= 1 ? 2 : Math.abs(value) >= 0.01 ? 3 : 5;
  return `$${new Intl.NumberFormat("en-US", { minimumFractionDigits: Math.min(digits, 2), maximumFractionDigits: digits }).format(value)}`;
}

export function count(value) {
  return value === null || value === undefined ? NONE : number.format(value);
}

/** 1234 → 1.2K. */
export function short(value) {
  return value === null || value === undefined ? NONE : compact.format(value);
}

export function tokens(usage) {
  const { input_tokens = 0, output_tokens = 0, cache_read_input_tokens = 0, cache_creation_input_tokens = 0 } = usage ?? {};
  return { read: input_tokens + cache_read_input_tokens + cache_creation_input_tokens, written: output_tokens };
}

export function bytes(value) {
  if (value === null || value === undefined) return NONE;
  const units = ["B", "KB", "MB", "GB", "TB"];
  let size = value;
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit++;
  }
  return `${unit && size < 10 ? size.toFixed(1) : Math.round(size)} ${units[unit]}`;
}

/** Milliseconds as people say them: 340 ms, 2.4 s, 3 min 5 s, 2 h 4 min. */
export function duration(ms) {
  if (ms === null || ms === undefined || Number.isNaN(ms)) return NONE;
  if (ms < 1000) return `${Math.max(0, Math.round(ms))} ms`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 60) return `${ms < 9950 ? (ms / 1000).toFixed(1) : seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? `${hours} h ${minutes % 60} min` : `${Math.round(hours / 24)} days`;
}

/** Since or until then: 12 s ago, in 3 min. */
export function distance(iso, now = Date.now()) {
  if (!iso) return NONE;
  const ms = now - Date.parse(iso);
  const text = rough(Math.abs(ms));
  if (text === "now") return "now";
  return ms >= 0 ? `${text} ago` : `in ${text}`;
}

function rough(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  if (seconds < 86_400) return `${Math.floor(seconds / 3600)} h`;
  if (seconds < 30 * 86_400) return `${Math.floor(seconds / 86_400)} d`;
  return `${Math.floor(seconds / (30 * 86_400))} mo`;
}

export const time = (iso) => (iso ? moment.format(new Date(iso)) : NONE);
export const hour = (iso) => (iso ? clock.format(new Date(iso)) : NONE);

/** A date without a time of day: 2026-01-31 → 31 Jan. */
export const date = (text) => (text ? day.format(new Date(`${text}T12:00:00Z`)) : NONE);

/** The beginning of a UUID, enough for people. */
export const id = (uuid) => (uuid ? String(uuid).slice(0, 8) : NONE);

export const plural = (n, one, many = `${one}s`) => `${count(n)} ${n === 1 ? one : many}`;

/** requires_action → Requires action. */
export function words(code) {
  const text = String(code ?? "").replaceAll("_", " ");
  return (text.charAt(0).toUpperCase() + text.slice(1)).replace(/\busd\b/gi, "USD");
}

/**
 * Text whose order and length are what they seem: characters that cannot be seen, or that turn the order of others around,
 * are named. A command that a person allows, or a file's name, may be made to be misread.
 */
export const visible = (text) => String(text).replace(/[\p{Cc}\p{Cf}]/gu, named);

function named(one) {
  if ("\n\t\r\u200d".includes(one)) return one; // the last one joins emoji
  const code = one.codePointAt(0);
  return code < 0x20 ? String.fromCharCode(0x2400 + code) : `⟨U+${code.toString(16).toUpperCase().padStart(4, "0")}⟩`;
}

export const json = (value) => JSON.stringify(value, null, 2);

export const sessionTitle = (session) => (session.title && visible(session.title)) || `Session ${id(session.session_id)}`;

const TELLING = ["command", "file_path", "notebook_path", "pattern", "url", "query", "description", "prompt", "skill"];

/** What a tool is asked to do, in a line. */
export function toolSummary(input, cwd) {
  if (input === null || typeof input !== "object") return "";
  const name = TELLING.find((one) => typeof input[one] === "string");
  const asked = input.questions?.map?.((one) => one.question).join(" ");
  const text = asked ?? (name ? inWorkspace(input[name], cwd) : Object.keys(input).length ? JSON.stringify(input) : "");
  return visible(text.replace(/\s+/g, " ").slice(0, 300));
}

/** A path as it is inside of the workspace, where it is; else as it was. */
export function inWorkspace(path, cwd) {
  return cwd && path?.startsWith(`${cwd}/`) ? path.slice(cwd.length + 1) : path;
}
