// The report of one run or of several. Each section is a function that returns its content, or text that says why
// there is none.

const ALONG = { agent_step: "agent steps", epoch: "epochs", time_h: "training time (h)" };
const RETURNS = ["reward", "overview/reward", "env_episode/return"]; // the first that a run has
const CURVES = [
  [RETURNS, "Return of an episode", "reward per agent"],
  [["env_episode/score"], "Score of an episode", "score"],
  [["env_episode/length"], "Length of an episode", "env steps"],
  [["agent_steps_per_second"], "Speed", "agent steps/s"],
  [["efficiency"], "Efficiency", "share of the floor"],
  [["losses/policy_loss"], "Policy loss", "loss"],
  [["losses/value_loss"], "Value loss", "loss"],
  [["losses/entropy"], "Entropy of the policy", "nats"],
  [["losses/approx_kl"], "Change of the policy (KL)", "nats"],
  [["losses/clipfrac"], "Clipped updates", "share of agent steps"],
  [["losses/explained_variance"], "Explained variance of values", "share"],
  [["staleness/mean"], "Mean staleness", "policy versions"],
  [["hyperparameters/optimizer.learning_rate"], "Learning rate", "per update"],
];
const SHARES = [
  ["Time of the rollout workers", ["environments", "inference", "transport", "no_ticket"]],
  ["Time of the learners", ["training", "staging", "no_data"]],
  ["Time of an epoch", ["environment", "inference", "training", "other"]],
];
const SHARE_NAMES = {
  environment: "environments", no_ticket: "waiting for a ticket", no_data: "waiting for data", staging: "copying data in",
};
const REFERENCES = ["random", "scripted"];

let runs = [], along = "agent_step", smoothing = 1;
const drawings = []; // functions that draw a chart anew; called when the width, the theme or a setting changes

start((data) => {
  runs = data.runs.map((run, index) => ({ ...run, colour: PALETTE[index % PALETTE.length] }));
  byId("title").textContent = document.title;
  byId("runs").append(...runs.map((run) => element("span", {}, swatch(run.colour), element("b", {}, run.name), " ",
    element("code", { className: "soft" }, run.place))));
  const sections = [
    ["Overview", overview], ["Learning curves", learningCurves], ["Evaluations", evaluations], ["Curriculum", curriculum],
    ["Where the time went", shares], ["Staleness", staleness], ["Workers and events", workers], ["Ledger", ledger],
    ["Checkpoints", checkpoints], ["Configuration", configuration],
  ];
  for (const [title, build] of sections) {
    const id = title.toLowerCase().replaceAll(" ", "-");
    const section = element("section", { id }, element("h2", {}, title));
    byId("report").append(section);
    const built = build();
    section.append(typeof built === "string" ? element("p", { className: "none" }, built) : built);
    byId("sections").append(element("a", { href: `#${id}` }, title));
  }
  byId("along").addEventListener("change", (event) => { along = event.target.value; drawAll(); });
  byId("smoothing").addEventListener("change", (event) => { smoothing = Number(event.target.value); drawAll(); });
  let width = innerWidth;
  addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; drawAll(); } });
  darkness.addEventListener("change", drawAll);
  drawAll();
});

function byId(id) { return document.getElementById(id); }
function drawAll() { drawings.forEach((draw) => draw()); }
function swatch(colour) { return element("i", { className: "swatch", style: `background:${colour}` }); }
function marked(colour, ...words) { return element("span", { className: "whole" }, swatch(colour), ...words); }
function runName(run) { return marked(run.colour, run.name); }

// numbers: columns at the right; whole: those that keep to one line; loose: those that may break anywhere.
function table(headers, rows, { numbers = [], whole = [], loose = [] } = {}) {
  const kind = (index) => [[numbers, "number"], [whole, "whole"], [loose, "loose"]].filter(([of]) => of.includes(index)).map(([, name]) => name).join(" ");
  return element("div", { className: "scroll" }, element("table", {},
    element("thead", {}, element("tr", {}, ...headers.map((header, index) => element("th", { className: kind(index) }, header)))),
    element("tbody", {}, ...rows.map((row) => element("tr", {}, ...row.map((cell, index) =>
      element("td", { className: kind(index) }, cell instanceof Node ? cell : shown(cell))))))));
}

function newest(run, name) {
  const known = (run.columns[name] ?? []).filter((value) => value !== null);
  return known.length ? known[known.length - 1] : null;
}

function ofFirst(run, names) { return names.find((name) => run.columns[name]); }

function moment(seconds) { return seconds ? new Date(seconds * 1000).toISOString().slice(0, 19).replace("T", " ") : "–"; }

