// What an agent writes, as HTML: read by marked, cleaned by DOMPurify. Block by block, so that what has been said stays
// as it is while more is said.

import DOMPurify from "dompurify";
import { Lexer, marked } from "marked";
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

// What an agent writes may be made to take long: some texts take the square of their length. What is larger than this, or
// nested deeper, is shown as it was written.
const MOST = 200_000; // characters
const MOST_OF_A_BLOCK = 20_000; // but for code, which is not looked into
const DEEP = /^(?:[ \t]*(?:>|[-*+][ \t]|\d{1,9}[.)][ \t])){50}/m;
const SLOW_MS = 250;

const Block = memo(function Block({ source, links, plain }) {
  const box = useRef();
  const slow = useRef(false); // read once, and not again while it grows
  useLayoutEffect(() => {
    let made;
    const began = performance.now();
    try {
      if (plain || slow.current) throw new Error("too much");
      const tokens = marked.lexer(source);
      Object.assign(tokens.links, links);
      made = DOMPurify.sanitize(marked.parser(tokens), ALLOWED);
    } catch {
      made = source; // what cannot be read is shown as it is
    }
    slow.current ||= performance.now() - began > SLOW_MS;
    box.current.classList.toggle("pre", made === source);
    box.current.replaceChildren(made);
  }, [source, links, plain]);
  return html`<div class="block" ref=${box}></div>`;
});

const NO_LINKS = {};

/** The blocks of a text, without a look into them. */
function parts(text) {
  if (text.length > MOST || DEEP.test(text)) throw new Error("too much");
  const lexer = new Lexer();
  const tokens = lexer.blockTokens(text.replace(/\r\n?/g, "\n"), lexer.tokens);
  return { links: Object.keys(tokens.links).length ? tokens.links : NO_LINKS, blocks: tokens.filter((token) => token.type !== "space").map(({ raw, type }) => ({ raw, plain: type !== "code" && raw.length > MOST_OF_A_BLOCK })) };
}

export const Markdown = memo(function Markdown({ text }) {
  const { blocks, links } = useMemo(() => {
    try {
      return parts(text);
    } catch {
      return { blocks: [{ raw: text, plain: true }], links: NO_LINKS };
    }
  }, [text]);
  return html`<div class="prose">${blocks.map(({ raw, plain }, i) => html`<${Block} key=${i} source=${raw} plain=${plain} links=${links} />`)}</div>`;
});
