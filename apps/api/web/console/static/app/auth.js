// Who is signed in: the key's own facts, as the server tells them. The key itself is in api.js, in memory.

import { get, onRefused, useKey } from "./api.js";
import { store, useStore } from "./store.js";

/** null: nobody. `message`: why somebody was signed out. */
export const account = store(null);
export const farewell = store(null);

/** Throws ApiError when the server does not take the key. */
export async function signIn(key) {
  useKey(key);
  try {
    const facts = await get("/whoami");
    farewell.set(null);
    account.set(facts);
  } catch (error) {
    useKey(null);
    throw error;
  }
}

export function signOut(reason = null) {
  useKey(null);
  farewell.set(reason);
  account.set(null);
}

onRefused((error) => account.get() && signOut(error));

const INCLUDES = { read: ["read", "write", "admin"], write: ["write", "admin"], admin: ["admin"] };

/** Whether a key with these facts may do what needs this scope. */
export function may(facts, scope) {
  return facts.scopes.some((owned) => INCLUDES[scope].includes(owned));
}

/** Whether the key that is signed in may. */
export function useMay(scope) {
  const facts = useStore(account);
  return facts !== null && may(facts, scope);
}

/** Whether it changes what all keys of the tenant use: a key that is bound to profiles does not. */
export function useMayConfigure() {
  const facts = useStore(account);
  return facts !== null && may(facts, "write") && facts.profiles === null;
}
