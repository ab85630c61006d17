// A chart by uPlot, in the colours of the page.

import uPlot from "uplot";
import { html, useEffect, useRef } from "../view.js";
import { theme } from "../theme.js";

const HEIGHT = 220;
const HALF_A_DAY = 43_200;

/**
 * Bars by day.
 *
 * @param days ["2026-01-31", …], one after the other.
 * @param series [{ name, values, colour }], stacked from below; a colour is a name of style/1-base.css.
 * @param say how a value is written.
 */
export function Bars({ days, series, say, label }) {
  const box = useRef();
  useEffect(() => {
    const node = box.current;
    let plot;
    const draw = () => {
      plot?.destroy();
      plot = new uPlot(options(node, series, say), data(days, series), node);
    };
    draw();
    const sized = new ResizeObserver(() => plot.setSize({ width: node.clientWidth, height: HEIGHT }));
    sized.observe(node);
    const media = matchMedia("(prefers-color-scheme: dark)");
    media.addEventListener("change", draw);
    const unlisten = theme.listen(() => requestAnimationFrame(draw));
    return () => {
      sized.disconnect();
      media.removeEventListener("change", draw);
      unlisten();
      plot.destroy();
    };
  }, [days, series]);
  return html`<div class="chart" ref=${box} role="img" aria-label=${label}></div>`;
}

// Each series is drawn as high as it and those below it, the highest first.
function data(days, series) {
  const sums = days.map(() => 0);
  const stacked = series.map(({ values }) => values.map((value, i) => (sums[i] += value)));
  return [days.map((day) => Date.parse(`${day}T00:00:00Z`) / 1000), ...stacked.reverse()];
}

/** A colour of the page as the browser writes it, which a canvas understands. */
function colour(node, name) {
  node.style.color = `var(--${name})`;
  const found = getComputedStyle(node).color;
  node.style.color = "";
  return found;
}

function options(node, series, say) {
  const ink = colour(node, "ink-3");
  const line = colour(node, "line");
  const axis = { stroke: ink, grid: { stroke: line, width: 1 }, ticks: { show: false }, font: `11px ${getComputedStyle(node).fontFamily}` };
  return {
    width: node.clientWidth,
    height: HEIGHT,
    tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
    legend: { show: false },
    cursor: { points: { show: false }, drag: { x: false, y: false }, y: false },
    scales: { x: { range: (_, first, last) => [first - HALF_A_DAY, last + HALF_A_DAY] }, y: { range: (_, __, most) => [0, most > 0 ? most * 1.1 : 1] } },
    axes: [
      { ...axis, grid: { show: false }, space: 60, size: 28, values: (_, moments) => moments.map((moment) => new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", timeZone: "UTC" }).format(moment * 1000)) },
      { ...axis, size: 64, values: (_, values) => values.map(say) },
    ],
    series: [
      {},
      ...series.map(({ colour: name }) => ({ fill: colour(node, name), width: 0, paths: uPlot.paths.bars({ size: [0.7, 28], radius: 0.1 }), points: { show: false } })).reverse(),
    ],
  };
}