function megabytes(bytes) { return `${shown(bytes / 1e6, 3)} MB`; }

// --- overview --------------------------------------------------------------------------------------------

function overview() {
  const setting = (...names) => (run) => names.map((name) => run.config[name]).find((value) => value !== undefined && value !== null) ?? null;
  const plain = (value) => (value === null ? null : String(value)); // names, not amounts
  const facts = [
    ["environment", setting("trainer.curriculum", "trainer.env")],
    ["preset", setting("preset")],
    ["agent steps", (run) => newest(run, "agent_step")],
    ["agent steps, planned", setting("trainer.total_timesteps")],
    ["epochs", (run) => run.epochs],
    ["training time", (run) => duration(newest(run, "time_h"))],
    ["agent steps/s, mean", (run) => newest(run, "agent_step") / ((newest(run, "time_h") || NaN) * 3600)],
    ["return of an episode, last", (run) => newest(run, ofFirst(run, RETURNS))],
    ["return of an episode, best", (run) => best(run, ofFirst(run, RETURNS))],
    ["best evaluation", (run) => bestEvaluation(run)],
    ["rollout workers", setting("rollout.num_workers", "trainer.num_workers")],
    ["learner replicas", setting("learner.replicas", "world_size")],
    ["seed", (run) => plain(setting("trainer.seed")(run))],
    ["started", (run) => setting("started")(run)?.slice(0, 19).replace("T", " ") ?? null],
    ["torch, mettagrid, ray", (run) => ["torch", "mettagrid", "ray"].map((name) => run.config[`versions.${name}`] ?? "–").join(", ")],
    ["revision", (run) => revision(run)],
  ];
  const rows = facts.map(([name, of]) => [name, ...runs.map((run) => of(run))]).filter((row) => row.slice(1).some((cell) => cell !== null));
  const box = element("div", { className: "card" }, runs.length > 1 ? table(["", ...runs.map(runName)], rows)
    : element("dl", { className: "overview" }, ...rows.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, ...breakable(shown(value)))))));
  for (const run of runs)
    for (const note of run.notes) box.append(element("p", { className: "bad" }, `${run.name}: ${note}`));
  if (runs.some((run) => run.epochs_per_point > 1))
    box.append(element("p", { className: "soft" }, "Curves of long runs: " + runs.map((run) => `each point of ${run.name} is the mean of ${run.epochs_per_point} epoch(s)`).join(", ") + "."));
  return box;
}

// A path may be broken after each of its parts.
function breakable(text) { return text.split(/(?<=\/)/).flatMap((part) => [part, element("wbr")]); }

function best(run, name) {
  const known = (run.columns[name] ?? []).filter((value) => value !== null);
  return known.length ? Math.max(...known) : null;
}

function bestEvaluation(run) {
  const scored = run.evaluations.filter((one) => one.simulation === null && one.score !== null && !REFERENCES.includes(one.policy));
  if (!scored.length) return null;
  const one = scored.reduce((a, b) => (b.score > a.score ? b : a));
  return `${score(one.score, one.measure)} (${measureName(one.measure)}, suite ${one.suite}, version ${one.version})`;
}

function duration(hours) {
  if (hours === null) return null;
  const seconds = hours * 3600;
  if (seconds < 120) return `${shown(seconds, 3)} s`;
  return seconds < 7200 ? `${shown(seconds / 60, 3)} min` : `${shown(hours, 3)} h`;
}

function revision(run) {
  const commit = run.config["git.commit"];
  return commit ? commit.slice(0, 10) + (run.config["git.has_changes"] ? " with changes" : "") : null;
}

// --- curves ----------------------------------------------------------------------------------------------

function learningCurves() {
  const grid = element("div", { className: "grid" });
  const taken = new Set(["epoch", "agent_step", "time_h", "time"]);
  for (const [names, title, unit] of CURVES) {
    names.forEach((name) => taken.add(name));
    if (runs.some((run) => ofFirst(run, names))) grid.append(curve(title, unit, (run) => ofFirst(run, names)));
  }
  const others = [...new Set(runs.flatMap((run) => Object.keys(run.columns)))].filter((name) => !taken.has(name)).sort();
  const more = element("select", { id: "more" }, element("option", { value: "" }, `one of ${others.length} more …`),
    ...others.map((name) => element("option", { value: name }, name)));
  more.addEventListener("change", () => {
    const name = more.value;
    if (name) { grid.append(curve(name, "value", (run) => (run.columns[name] ? name : undefined))); drawAll(); }
    more.value = "";
  });
  return element("div", {}, grid, others.length ? element("p", { style: "margin-top:10px" }, "Add a chart: ", more,
    element("span", { className: "soft" }, "  Hover to read values, click a name to hide its curve, drag to enlarge, double-click to go back.")) : "");
}

