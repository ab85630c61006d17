import "./theme.js";
import { App } from "./shell.js";
import { html, render } from "./view.js";

const root = document.getElementById("root");
root.replaceChildren();
render(html`<${App} />`, root);
