// Which page a path is, and how to get to another one. The server answers every path below /console with the same page.

import { store, useStore } from "./store.js";

/** Where the console is, with a slash at the end: …/console/. A proxy may have put something before it. */
export const ROOT = new URL("../../../", import.meta.url);

/** Where the server is, with a slash at the end. */
export const SERVER = new URL("../", ROOT);

const place = store(read());

function read() {
  const path = location.pathname.slice(ROOT.pathname.length - 1).replace(/\/+$/, "") || "/";
  return { path, query: new URLSearchParams(location.search) };
}

/** The address of a page: to("/sessions", { status: "idle" }). What is empty in a query is left out. */
export function to(path, query = {}) {
  const kept = Object.entries(query).filter(([, value]) => value !== undefined && value !== null && value !== "");
  const search = new URLSearchParams(kept).toString();
  return ROOT.pathname + path.slice(1) + (search && `?${search}`);
}

export function navigate(path, query, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", to(path, query));
  place.set(read());
}

/** Change some of the query of the page that is shown. */
export function setQuery(changes) {
  const { path, query } = place.get();
  navigate(path, { ...Object.fromEntries(query), ...changes }, { replace: true });
}

/** The path below /console, and the query. */
export function usePlace() {
  return useStore(place);
}

/** What fits of [[pattern, page], …] with the values of its `:names`; undefined if nothing does. */
export function match(routes, path) {
  const given = path.split("/");
  for (const [pattern, page] of routes) {
    const wanted = pattern.split("/");
    if (wanted.length !== given.length) continue;
    if (wanted.every((part, i) => part.startsWith(":") ? given[i] : part === given[i])) {
      const named = wanted.flatMap((part, i) => part.startsWith(":") ? [[part.slice(1), decode(given[i])]] : []);
      return { page, params: Object.fromEntries(named) };
    }
  }
  return undefined;
}

function decode(part) {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

addEventListener("popstate", () => place.set(read()));

// Plain clicks on links to pages of the console stay in this document.
document.addEventListener("click", (event) => {
  const link = event.target.closest?.("a[href]");
  if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
  if (link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
  if (!link.pathname.startsWith(ROOT.pathname)) return;
  event.preventDefault();
  history.pushState(null, "", link.href);
  place.set(read());
});