function curve(title, unit, columnOf) {
  const card = element("div", { className: "card" }, element("h3", {}, title, " ", element("span", { className: "unit" }, unit)));
  const shownRuns = runs.filter((run) => columnOf(run));
  drawings.push(plotter(card, () => {
    const columns = uPlot.join(shownRuns.map((run) => [run.columns[along], smoothed(run.columns[columnOf(run)])]));
    const series = shownRuns.map((run) => ({ label: run.name, stroke: run.colour, width: 1.6, spanGaps: true, value: (_, value) => shown(value) }));
    return { columns, series, y: unit };
  }));
  return card;
}

// A chart in a card: ``describe`` gives {columns, series, y, …} each time it is drawn; what was hidden stays hidden.
function plotter(card, describe) {
  const frame = element("div");
  card.append(frame);
  let plot = null;
  return () => {
    const hidden = plot ? plot.series.filter((one) => !one.show).map((one) => one.label) : [];
    plot?.destroy();
    const { columns, series, y, height = 190, hooks = {}, options = {}, yAxis = {}, bands = [] } = describe();
    plot = new uPlot({
      width: Math.max(220, card.clientWidth - 30), height, hooks: { ...restingLegend(lastKnown), ...hooks }, legend: { live: true },
      scales: { x: { time: false }, y: options.y ?? {} }, padding: [8, 10, 0, 0], bands,
      axes: [axis(ALONG[along], { size: 34 }), axis(y, { size: 56, ...yAxis })],
      cursor: { sync: { key: "report" }, points: { size: 6 }, dataIdx: nearestKnown, drag: { x: true, y: false } },
      series: [{ label: ALONG[along], value: (_, value) => shown(value) }, ...series.map((one) => ({ ...one, show: !hidden.includes(one.label) }))],
    }, columns, frame);
  };
}

// Several runs have points at different places: of each the nearest is told.
function nearestKnown(plot, seriesIndex, index) {
  const values = plot.data[seriesIndex];
  if (values[index] !== null && values[index] !== undefined) return index;
  for (let away = 1; away < values.length; away++)
    for (const other of [index - away, index + away])
      if (other >= 0 && other < values.length && values[other] !== null && values[other] !== undefined) return other;
  return index;
}

function smoothed(values) {
  if (smoothing === 1) return values;
  const recent = [];
  let sum = 0;
  return values.map((value) => {
    if (value === null) return null;
    recent.push(value);
    sum += value;
    if (recent.length > smoothing) sum -= recent.shift();
    return sum / recent.length;
  });
}

// --- evaluations -----------------------------------------------------------------------------------------

function measureName(measure) { return measure === "share" ? "share of what is possible" : "return per agent"; }

function score(value, measure) { return value === null ? "–" : measure === "share" ? value.toFixed(3) : shown(value, 3); }

function policyName(uri) {
  const parts = uri.replace("file://", "").split("/");
  return parts.length > 2 && parts[parts.length - 2] === "checkpoints" ? parts[parts.length - 1] : parts[parts.length - 1];
}

function evaluations() {
  const all = runs.flatMap((run) => run.evaluations.map((one) => ({ ...one, run })));
  if (!all.length) return "No evaluation is recorded. Evaluations are played at the end of a run, by metta-ray evaluate, and by evaluators beside training.";
  const box = element("div", { className: "evaluations" });
  for (const suite of [...new Set(all.map((one) => one.suite))]) {
    const ofSuite = withoutRepeats(all.filter((one) => one.suite === suite)), card = suiteCard(suite, ofSuite);
    box.append(card);
    const history = ofSuite.filter((one) => one.simulation === null && !REFERENCES.includes(one.policy));
    if (new Set(history.map((one) => one.version)).size > 2) box.append(historyCard(suite, history));
    else card.classList.add("alone");
  }
  return box;
}

// The references of several runs are the same policies in the same episodes; where their results agree, one row tells.
function withoutRepeats(rows) {
  const told = new Set();
  return rows.filter((one) => {
    const row = [one.simulation, one.policy, one.score, one.episodes].join(" "), isNew = !told.has(row);
    told.add(row);
    return isNew || !REFERENCES.includes(one.policy);
  });
}

