// A patch, as files with their lines.

import * as format from "../format.js";
import { classes, html, useMemo } from "../view.js";
import { Icon } from "./icon.js";

const MOST_LINES = 4000;

/** `git diff` → [{ name, what, added, removed, lines: [{ kind, text, old, new }] }]. */
export function parse(patch) {
  const files = [];
  let file;
  let [old, fresh, left, right] = [0, 0, 0, 0];
  for (const line of patch.split("\n")) {
    const begins = /^diff --git (?:"?a\/(.*?)"?) (?:"?b\/(.*?)"?)$/.exec(line);
    if (begins && !left && !right) {
      file = { name: begins[2], what: "changed", added: 0, removed: 0, lines: [] };
      files.push(file);
      continue;
    }
    if (!file) continue;
    const hunk = /^@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(.*)$/.exec(line);
    if (hunk && !left && !right) {
      [old, fresh] = [Number(hunk[1]), Number(hunk[3])];
      [left, right] = [Number(hunk[2] ?? 1), Number(hunk[4] ?? 1)];
      file.lines.push({ kind: "hunk", text: line });
    } else if (left || right) {
      const text = line.slice(1);
      if (line[0] === "+") {
        file.lines.push({ kind: "added", text, new: fresh++ });
        file.added++;
        right--;
      } else if (line[0] === "-") {
        file.lines.push({ kind: "removed", text, old: old++ });
        file.removed++;
        left--;
      } else if (line[0] === " " || line === "") {
        file.lines.push({ kind: "same", text, old: old++, new: fresh++ });
        left--;
        right--;
      }
    } else if (line.startsWith("new file")) file.what = "created";
    else if (line.startsWith("deleted file")) file.what = "deleted";
    else if (line.startsWith("GIT binary patch") || line.startsWith("Binary files")) file.binary = true;
    else if (line.startsWith("rename to ")) file.name = line.slice(10);
  }
  return files;
}

const SIGNS = { added: "+", removed: "−", same: " ", hunk: "" };
const SAID = { added: "added: ", removed: "removed: " };

export function Diff({ patch }) {
  const files = useMemo(() => parse(patch), [patch]);
  return html`<div class="stack tight">${files.map((file) => html`<${FileDiff} key=${file.name} file=${file} open=${files.length <= 10} />`)}</div>`;
}

function FileDiff({ file, open }) {
  return html`<details class="diff" open=${open}>
    <summary><${Icon} name="right" /><code class="grow break">${format.visible(file.name)}</code>
      ${file.what !== "changed" && html`<span class="small soft">${file.what}</span>`}
      ${file.binary ? html`<span class="small soft">binary</span>` : html`<span class="small num nowrap"><span class="plus">+${format.count(file.added)}</span> <span class="minus">−${format.count(file.removed)}</span></span>`}
    </summary>
    ${file.lines.length > 0 && html`<div class="diff-lines" tabindex="0" role="group" aria-label=${`Changes of ${file.name}`}><table>
      <tbody>${file.lines.slice(0, MOST_LINES).map((line) => html`<tr class=${classes("line", line.kind)}>
        <td class="line-no" aria-hidden="true">${line.old ?? ""}</td><td class="line-no" aria-hidden="true">${line.new ?? ""}</td>
        <td class="line-text"><span class="line-sign" aria-hidden="true">${SIGNS[line.kind]}</span>${SAID[line.kind] && html`<span class="sr-only">${SAID[line.kind]}</span>`}${format.visible(line.text)}</td>
      </tr>`)}</tbody></table></div>`}
  </details>`;
}
