// Light, dark, or as the system has it. The only thing that this page keeps, and it is no secret.

import { store } from "./store.js";

const NAME = "console-theme";
const KNOWN = ["system", "light", "dark"];

function stored() {
  try {
    const found = localStorage.getItem(NAME);
    return KNOWN.includes(found) ? found : "system";
  } catch {
    return "system"; // storage may be switched off
  }
}

export const theme = store(stored());

function show(chosen) {
  if (chosen === "system") document.documentElement.removeAttribute("data-theme");
  else document.documentElement.dataset.theme = chosen;
}

export function nextTheme() {
  const next = KNOWN[(KNOWN.indexOf(theme.get()) + 1) % KNOWN.length];
  theme.set(next);
  try {
    localStorage.setItem(NAME, next);
  } catch {
    // then it lasts as long as the page
  }
}

show(theme.get());
theme.listen(show);