function suiteCard(suite, rows) {
  const card = element("div", { className: "card" }, element("h3", {}, `Suite ${suite} `,
    element("span", { className: "unit" }, `${measureName(rows[0].measure)}, with 95 % bootstrap intervals`)));
  const content = element("div");
  const versions = new Set(rows.map((one) => `${one.run.name} ${one.policy}`)).size;
  const everything = element("input", { type: "checkbox" });
  const show = () => content.replaceChildren(scoreTable(everything.checked ? rows : ofNote(rows)));
  everything.addEventListener("change", show);
  show();
  card.append(content);
  if (ofNote(rows).length < rows.length) card.append(element("label", {}, everything, ` all ${versions} policies`));
  return card;
}

// The references, and of each run its best and its latest version.
function ofNote(rows) {
  const kept = new Set();
  for (const run of new Set(rows.map((one) => one.run))) {
    const overall = rows.filter((one) => one.run === run && one.simulation === null && !REFERENCES.includes(one.policy));
    if (!overall.length) continue;
    kept.add(key(overall.reduce((a, b) => ((b.score ?? -Infinity) > (a.score ?? -Infinity) ? b : a))));
    kept.add(key(overall.reduce((a, b) => (b.version > a.version ? b : a))));
  }
  return rows.filter((one) => REFERENCES.includes(one.policy) || kept.has(key(one)));

  function key(one) { return `${one.run.name} ${one.policy} ${one.version}`; }
}

function scoreTable(rows) {
  const ends = rows.flatMap((one) => [one.low, one.high, one.score]).filter((value) => value !== null);
  const low = Math.min(0, ...ends), high = Math.max(...ends, low + 1e-9), part = (value) => (100 * (value - low)) / (high - low);
  const simulations = [...new Set(rows.map((one) => one.simulation))].sort((a, b) => (a === null ? -1 : b === null ? 1 : a.localeCompare(b)));
  const lines = [];
  for (const simulation of simulations)
    inOrder(rows.filter((one) => one.simulation === simulation)).forEach((one, index) => {
      const colour = REFERENCES.includes(one.policy) ? themed("soft") : one.run.colour;
      const bar = element("div", { className: "interval" }, element("div", { className: "rule" }));
      if (one.low !== null) {
        bar.append(element("div", { className: "span", style: `left:${part(one.low)}%;width:${part(one.high) - part(one.low)}%;border-color:${colour}` }));
        for (const end of [one.low, one.high]) bar.append(element("div", { className: "end", style: `left:${part(end)}%;border-color:${colour}` }));
      }
      if (one.score !== null) bar.append(element("div", { className: "dot", style: `left:${part(one.score)}%;background:${colour}` }));
      const name = marked(colour, runs.length > 1 && !REFERENCES.includes(one.policy) ? `${one.run.name}: ` : "", policyName(one.policy));
      const interval = one.low === null ? "too few" : `${score(one.low, one.measure)} … ${score(one.high, one.measure)}`;
      const episodes = one.incomplete ? `${shown(one.episodes)} (+${one.incomplete} cut off)` : shown(one.episodes);
      const label = index ? "" : simulation === null ? element("b", {}, "whole suite") : simulation;
      lines.push([label, name, bar, score(one.score, one.measure), interval, episodes]);
    });
  const ends0 = element("div", { className: "ends" }, element("span", {}, shown(low, 3)), element("span", {}, shown(high, 3)));
  return table(["simulation", "policy", ends0, "score", "95 % interval", "episodes"], lines, { numbers: [3, 4, 5], whole: [0] });
}

// What is possible first, then the runs' policies by version, then chance.
function inOrder(rows) {
  const place = (one) => (one.policy === "scripted" ? 0 : one.policy === "random" ? 2 : 1);
  return [...rows].sort((a, b) => place(a) - place(b) || runs.indexOf(a.run) - runs.indexOf(b.run) || a.version - b.version);
}

function historyCard(suite, rows) {
  const card = element("div", { className: "card" }, element("h3", {}, `Suite ${suite} over training `,
    element("span", { className: "unit" }, `${measureName(rows[0].measure)}, 95 % intervals`)));
  const ofRuns = runs.map((run) => [run, rows.filter((one) => one.run === run).sort((a, b) => a.version - b.version)]).filter(([, own]) => own.length);
  drawings.push(plotter(card, () => {
    const columns = uPlot.join(ofRuns.map(([run, own]) => [own.map((one) => placeOf(run, one)), own.map((one) => one.score), own.map((one) => one.low), own.map((one) => one.high)]));
    const series = ofRuns.flatMap(([run]) => [
      { label: run.name, stroke: run.colour, width: 2, spanGaps: true, points: { show: true, size: 7, fill: run.colour }, value: (_, value) => shown(value, 3) },
      { label: `${run.name} low`, stroke: `${run.colour}80`, width: 1, spanGaps: true, points: { show: false }, value: (_, value) => shown(value, 3) },
      { label: `${run.name} high`, stroke: `${run.colour}80`, width: 1, spanGaps: true, points: { show: false }, value: (_, value) => shown(value, 3) },
    ]);
    const bands = ofRuns.map(([run], index) => ({ series: [3 * index + 3, 3 * index + 2], fill: `${run.colour}26` }));
    return { columns, series, bands, y: "score", height: 260 };
  }));
  return card;
}

