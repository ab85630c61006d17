// The stream of a session's events, kept up for as long as the page is shown.

import { follow, get, path } from "../../api.js";
import { useEffect, useReducer, useRef } from "../../view.js";
import * as logs from "./log.js";

const WINDOW = 400; // events that a page begins with; older ones come when they are asked for
const PAGE = 200;
const HIDDEN_MS = 20_000;

/** After which event to begin, so that the newest are shown and the one that a link names. */
const start = (last, marked) => Math.max(0, Math.min(last - WINDOW, marked ? marked - 50 : Infinity));

/**
 * @param last `last_seq` of the session, undefined as long as that is not known.
 * @param heard is called after events that change what the server says of the session.
 * @returns { log, ready, state, error, earlier }: `state` is "live", "cut" or "" before the first answer; `earlier` loads
 *   older events, and is undefined where there are none.
 */
export function useFeed(session, last, marked, heard) {
  const [, draw] = useReducer((n) => n + 1, 0);
  const feed = useRef();
  const told = useRef();
  told.current = heard;
  const known = last !== undefined;
  if (feed.current?.session !== session) feed.current = { session, log: logs.begin(), state: "", error: null, ready: false, from: 0 };

  useEffect(() => {
    if (!known) return undefined;
    const mine = feed.current;
    let frame;
    // However many events come at once, they are drawn once.
    const soon = () => {
      frame ??= requestAnimationFrame(() => {
        frame = undefined;
        draw();
      });
    };
    mine.from = start(last, marked);
    mine.log.place = mine.from ? String(mine.from) : "";
    mine.ready = last <= mine.from;
    const listen = () => follow(path`/sessions/${session}/events`, {
      after: mine.log.place,
      signal: controller.signal,
      tell(state) {
        mine.state = state;
        soon();
      },
      take(event) {
        if (!logs.apply(mine.log, event)) return;
        if (mine.log.seq >= last || mine.log.over) mine.ready = true;
        if (NEWS.has(event.event) && mine.ready) told.current();
        soon();
      },
    }).catch((error) => {
      mine.error = error;
      soon();
    });
    // A page that nobody looks at gives its connection back: without HTTP/2 a browser has six for all of its tabs.
    let controller = new AbortController();
    let timer;
    const look = () => {
      clearTimeout(timer);
      if (document.visibilityState === "hidden") {
        timer = setTimeout(() => controller.abort(), HIDDEN_MS);
      } else if (controller.signal.aborted && !mine.error) {
        controller = new AbortController();
        listen();
      }
    };
    document.addEventListener("visibilitychange", look);
    listen();
    return () => {
      document.removeEventListener("visibilitychange", look);
      clearTimeout(timer);
      controller.abort();
      cancelAnimationFrame(frame);
    };
  }, [session, known]);

  const earlier = async () => {
    const mine = feed.current;
    const from = Math.max(0, mine.from - PAGE);
    const found = [];
    let after = from || undefined;
    do {
      const page = await get(path`/sessions/${session}/events`, { after, limit: PAGE });
      found.push(...page.data.filter(({ data }) => data.seq <= mine.from));
      after = page.next_cursor;
    } while (after && Number(String(after).split("-")[0]) < mine.from);
    logs.before(mine.log, found.filter(({ event }) => event !== "resync"));
    mine.from = from;
    draw();
  };

  const { log, ready, state, error, from } = feed.current;
  return { log, ready, state, error, earlier: from > 0 && ready ? earlier : undefined };
}

const NEWS = new Set(["init", "queued", "result", "done", "permission_request", "question", "client_tool_call", "action_resolved", "status", "error"]);
