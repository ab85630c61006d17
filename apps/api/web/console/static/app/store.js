// Values that several components show.

import { useEffect, useState } from "./view.js";

/** A value that tells its listeners when it is another one. */
export function store(value) {
  const listeners = new Set();
  return {
    get: () => value,
    set(next) {
      if (Object.is(next, value)) return;
      value = next;
      for (const listener of [...listeners]) listener(value);
    },
    listen(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
  };
}

/** The value of a store, in a component. */
export function useStore(kept) {
  const [value, set] = useState(kept.get());
  useEffect(() => {
    set(kept.get());
    return kept.listen(set);
  }, [kept]);
  return value;
}