// Where on the x axis the policy of an evaluation belongs: its version is the epoch that it was saved after.
function placeOf(run, one) {
  const epochs = run.columns.epoch, index = epochs.findIndex((epoch) => epoch >= one.version);
  if (along === "agent_step" && one.agent_step !== null) return one.agent_step;
  return run.columns[along][index < 0 ? epochs.length - 1 : index];
}

// --- curriculum ------------------------------------------------------------------------------------------

function curriculum() {
  const box = element("div", { className: "wide" });
  for (const run of runs) {
    const heat = run.heat;
    if (!heat) {
      box.append(element("div", { className: "card" }, element("h3", {}, runName(run)),
        element("p", { className: "none" }, "One task only, or nothing was recorded of several.")));
      continue;
    }
    const what = heat.is_recorded ? "probability of each task" : "share of each task among the episodes that ended";
    const card = element("div", { className: "card" }, element("h3", {}, runName(run), " ", element("span", { className: "unit" }, what)));
    if (!heat.is_recorded)
      card.append(element("p", { className: "soft" }, "Probabilities are not recorded in this run (no curriculum.jsonl): what was played is shown instead."));
    if (heat.left_out) card.append(element("p", { className: "soft" }, `The ${heat.left_out} rarest tasks are left out.`));
    card.append(heatMap(heat));
    box.append(card);
  }
  return box;
}

// From dark to bright, as matplotlib's viridis.
const SCALE = [[68, 1, 84], [71, 44, 122], [59, 81, 139], [44, 113, 142], [33, 144, 141], [39, 173, 129], [92, 200, 99], [170, 220, 50], [253, 231, 37]];

function heatColour(part) {
  const place = Math.min(Math.max(part, 0), 1) * (SCALE.length - 1), index = Math.min(Math.floor(place), SCALE.length - 2);
  return `rgb(${SCALE[index].map((from, i) => Math.round(from + (SCALE[index + 1][i] - from) * (place - index))).join(",")})`;
}

