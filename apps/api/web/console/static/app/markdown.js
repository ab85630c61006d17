// What an agent writes, as HTML: read by marked, cleaned by DOMPurify. Block by block, so that what has been said stays
// as it is while more is said.

import DOMPurify from "dompurify";
import { marked } from "marked";
import { html, memo, useLayoutEffect, useMemo, useRef } from "./view.js";

const ALLOWED = {
  ALLOWED_TAGS: [
    ..."a b blockquote br code del em h1 h2 h3 h4 h5 h6 hr i kbd li ol p pre s strong sub sup".split(" "),
    ..."table tbody td th thead tr ul".split(" "),
  ],
  ALLOWED_ATTR: ["href", "title", "start", "align"],
  ALLOWED_URI_REGEXP: /^(?:https?|mailto):/i,
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  RETURN_DOM_FRAGMENT: true,
};

// Links lead out of the console, and tell nobody where they were. Headings begin below those of the page.
DOMPurify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName === "A") {
    node.setAttribute("target", "_blank");
    node.setAttribute("rel", "noopener noreferrer");
  }
  if (node.tagName === "PRE" || node.tagName === "TABLE") node.setAttribute("tabindex", "0");
});

const escaped = (text) => text.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;").replace(/"/g, "&quot;");

marked.use({
  gfm: true,
  renderer: {
    // Shown as it was written: HTML of an agent is text.
    html: ({ text }) => escaped(text),
    // A picture would be asked for at whatever address was written.
    image: ({ href, text }) => `<a href="${escaped(href)}">${escaped(text || href)}</a>`,
    checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  },
});

const Block = memo(function Block({ source, links }) {
  const box = useRef();
  useLayoutEffect(() => {
    let made;
    try {
      const tokens = marked.lexer(source);
      Object.assign(tokens.links, links);
      made = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
    } catch {
      made = source; // what cannot be read is shown as it is
    }
    box.current.replaceChildren(made);
  }, [source, links]);
  return html`<div class="block" ref=${box}></div>`;
});

const NO_LINKS = {};

export const Markdown = memo(function Markdown({ text }) {
  const { blocks, links } = useMemo(() => {
    try {
      const tokens = marked.lexer(text);
      const defined = Object.keys(tokens.links).length ? tokens.links : NO_LINKS;
      return { blocks: tokens.filter((token) => token.type !== "space").map((token) => token.raw), links: defined };
    } catch {
      return { blocks: [text], links: NO_LINKS };
    }
  }, [text]);
  return html`<div class="prose">${blocks.map((source, i) => html`<${Block} key=${i} source=${source} links=${links} />`)}</div>`;
});
