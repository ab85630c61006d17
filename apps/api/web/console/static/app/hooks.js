// How components get what they show.

import { get } from "./api.js";
import { useCallback, useEffect, useRef, useState } from "./view.js";

/**
 * What a function of a signal promises, again whenever something in `on` changes. While it is asked again, what was
 * there before stays.
 *
 * @returns { data, error, loading, reload }
 */
export function useLoad(load, on = []) {
  const [state, set] = useState({ data: undefined, error: null, loading: true });
  const [turn, again] = useState(0);
  const newest = useRef(load);
  newest.current = load;
  const before = useRef(on);
  useEffect(() => {
    const controller = new AbortController();
    const same = before.current.every((value, i) => Object.is(value, on[i]));
    before.current = on;
    set((old) => ({ data: same ? old.data : undefined, error: null, loading: true }));
    newest.current(controller.signal).then(
      (data) => !controller.signal.aborted && set({ data, error: null, loading: false }),
      (error) => !controller.signal.aborted && set((old) => ({ data: old.data, error, loading: false })),
    );
    return () => controller.abort();
  }, [...on, turn]);
  return { ...state, reload: useCallback(() => again((n) => n + 1), []) };
}

/**
 * A list of the API, page after page.
 *
 * @returns { rows, error, loading, more, reload, refresh }: `more` is undefined on the last page; `refresh` asks quietly
 *   for the first page anew, and puts it in place of what is shown unless somebody has gone further.
 */
export function usePages(path, query = {}) {
  const [state, set] = useState({ rows: undefined, cursor: null, error: null, loading: true, pages: 0 });
  const [turn, again] = useState(0);
  const asked = JSON.stringify([path, query]);
  const current = useRef();
  useEffect(() => {
    const controller = new AbortController();
    const fresh = current.current !== asked;
    current.current = asked;
    set((old) => ({ ...old, rows: fresh ? undefined : old.rows, error: null, loading: true }));
    get(path, query, controller.signal).then(
      (page) => set({ rows: page.data, cursor: page.next_cursor, error: null, loading: false, pages: 1 }),
      (error) => !controller.signal.aborted && set((old) => ({ ...old, error, loading: false })),
    );
    return () => controller.abort();
  }, [asked, turn]);

  const more = useCallback(async () => {
    const mine = asked;
    set((old) => ({ ...old, loading: true }));
    try {
      const page = await get(path, { ...query, cursor: state.cursor });
      if (current.current !== mine) return;
      set((old) => ({ rows: [...old.rows, ...page.data], cursor: page.next_cursor, error: null, loading: false, pages: old.pages + 1 }));
    } catch (error) {
      set((old) => ({ ...old, error, loading: false }));
    }
  }, [asked, state.cursor]);

  const refresh = useCallback(async () => {
    const mine = asked;
    const page = await get(path, query);
    set((old) => (current.current === mine && old.pages === 1 ? { ...old, rows: page.data, cursor: page.next_cursor, error: null } : old));
  }, [asked]);

  return { ...state, more: state.cursor ? more : undefined, reload: useCallback(() => again((n) => n + 1), []), refresh };
}

/** Do it every so often while the page is looked at, one at a time. What fails is tried again at the next turn. */
export function usePoll(work, ms) {
  const newest = useRef(work);
  newest.current = work;
  useEffect(() => {
    let timer;
    let over = false;
    const turn = async () => {
      if (document.visibilityState === "visible") await Promise.resolve(newest.current()).catch(() => {});
      if (!over) timer = setTimeout(turn, ms);
    };
    timer = setTimeout(turn, ms);
    return () => {
      over = true;
      clearTimeout(timer);
    };
  }, [ms]);
}

/** The time, every so often. */
export function useNow(ms = 1000) {
  const [now, set] = useState(Date.now());
  useEffect(() => {
    const timer = setInterval(() => set(Date.now()), ms);
    return () => clearInterval(timer);
  }, [ms]);
  return now;
}

/**
 * Something that a person has asked for.
 *
 * @returns [run, { busy, error, clear }]: `run` promises whether it went well.
 */
export function useAction(work) {
  const [state, set] = useState({ busy: false, error: null });
  const newest = useRef(work);
  newest.current = work;
  const run = useCallback(async (...given) => {
    set({ busy: true, error: null });
    try {
      await newest.current(...given);
      set({ busy: false, error: null });
      return true;
    } catch (error) {
      set({ busy: false, error });
      return false;
    }
  }, []);
  return [run, { ...state, clear: useCallback(() => set({ busy: false, error: null }), []) }];
}

/** A value that has been the same for so long. */
export function useSettled(value, ms) {
  const [settled, set] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => set(value), ms);
    return () => clearTimeout(timer);
  }, [value, ms]);
  return settled;
}

/** Whether the window fits a media query. */
export function useMedia(query) {
  const [fits, set] = useState(() => matchMedia(query).matches);
  useEffect(() => {
    const list = matchMedia(query);
    const look = () => set(list.matches);
    look();
    list.addEventListener("change", look);
    return () => list.removeEventListener("change", look);
  }, [query]);
  return fits;
}

export function useTitle(title) {
  useEffect(() => {
    document.title = `${title} · Claude Agent API`;
  }, [title]);
}