function heatMap(heat) {
  const canvas = element("canvas"), tip = element("div", { className: "tip", hidden: true });
  const frame = element("div", { className: "heat-frame" }, canvas, tip), rows = heat.tasks.length, columns = heat.agent_steps.length;
  // The even share is in the middle of the colours, unless a task has far more: then what all have alike is not bright.
  const even = 1 / (rows + heat.left_out), most = Math.max(...heat.values.flat().filter((value) => value !== null), 2 * even);
  const rowHeight = Math.max(13, Math.min(22, Math.round(520 / rows))), axisHeight = 34;
  const labels = taskLabels(heat.tasks);
  let left = 0, cellWidth = 0;
  drawings.push(() => {
    const width = frame.clientWidth, ratio = Math.min(devicePixelRatio || 1, 2), height = rows * rowHeight + axisHeight;
    canvas.width = width * ratio;
    canvas.height = height * ratio;
    canvas.style.height = `${height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    pen.font = `${Math.min(11, rowHeight - 2)}px system-ui, 'DejaVu Sans', sans-serif`;
    left = Math.min(Math.max(...labels.map((label) => pen.measureText(label).width)) + 12, width * 0.42);
    cellWidth = (width - left) / columns;
    pen.textBaseline = "middle";
    heat.values.forEach((row, task) => {
      pen.fillStyle = themed("ink");
      pen.textAlign = "right";
      pen.fillText(fitted(pen, labels[task], left - 10), left - 6, (task + 0.5) * rowHeight);
      row.forEach((value, column) => {
        if (value === null) return;
        pen.fillStyle = heatColour(value / most);
        pen.fillRect(left + column * cellWidth, task * rowHeight, Math.ceil(cellWidth + 0.4), rowHeight - 1);
      });
    });
    pen.fillStyle = themed("soft");
    pen.textAlign = "center";
    for (let i = 0; i < 5; i++) {
      const column = Math.round((i * (columns - 1)) / 4), x = left + (column + 0.5) * cellWidth;
      pen.textAlign = i === 0 ? "left" : i === 4 ? "right" : "center";
      pen.fillText(short(heat.agent_steps[column]), i === 0 ? left : i === 4 ? width : x, rows * rowHeight + 10);
    }
    pen.textAlign = "center";
    pen.fillText("agent steps", left + (width - left) / 2, rows * rowHeight + 25);
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect(), task = Math.floor((event.clientY - box.top) / rowHeight);
    const column = Math.floor((event.clientX - box.left - left) / cellWidth), isInside = task >= 0 && task < rows && column >= 0 && column < columns;
    tip.hidden = !isInside;
    if (!isInside) return;
    const value = heat.values[task][column];
    tip.textContent = `${heat.tasks[task]}\n${value === null ? "nothing known" : `${shown(100 * value, 3)} %`} at ${shown(heat.agent_steps[column])} agent steps`;
    tip.style.left = `${Math.min(event.clientX - box.left + 12, box.width - tip.offsetWidth - 4)}px`;
    tip.style.top = `${event.clientY - box.top + 14}px`;
  });
  canvas.addEventListener("pointerleave", () => { tip.hidden = true; });
  const scale = element("div", { className: "heat-scale" }, "0 %",
    element("i", { style: `background:linear-gradient(90deg, ${SCALE.map((colour) => `rgb(${colour.join(",")})`).join(", ")})` }), `${shown(100 * most, 3)} %`,
    element("span", {}, swatch(heatColour(even / most)), `${shown(100 * even, 3)} %: all alike`));
  return element("div", {}, frame, scale);
}

// ``terrain=varied_terrain/maze_small;altar=[2,6)`` → ``maze_small, altar=[2,6)``, unless two would read alike.
function taskLabels(tasks) {
  const labels = tasks.map((task) => {
    const [first, ...others] = task.split(";");
    return others.length ? [first.slice(Math.max(first.indexOf("="), first.lastIndexOf("/")) + 1), ...others].join(", ") : task;
  });
  return new Set(labels).size === labels.length ? labels : tasks;
}

function fitted(pen, text, width) {
  if (pen.measureText(text).width <= width) return text;
  let end = text.length;
  while (end > 1 && pen.measureText(`…${text.slice(-end)}`).width > width) end--; // ids differ at their end
  return `…${text.slice(-end)}`;
}

// --- where the time went ---------------------------------------------------------------------------------

function shares() {
  const box = element("div", { className: "wide" });
  for (const run of runs)
    for (const [title, names] of SHARES) {
      // The library's names are a part of nobody else's: an epoch's shares are told by its "other".
      const own = names.filter((name) => run.columns[`share/${name}`]);
      const isOf = title.startsWith("Time of an epoch") ? run.columns["share/other"] : !run.columns["share/other"];
      if (isOf && own.length > 1) box.append(stack(run, title, own));
    }
  return box.children.length ? box : "No shares of time are recorded.";
}

function stack(run, title, names) {
  const card = element("div", { className: "card" }, element("h3", {}, runs.length > 1 ? runName(run) : "", runs.length > 1 ? " " : "", title, " ",
    element("span", { className: "unit" }, "share of the whole")));
  drawings.push(plotter(card, () => {
    const values = names.map((name) => smoothed(run.columns[`share/${name}`]));
    const sums = [];
    values.forEach((column, index) => sums.push(column.map((value, i) => (value ?? 0) + (index ? sums[index - 1][i] : 0))));
    // The highest first, so that each lower one covers its part.
    const order = names.map((_, index) => names.length - 1 - index);
    const series = order.map((index) => ({
      label: SHARE_NAMES[names[index]] ?? names[index], stroke: PALETTE[index], fill: PALETTE[index], width: 0, points: { show: false },
      value: (_, __, ___, i) => (i === null || i === undefined ? "–" : `${shown(100 * (values[index][i] ?? 0), 3)} %`),
    }));
    return { columns: [run.columns[along], ...order.map((index) => sums[index])], series, y: "share", options: { y: { range: [0, 1] } } };
  }));
  return card;
}

// --- staleness -------------------------------------------------------------------------------------------

function staleness() {
  const told = runs.filter((run) => Object.keys(run.staleness).length);
  if (!told.length) return "How stale each fragment was is not recorded: runs of the library have no stale ones, and older runs of the service kept only the mean (see the learning curves).";
  return element("div", { className: "grid" }, ...told.map((run) => {
    const counts = Object.entries(run.staleness), total = counts.reduce((sum, [, count]) => sum + count, 0), most = Math.max(...counts.map(([, count]) => count));
    const bars = counts.flatMap(([lag, count]) => [
      element("span", {}, `${lag} version${lag === "1" ? "" : "s"} behind`),
      element("div", { className: "track", title: `${shown(count)} fragments` }, element("div", { className: "fill", style: `width:${(100 * count) / most}%;background:${run.colour}` })),
      element("span", { className: "number" }, `${shown(count)} (${shown((100 * count) / total, 3)} %)`),
    ]);
    return element("div", { className: "card" }, element("h3", {}, runs.length > 1 ? runName(run) : "Age of the data", " ",
      element("span", { className: "unit" }, `fragments, of ${shown(total)} trained on`)), element("div", { className: "bars" }, ...bars));
  }));
}

// --- workers and events ----------------------------------------------------------------------------------

function workers() {
  const box = element("div", { className: "wide" });
  for (const run of runs) {
    if (!run.columns["workers/wanted"]) {
      box.append(element("div", { className: "card" }, element("h3", {}, runName(run)), element("p", { className: "none" }, "Trained by the library: it has no workers of its own.")));
      continue;
    }
    box.append(workersCard(run));
  }
  return box;
}

function workersCard(run) {
  const card = element("div", { className: "card" }, element("h3", {}, runs.length > 1 ? runName(run) : "", " Rollout workers ",
    element("span", { className: "unit" }, run.events.length ? "and events (vertical lines)" : "")));
  const placed = run.events.filter((event) => event.agent_step !== null && event.kind !== "ready");
  const kinds = [...new Set(run.events.map((event) => event.kind))], colourOf = (kind) => PALETTE[(kinds.indexOf(kind) + 3) % PALETTE.length];
  const stepped = uPlot.paths.stepped({ align: 1 });
  drawings.push(plotter(card, () => ({
    columns: [run.columns[along], run.columns["workers/ready"], run.columns["workers/wanted"]],
    series: [
      { label: "ready", stroke: run.colour, width: 3, paths: stepped, points: { show: false }, value: (_, value) => shown(value) },
      { label: "wanted (dashed)", stroke: themed("ink"), width: 1.5, dash: [6, 4], paths: stepped, points: { show: false }, value: (_, value) => shown(value) },
    ],
    y: "rollout workers", options: { y: { range: (_, low, high) => [0, Math.max(1, high) * 1.1] } },
    yAxis: { incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000] },
    hooks: { draw: [(plot) => drawEvents(plot, run, placed, colourOf)] },
  })));
  const chosen = element("select", {}, element("option", { value: "" }, `all ${run.events.length} events`),
    ...kinds.map((kind) => element("option", { value: kind }, `${kind} (${run.events.filter((event) => event.kind === kind).length})`)));
  const list = element("div");
  const show = () => {
    const rows = run.events.filter((event) => !chosen.value || event.kind === chosen.value).map((event) =>
      [moment(event.at), event.agent_step === null ? null : Math.round(event.agent_step), marked(colourOf(event.kind), event.kind), event.text]);
    list.replaceChildren(table(["time (UTC)", "agent steps", "kind", "what happened"], rows, { numbers: [1], whole: [0], loose: [3] }));
    list.firstChild.classList.add("tall");
  };
  chosen.addEventListener("change", show);
  if (run.events.length) { show(); card.append(chosen, list); }
  else card.append(element("p", { className: "none" }, "No events are recorded in this run's directory (no events.jsonl)."));
  return card;
}

function drawEvents(plot, run, events, colourOf) {
  const pen = plot.ctx, { top, height, left, width } = plot.bbox;
  pen.save();
  pen.lineWidth = 1.5 * devicePixelRatio;
  pen.setLineDash([]);
  for (const event of events) {
    const x = plot.valToPos(placeOfStep(run, event.agent_step), "x", true);
    if (x < left || x > left + width) continue;
    pen.strokeStyle = colourOf(event.kind);
    pen.beginPath();
    pen.moveTo(x, top);
    pen.lineTo(x, top + height);
    pen.stroke();
  }
  pen.restore();
}

function placeOfStep(run, step) {
  if (along === "agent_step") return step;
  const index = run.columns.agent_step.findIndex((one) => one >= step);
  return run.columns[along][index < 0 ? run.columns.agent_step.length - 1 : index];
}

// --- ledger ----------------------------------------------------------------------------------------------

function ledger() {
  const told = runs.filter((run) => run.ledger);
  if (!told.length) return "There is no ledger: runs of the library have none.";
  const reasons = (part) => [...new Set(told.flatMap((run) => Object.keys(run.ledger[part])))].sort();
  const names = [
    ["trained", (totals) => totals.trained],
    ...reasons("dropped").map((reason) => [`dropped: ${reason}`, (totals) => totals.dropped[reason] ?? 0]),
    ...reasons("lost").map((reason) => [`lost: ${reason}`, (totals) => totals.lost[reason] ?? 0]),
    ["in flight", (totals) => totals.in_flight], ["queued", (totals) => totals.queued],
    ["issued", (totals) => totals.issued],
  ];
  const share = (of, totals) => (totals.issued ? `${shown((100 * of(totals)) / totals.issued, 3)} %` : "–");
  const rows = names.map(([name, of]) => [name, ...told.flatMap((run) => [of(run.ledger), share(of, run.ledger)])]);
  const card = element("div", { className: "card" }, table(["agent steps", ...told.flatMap((run) => [runName(run), "share"])], rows,
    { numbers: rows[0].map((_, index) => index).slice(1) }));
  for (const run of told) {
    const off = run.ledger.imbalance;
    card.append(element("p", { className: off ? "bad" : "good" }, `${run.name}: ` + (off ? `${shown(off)} agent steps are unaccounted for` : "balanced, every agent step is accounted for")));
  }
  const perWorker = told.filter((run) => Object.keys(run.workers).length).map((run) => element("div", { className: "card" }, element("h3", {}, runName(run), " by rollout worker"),
    table(["worker", "fragments", "issued", "trained", "dropped", "lost", "open"], Object.entries(run.workers).map(([worker, sums]) =>
      [worker, sums.fragments, sums.issued, sums.trained, sums.dropped, sums.lost, sums.open]), { numbers: [0, 1, 2, 3, 4, 5, 6] })));
  return element("div", { className: "wide" }, card, ...perWorker);
}

// --- checkpoints -----------------------------------------------------------------------------------------

function checkpoints() {
  return element("div", { className: "wide" }, ...runs.map((run) => {
    const source = run.config["trainer.initial_policy.uri"], teacher = run.config["trainer.kickstart.teacher_uri"];
    const restarts = run.events.filter((event) => ["restarted", "resumed", "learners_lost"].includes(event.kind));
    const lines = run.checkpoints.map((one, index) => {
      const parent = index ? run.checkpoints[index - 1] : null;
      return [one.name, one.epoch, one.agent_step, parent ? parent.name : source ? policyName(source) : "random weights",
        one.score, megabytes(one.bytes), moment(one.written), one.is_final ? "last" : ""];
    });
    const card = element("div", { className: "card" }, element("h3", {}, runs.length > 1 ? runName(run) : "", " What grew out of what"));
    card.append(element("p", {}, "Begins from ", element("b", {}, source ? String(source) : "random weights"),
      teacher ? element("span", {}, ", taught by ", element("b", {}, String(teacher))) : "",
      ". ", element("span", { className: "soft" }, "Older checkpoints are deleted as new ones are written, so that between two rows others may have been.")));
    card.append(lines.length ? table(["checkpoint", "epoch", "agent steps", "continues", "score", "size", "written (UTC)", ""], lines, { numbers: [1, 2, 4, 5], whole: [0, 3, 6] })
      : element("p", { className: "none" }, "No checkpoint is kept."));
    for (const event of restarts) card.append(element("p", {}, `${moment(event.at)} ${event.kind}: ${event.text}`));
    return card;
  }));
}

// --- configuration ---------------------------------------------------------------------------------------

function configuration() {
  const names = [...new Set(runs.flatMap((run) => Object.keys(run.config)))];
  if (!names.length) return "No config.yaml is there.";
  const search = element("input", { type: "search", placeholder: "part of a name", ariaLabel: "part of a setting's name" });
  const onlyDifferent = element("input", { type: "checkbox", checked: runs.length > 1 });
  const list = element("div", { className: "scroll tall" });
  const text = (value) => (value === undefined ? "–" : value === null ? "none" : Array.isArray(value) ? JSON.stringify(value) : String(value));
  const differs = (name) => new Set(runs.map((run) => text(run.config[name]))).size > 1;
  const show = () => {
    const kept = names.filter((name) => name.includes(search.value) && (!onlyDifferent.checked || differs(name)));
    const shownTable = table(["setting", ...runs.map(runName)], kept.map((name) =>
      [element("code", {}, name), ...runs.map((run) => element("code", {}, text(run.config[name])))])).firstChild;
    [...shownTable.tBodies[0].rows].forEach((row, index) => row.classList.toggle("differs", runs.length > 1 && differs(kept[index])));
    list.replaceChildren(kept.length ? shownTable : element("p", { className: "none" }, "No such setting."));
  };
  search.addEventListener("input", show);
  onlyDifferent.addEventListener("change", show);
  show();
  const choice = runs.length > 1 ? element("label", {}, onlyDifferent, " only what differs ") : "";
  return element("div", { className: "card" }, element("p", {}, search, " ", choice), list);
}
