// What agents have cost: by day, key, model and session.

import { get } from "../api.js";
import * as format from "../format.js";
import { useLoad, usePages, useTitle } from "../hooks.js";
import { Budgets } from "../parts/budgets.js";
import { Bars } from "../parts/chart.js";
import { Choice, Text } from "../parts/field.js";
import { Page } from "../parts/page.js";
import { Empty, Loaded } from "../parts/states.js";
import { Pages } from "../parts/table.js";
import { setQuery, to, usePlace } from "../router.js";
import { html, useMemo, useState } from "../view.js";

const DAY_MS = 86_400_000;
const iso = (ms) => new Date(ms).toISOString().slice(0, 10);

/** Every day of a range, first to last. */
function days(from, until) {
  const found = [];
  for (let at = Date.parse(from); at <= Date.parse(until); at += DAY_MS) found.push(iso(at));
  return found;
}

const FIGURES = [
  { name: "Runs", kind: "num", of: (row) => format.count(row.runs) },
  { name: "Read", kind: "num", of: (row) => format.short(format.tokens(row).read) },
  { name: "From cache", kind: "num", wide: true, of: (row) => format.short(row.cache_read_input_tokens) },
  { name: "Written", kind: "num", of: (row) => format.short(row.output_tokens) },
  { name: "Cost", kind: "num", of: (row) => html`<strong>${format.money(row.cost_usd)}</strong>` },
];

const GROUPS = {
  day: { name: "Day", of: (row) => html`<span class="nowrap">${format.date(row.day)}</span>` },
  key: { name: "Key", of: (row) => row.key_name ?? html`<span class="quiet">a key that is gone</span>` },
  model: { name: "Model", of: (row) => row.model },
  session: { name: "Session", of: (row) => html`<a href=${to(`/sessions/${row.session_id}`)}><code>${format.id(row.session_id)}</code></a>` },
};

export function Usage() {
  const { query } = usePlace();
  const until = query.get("to") ?? iso(Date.now());
  const from = query.get("from") ?? iso(Date.parse(until) - 29 * DAY_MS);
  const by = query.get("by") ?? "model";
  const [shown, show] = useState("cost");
  useTitle("Usage");
  const range = { from, to: until };
  const report = useLoad((signal) => get("/usage", { ...range, group_by: "day", limit: 200 }, signal), [from, until]);
  const list = usePages("/usage", { ...range, group_by: by, limit: 100 });
  const last = (count) => setQuery({ from: iso(Date.now() - (count - 1) * DAY_MS), to: iso(Date.now()) });
  const chosen = [7, 30, 90].find((count) => from === iso(Date.now() - (count - 1) * DAY_MS) && until === iso(Date.now()));
  return html`<${Page} title="Usage" actions=${html`<${Choice} label="Days" value=${String(chosen ?? "")} set=${(value) => last(Number(value))} options=${[["7", "7 days"], ["30", "30 days"], ["90", "90 days"]]} />`}>
    <div class="fields">
      <${Text} type="date" label="From" value=${from} set=${(value) => value && setQuery({ from: value, to: until })} max=${until} />
      <${Text} type="date" label="To" value=${until} set=${(value) => value && setQuery({ from, to: value })} min=${from} hint="Days in UTC, both included." />
    </div>
    <${Loaded} from=${report}>${(found) => html`<div class="stack">
      <${Totals} report=${found} />
      ${found.data.length
        ? html`<section class="card stack tight" aria-label="By day"><div class="row between wrap"><h2>By day</h2><${Choice} label="What is shown" value=${shown} set=${show} options=${[["cost", "Cost"], ["tokens", "Tokens"], ["runs", "Runs"]]} /></div>
            <${Chart} rows=${found.data} from=${from} until=${until} shown=${shown} /></section>`
        : html`<${Empty} icon="usage" title="Nothing was used in these days">Runs count on the day on which they end.</>`}
      <${Budgets} rows=${found.budgets} />
    </div>`}</>
    <section class="stack tight"><div class="row between wrap"><h2>Sums</h2>
      <${Choice} label="Grouped by" value=${by} set=${(value) => setQuery({ by: value })} options=${Object.entries(GROUPS).map(([name, group]) => [name, group.name])} /></div>
      <${Pages} from=${list} columns=${[GROUPS[by] ?? GROUPS.model, ...FIGURES]} label="Sums" empty=${html`<${Empty} icon="usage" title="No sums" />`} />
    </section>
  </>`;
}

function Totals({ report }) {
  const { totals } = report;
  const rows = [["Cost", format.money(totals.cost_usd)], ["Runs", format.count(totals.runs)], ["Tokens read", format.short(format.tokens(totals).read)], ["Tokens written", format.short(totals.output_tokens)]];
  return html`<dl class="cards">${rows.map(([name, value]) => html`<div class="figure"><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>
    ${report.unmeasured_runs > 0 && html`<p class="small soft">${format.plural(report.unmeasured_runs, "run")} ended without telling what ${report.unmeasured_runs === 1 ? "it" : "they"} used.</p>`}`;
}

const READ = { name: "Read", colour: "busy" };
const WRITTEN = { name: "Written", colour: "accent" };

function Chart({ rows, from, until, shown }) {
  const { all, series } = useMemo(() => {
    const known = new Map(rows.map((row) => [row.day, row]));
    const all = days(from, until);
    const values = (of) => all.map((day) => (known.has(day) ? Number(of(known.get(day))) : 0));
    const series = {
      cost: () => [{ name: "Cost", colour: "accent", values: values((row) => row.cost_usd) }],
      runs: () => [{ name: "Runs", colour: "accent", values: values((row) => row.runs) }],
      tokens: () => [{ ...READ, values: values((row) => format.tokens(row).read) }, { ...WRITTEN, values: values((row) => row.output_tokens) }],
    }[shown]();
    return { all, series };
  }, [rows, from, until, shown]);
  const say = shown === "cost" ? format.money : format.short;
  const most = Math.max(...series.flatMap((one) => one.values));
  return html`<${Bars} days=${all} series=${series} say=${say} label=${`${format.words(shown)} by day, ${say(most)} at most; the table below has the figures`} />
    ${series.length > 1 && html`<p class="legend small soft">${series.map((one) => html`<span class="row"><span class="swatch" style=${{ background: `var(--${one.colour})` }}></span>${one.name}</span>`)}</p>`}`;
}
