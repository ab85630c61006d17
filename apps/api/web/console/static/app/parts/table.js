import { classes, html } from "../view.js";
import { Button } from "./button.js";
import { Failure, Loading } from "./states.js";

/**
 * Rows of a list.
 *
 * @param columns [{ name, of, kind, wide }]: `of` draws the cell of a row; kind "num" is set right, "end" holds buttons;
 *   `wide` ones are left out on narrow screens.
 * @param label says what the rows are.
 */
export function Table({ columns, rows, label, keyOf, dim }) {
  return html`<div class="table-box" role="region" aria-label=${label} tabindex="0"><table>
    <thead><tr>${columns.map((column) => html`<th scope="col" class=${classes(column.kind, column.wide && "wide-only")}>${column.kind === "end" ? html`<span class="sr-only">${column.name}</span>` : column.name}</th>`)}</tr></thead>
    <tbody>${rows.map((row) => html`<tr key=${keyOf?.(row)} class=${dim?.(row) ? "dim" : ""}>
      ${columns.map((column) => html`<td class=${classes(column.kind, column.wide && "wide-only")}>${column.of(row)}</td>`)}
    </tr>`)}</tbody>
  </table></div>`;
}

/** What usePages has, as a table, with its states and a way to the next page. */
export function Pages({ from, empty, ...table }) {
  if (from.rows === undefined) return from.error ? html`<${Failure} error=${from.error} retry=${from.reload} />` : html`<${Loading} />`;
  return html`<div class="stack tight">
    <${Failure} error=${from.error} retry=${from.reload} />
    ${from.rows.length ? html`<${Table} ...${table} rows=${from.rows} />` : empty}
    ${from.more && html`<div class="row"><${Button} busy=${from.loading} onClick=${from.more}>Show more</></div>`}
  </div>`;
}
