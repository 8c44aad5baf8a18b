"use strict";
// What both pages need: the data that lie in the page, colours of the theme, numbers as people read them.

async function pageData() {
  const packed = atob(document.getElementById("page-data").textContent.trim());
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).json();
}

function start(show) {
  pageData().then(show).catch((error) => {
    const box = element("p", { className: "trouble" }, `This page cannot be shown: ${error.message}. It needs a browser ` +
      "of 2023 or newer.");
    document.body.prepend(box);
    throw error;
  });
}

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

function themed(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

const darkness = matchMedia("(prefers-color-scheme: dark)");

// Okabe and Ito's colours, which people tell apart whatever their colour vision; the darkest is left out, and the blue
// is lighter than theirs, to be seen on dark paper too.
const PALETTE = ["#1f87c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f", "#a6761d", "#66a61e"];

function shown(value, digits = 4) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-GB");
  const size = Math.abs(value);
  if (size >= 1000) return Math.round(value).toLocaleString("en-GB");
  if (size > 0 && size < 0.001) return value.toExponential(2);
  return String(Number(value.toPrecision(digits)));
}

function short(value) {
  // For axes: 1.5M, 20k.
  const size = Math.abs(value);
  for (const [unit, amount] of [["G", 1e9], ["M", 1e6], ["k", 1e3]])
    if (size >= amount) return `${Number((value / amount).toPrecision(4))}${unit}`;
  if (size > 0 && size < 0.001) return value.toExponential(0);
  return String(Number(value.toPrecision(4)));
}

// A chart's legend tells values under the pointer; without one, those that ``place`` gives: an index per series.
function restingLegend(place) {
  const rest = (plot) => {
    if (plot.cursor.idx === null || plot.cursor.idx === undefined) plot.setLegend({ idxs: plot.data.map((values) => place(values)) }, false);
  };
  return { ready: [rest], setCursor: [rest] };
}

function lastKnown(values) {
  let index = values.length - 1;
  while (index > 0 && (values[index] === null || values[index] === undefined)) index--;
  return index;
}

function axis(label, options = {}) {
  return {
    label, labelSize: 18, labelFont: "12px system-ui, 'DejaVu Sans', sans-serif",
    font: "11px system-ui, 'DejaVu Sans', sans-serif",
    stroke: () => themed("soft"), labelGap: 0,
    grid: { stroke: () => themed("line"), width: 1 }, ticks: { stroke: () => themed("line"), width: 1, size: 5 },
    values: (_, splits) => splits.map((split) => (split === null ? "" : short(split))),
    ...options,
  };
}
