// What a tool is given: as whoever decides about it, or looks at it later, reads it best.

import * as format from "../format.js";
import { html } from "../view.js";
import { Code, Json } from "./code.js";

/**
 * Whoever decides sees all of it: what has no place of its own comes after that which has.
 *
 * @param cwd directory of the agent, where that is known: paths are shown as they are inside of it.
 */
export function Given({ input, cwd, copy = true }) {
  const kind = Object.values(KINDS).find((one) => one.of.every((name) => typeof input?.[name] === "string"));
  if (!kind) return html`<${Json} value=${input ?? {}} label="the input" copy=${copy} />`;
  const rest = Object.fromEntries(Object.entries(input).filter(([name]) => !kind.of.includes(name)));
  return html`<div class="stack tight">${kind.draw({ input, cwd, copy })}
    ${Object.keys(rest).length > 0 && html`<${Json} value=${rest} label="the rest of the input" copy=${copy} />`}</div>`;
}

const KINDS = {
  command: { of: ["command"], draw: ({ input, copy }) => html`<${Code} text=${input.command} label="the command" copy=${copy} />` },
  edit: {
    of: ["file_path", "old_string", "new_string"],
    draw: ({ input, cwd }) => html`<${InFile} name=${input.file_path} cwd=${cwd}><div class="diff-lines" tabindex="0" role="group" aria-label="The edit"><table><tbody>
      ${rows(input.old_string, "removed", "−")}${rows(input.new_string, "added", "+")}
    </tbody></table></div></>`,
  },
  file: { of: ["file_path", "content"], draw: ({ input, cwd, copy }) => html`<${InFile} name=${input.file_path} cwd=${cwd}><${Code} text=${input.content} label="what is written" copy=${copy} /></>` },
};

function InFile({ name, cwd, children }) {
  return html`<div><p class="small soft break"><code>${format.visible(format.inWorkspace(name, cwd))}</code></p>${children}</div>`;
}

const MOST_LINES = 2_000;

function rows(text, kind, sign) {
  const lines = text.split("\n");
  const left = lines.length - MOST_LINES;
  return [
    ...lines.slice(0, MOST_LINES).map((line) => html`<tr class="line ${kind}"><td class="line-text"><span class="line-sign" aria-hidden="true">${sign}</span><span class="sr-only">${kind}: </span>${format.visible(line)}</td></tr>`),
    left > 0 && html`<tr class="line"><td class="line-text quiet">${format.plural(left, "more line")} left out here</td></tr>`,
  ];
}
