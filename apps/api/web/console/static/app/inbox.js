// Open requests of the tenant, looked for every few seconds: the page shows them, and the menu says how many there are.

import { all } from "./api.js";
import { store } from "./store.js";

const state = store({ rows: undefined, error: null });
const gone = new Set(); // answered here, and maybe still in an answer that is on its way

export const inbox = {
  state,
  async refresh() {
    try {
      const rows = await all("/requests", { limit: 100 }, { most: 300 });
      state.set({ rows: rows.filter((row) => !gone.has(row.request_id)), error: null });
    } catch (error) {
      state.set({ ...state.get(), error });
    }
  },
  forget(id) {
    gone.add(id);
    state.set({ ...state.get(), rows: state.get().rows?.filter((row) => row.request_id !== id) });
  },
  clear() {
    gone.clear();
    state.set({ rows: undefined, error: null });
  },
};
