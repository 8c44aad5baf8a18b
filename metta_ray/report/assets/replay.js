// The player. A series is [steps, values]: values[i] holds from steps[i] on. Step t is the state after action t.

const SPEEDS = [1, 2, 5, 10, 20, 50, 100, 200];
const TRAIL = 25;
const LAYER_LIMIT = 4096;
const LOOKS = {
  altar: ["#d6336c", "heart"], mine: ["#c77d2b", "diamond"], generator: ["#e0a800", "hexagon"],
  lasery: ["#d9480f", "triangle"], armory: ["#2b7bba", "square"], cue: ["#2f9e44", "square"],
};

start((data) => {
  document.title = data.title;
  byId("title").textContent = data.title;
  const facts = [["steps", data.steps], ["map", `${data.size[0]} × ${data.size[1]}`], ["format", `version ${data.version}`], ...data.facts];
  byId("facts").append(...facts.map(([name, value]) => element("span", {}, `${name} `, element("b", {}, String(value)))));
  window.replayPlayer = new Player(new World(data));
});

function byId(id) { return document.getElementById(id); }

// --- the world at a step ---------------------------------------------------------------------------------

function at(series, step, missing = null) {
  const steps = series[0];
  let index = series.cursor ?? 0; // mostly, steps are asked for one after the other
  const holds = steps[index] <= step && (index + 1 >= steps.length || step < steps[index + 1]);
  if (!holds) {
    let low = 0, high = steps.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (steps[middle] <= step) low = middle + 1; else high = middle;
    }
    index = low - 1;
    if (index < 0) return missing;
    series.cursor = index;
  }
  return series[1][index];
}

class World {
  constructor(data) {
    this.steps = data.steps;
    [this.width, this.height] = data.size;
    this.types = data.types;
    this.actionNames = data.actions;
    this.itemNames = data.items;
    this.still = data.still;
    for (const thing of data.things) {
      thing.x = [thing.at[0], thing.at[1]];
      thing.y = [thing.at[0], thing.at[2]];
    }
    this.moving = data.things.filter((thing) => thing.agent === undefined);
    this.agents = data.things.filter((thing) => thing.agent !== undefined).sort((a, b) => a.agent - b.agent);
    this.agents.forEach((agent, index) => { agent.colour = agentColour(index, this.agents.length); });
    this.looks = data.types.map(lookOf);
    this.letters = lettersOf(data.types);
    this.stillAt = new Map();
    for (const [kind, cells] of data.still)
      for (let i = 0; i < cells.length; i += 2) this.stillAt.set(cells[i + 1] * this.width + cells[i], kind);
    this.cooldown = this.itemNames.indexOf("cooldown");
    for (const thing of this.moving) thing.hadStock = this.holdsSomething(this.itemsOf(thing, 0));
    this.canBeEmptied = this.moving.some((thing) => thing.hadStock);
  }

  isWall(kind) { return this.types[kind] === "wall"; }
  isAlive(thing, step) { return thing.alive ? at(thing.alive, step, true) : true; }
  itemsOf(thing, step) { return at(thing.items, step, []); }
  actionName(number) { return this.actionNames[number] ?? `action ${number}`; }
  itemName(number) { return this.itemNames[number] ?? `item ${number}`; }

  holdsSomething(items) { return items.some(([item, amount]) => item !== this.cooldown && amount > 0); }

  // Of no use now: it cools down, or what it held at the start is gone.
  isResting(thing, step) {
    const items = this.itemsOf(thing, step);
    return items.some(([item, amount]) => item === this.cooldown && amount > 0) || (thing.hadStock && !this.holdsSomething(items));
  }

  inventoryText(thing, step) {
    return this.itemsOf(thing, step).map(([item, amount]) => `${this.itemName(item)} ${amount}`).join(", ");
  }

  // [x, y] between a step and the next; null where it is not there. Jumps are not drawn as walks.
  place(thing, step, part) {
    const x = at(thing.x, step);
    if (x === null || !this.isAlive(thing, step)) return null;
    const y = at(thing.y, step);
    if (part === 0 || step + 1 >= this.steps) return [x, y];
    const nextX = at(thing.x, step + 1), nextY = at(thing.y, step + 1);
    const isWalk = Math.abs(nextX - x) + Math.abs(nextY - y) <= 2;
    return isWalk ? [x + (nextX - x) * part, y + (nextY - y) * part] : [x, y];
  }

  // What stands in a cell, agents first: {kind, thing} or null.
  whatIsAt(x, y, step) {
    for (const thing of [...this.agents, ...this.moving])
      if (at(thing.x, step) === x && at(thing.y, step) === y && this.isAlive(thing, step)) return { kind: thing.type, thing };
    const kind = this.stillAt.get(y * this.width + x);
    return kind === undefined ? null : { kind, thing: null };
  }
}

function lookOf(name, index) {
  const base = Object.keys(LOOKS).find((known) => name === known || name.startsWith(`${known}_`));
  const [colour, shape] = base ? LOOKS[base] : [`hsl(${(index * 137.5 + 40) % 360} 50% 48%)`, "square"];
  return { colour, shape };
}

function lettersOf(types) {
  const taken = new Set();
  return types.map((name) => {
    const wanted = [...`${name.toUpperCase()}ABCDEFGHIJKLMNOPQRSTUVWXYZ`].find((one) => /[A-Z]/.test(one) && !taken.has(one));
    if (wanted && name !== "wall" && name !== "agent") taken.add(wanted);
    return wanted ?? "?";
  });
}

function agentColour(index, count) {
  return count <= PALETTE.length ? PALETTE[index] : `hsl(${(index * 137.5 + 210) % 360} 62% ${[46, 58, 38][index % 3]}%)`;
}

// --- drawing ---------------------------------------------------------------------------------------------

// One thing of type ``kind`` in the square at (left, top).
function drawThing(pen, world, kind, left, top, size, isResting) {
  const { colour, shape } = world.looks[kind];
  const inset = size * 0.1, a = left + inset, b = top + inset, side = size - 2 * inset;
  pen.globalAlpha = isResting ? 0.35 : 1;
  pen.fillStyle = colour;
  pen.beginPath();
  outline(pen, shape, a, b, side);
  pen.fill();
  if (size >= 13) {
    pen.fillStyle = "#fff";
    pen.font = `600 ${Math.round(size * 0.42)}px system-ui, 'DejaVu Sans', sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(world.letters[kind], left + size / 2, top + size * (shape === "triangle" ? 0.62 : 0.53));
  }
  pen.globalAlpha = 1;
}

function outline(pen, shape, x, y, side) {
  const points = {
    diamond: [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]],
    triangle: [[0.5, 0.02], [1, 0.95], [0, 0.95]],
    hexagon: [[0.25, 0.04], [0.75, 0.04], [1, 0.5], [0.75, 0.96], [0.25, 0.96], [0, 0.5]],
  }[shape];
  if (shape === "heart") {
    pen.moveTo(x + side / 2, y + side);
    pen.bezierCurveTo(x - side * 0.25, y + side * 0.45, x + side * 0.05, y - side * 0.15, x + side / 2, y + side * 0.2);
    pen.bezierCurveTo(x + side * 0.95, y - side * 0.15, x + side * 1.25, y + side * 0.45, x + side / 2, y + side);
  } else if (points) {
    points.forEach(([px, py], index) => pen[index ? "lineTo" : "moveTo"](x + px * side, y + py * side));
    pen.closePath();
  } else pen.rect(x, y, side, side);
}

function drawAgent(pen, agent, x, y, size, isFollowed) {
  const radius = size * 0.42;
  pen.beginPath();
  pen.arc(x, y, radius, 0, 2 * Math.PI);
  pen.fillStyle = agent.colour;
  pen.fill();
  if (isFollowed) {
    pen.lineWidth = Math.max(2, size * 0.13);
    pen.strokeStyle = themed("ink");
    pen.stroke();
  }
  if (size >= 9) {
    pen.fillStyle = "#fff";
    pen.font = `700 ${Math.round(size * (agent.agent > 9 ? 0.44 : 0.54))}px system-ui, 'DejaVu Sans', sans-serif`;
    pen.textAlign = "center";
    pen.textBaseline = "middle";
    pen.fillText(String(agent.agent), x, y + size * 0.03);
  }
}

class MapView {
  constructor(world, canvas) {
    this.world = world;
    this.canvas = canvas;
    this.pen = canvas.getContext("2d");
    this.layer = document.createElement("canvas");
    this.zoom = 1; // 1: the whole map
    this.centre = [world.width / 2, world.height / 2];
    this.resize();
  }

  resize() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2), box = this.canvas.getBoundingClientRect();
    this.canvas.width = Math.round(box.width * ratio);
    this.canvas.height = Math.round(box.height * ratio);
    this.ratio = ratio;
    this.layerScale = 0;
  }

  get scale() { // pixels of the canvas per cell
    const { width, height } = this.canvas;
    return Math.min(width / this.world.width, height / this.world.height) * this.zoom;
  }

  // The corner of the map's cell (0, 0) on the canvas; the map stays in sight.
  get origin() {
    const inside = (centre, cells, pixels) => {
      const all = cells * this.scale;
      if (all <= pixels) return (pixels - all) / 2;
      return Math.min(0, Math.max(pixels - all, pixels / 2 - centre * this.scale));
    };
    return [
      Math.round(inside(this.centre[0], this.world.width, this.canvas.width)),
      Math.round(inside(this.centre[1], this.world.height, this.canvas.height)),
    ];
  }

  cellUnder(event) {
    const box = this.canvas.getBoundingClientRect(), [left, top] = this.origin;
    const x = ((event.clientX - box.left) * this.ratio - left) / this.scale;
    const y = ((event.clientY - box.top) * this.ratio - top) / this.scale;
    return [x, y];
  }

  zoomBy(factor, around = this.centre) {
    const zoom = Math.min(Math.max(this.zoom * factor, 1), Math.max(1, 48 * this.ratio / (this.scale / this.zoom)));
    const kept = this.zoom / zoom;
    this.centre = this.centre.map((middle, i) => around[i] + (middle - around[i]) * kept);
    this.zoom = zoom;
  }

  draw(step, part, followed, isDarkened) {
    const { world, pen, scale } = this, [left, top] = this.origin;
    pen.fillStyle = themed("card");
    pen.fillRect(0, 0, this.canvas.width, this.canvas.height);
    this.drawStill(left, top, scale);
    for (const thing of world.moving) {
      const place = world.place(thing, step, part);
      if (place) drawThing(pen, world, thing.type, left + place[0] * scale, top + place[1] * scale, scale, world.isResting(thing, step));
    }
    const place = world.place(followed, step, part);
    if (place && isDarkened) this.darken(left, top, scale, place, followed.window);
    this.drawTrail(left, top, scale, step, followed);
    for (const agent of world.agents) {
      const where = world.place(agent, step, part);
      if (where) drawAgent(pen, agent, left + (where[0] + 0.5) * scale, top + (where[1] + 0.5) * scale, scale, agent === followed);
    }
    this.drawRewards(left, top, scale, step, part);
    if (place) this.drawWindow(left, top, scale, place, followed);
  }

  // Walls and floor never change: they are painted once for each scale, onto a layer where that is not too large.
  drawStill(left, top, scale) {
    const { world, pen, layer } = this, width = Math.ceil(world.width * scale), height = Math.ceil(world.height * scale);
    if (Math.max(width, height) > LAYER_LIMIT) {
      this.paintStill(pen, left, top, scale);
      return;
    }
    if (this.layerScale !== scale) {
      [layer.width, layer.height, this.layerScale] = [width, height, scale];
      this.paintStill(layer.getContext("2d"), 0, 0, scale);
    }
    pen.drawImage(layer, left, top);
  }

  paintStill(pen, left, top, scale) {
    const { world } = this, near = [-left / scale - 1, -top / scale - 1];
    const far = [near[0] + 2 + pen.canvas.width / scale, near[1] + 2 + pen.canvas.height / scale];
    pen.fillStyle = themed("floor");
    pen.fillRect(left, top, world.width * scale, world.height * scale);
    const gap = scale >= 14 ? 1 : 0, wall = themed("wall");
    for (const [kind, cells] of world.still)
      for (let i = 0; i < cells.length; i += 2) {
        const x = cells[i], y = cells[i + 1];
        if (x < near[0] || x > far[0] || y < near[1] || y > far[1]) continue;
        if (world.isWall(kind)) {
          // Whole pixels, or hairlines show between neighbours.
          const x0 = Math.round(left + x * scale), y0 = Math.round(top + y * scale);
          pen.fillStyle = wall;
          pen.fillRect(x0, y0, Math.round(left + (x + 1) * scale) - x0 - gap, Math.round(top + (y + 1) * scale) - y0 - gap);
        } else drawThing(pen, world, kind, left + x * scale, top + y * scale, scale, false);
      }
  }

  darken(left, top, scale, [x, y], window) {
    const half = (window - 1) / 2, { pen, canvas } = this;
    pen.fillStyle = darkness.matches ? "#0008" : "#1c243055";
    pen.beginPath();
    pen.rect(0, 0, canvas.width, canvas.height);
    pen.rect(left + (x - half) * scale, top + (y - half) * scale, window * scale, window * scale);
    pen.fill("evenodd");
  }

  drawTrail(left, top, scale, step, followed) {
    const { pen, world } = this;
    pen.strokeStyle = followed.colour;
    pen.lineWidth = Math.max(1.5, scale * 0.12);
    pen.globalAlpha = 0.55;
    pen.beginPath();
    let last = null;
    for (let back = Math.max(0, step - TRAIL); back <= step; back++) {
      const place = world.place(followed, back, 0);
      if (!place) { last = null; continue; }
      const isWalk = last && Math.abs(last[0] - place[0]) + Math.abs(last[1] - place[1]) <= 2;
      pen[isWalk ? "lineTo" : "moveTo"](left + (place[0] + 0.5) * scale, top + (place[1] + 0.5) * scale);
      last = place;
    }
    pen.stroke();
    pen.globalAlpha = 1;
  }

  drawRewards(left, top, scale, step, part) {
    const { pen, world } = this;
    for (const agent of world.agents) {
      const reward = at(agent.reward, step, 0), place = reward ? world.place(agent, step, part) : null;
      if (!place) continue;
      const size = Math.max(11 * this.ratio, scale * 0.7);
      pen.font = `700 ${size}px system-ui, 'DejaVu Sans', sans-serif`;
      pen.textAlign = "center";
      pen.textBaseline = "alphabetic";
      const x = left + (place[0] + 0.5) * scale, y = top + place[1] * scale - 2 - part * scale * 0.5;
      pen.lineWidth = 3;
      pen.strokeStyle = themed("paper");
      pen.fillStyle = themed(reward > 0 ? "good" : "bad");
      const text = (reward > 0 ? "+" : "") + shown(reward, 3);
      pen.strokeText(text, x, y);
      pen.fillText(text, x, y);
    }
  }

  drawWindow(left, top, scale, [x, y], followed) {
    const half = (followed.window - 1) / 2, { pen } = this;
    pen.strokeStyle = followed.colour;
    pen.lineWidth = 2 * this.ratio;
    pen.strokeRect(left + (x - half) * scale, top + (y - half) * scale, followed.window * scale, followed.window * scale);
  }
}

// The cells around an agent, as its observation holds them; returns what is in them, for people.
function drawObservation(canvas, world, agent, step) {
  const ratio = Math.min(window.devicePixelRatio || 1, 2), box = canvas.getBoundingClientRect();
  const side = Math.round(box.width * ratio);
  if (canvas.width !== side) canvas.width = canvas.height = side;
  const pen = canvas.getContext("2d"), count = agent.window, size = side / count, half = (count - 1) / 2;
  pen.fillStyle = themed("floor");
  pen.fillRect(0, 0, side, side);
  const place = world.place(agent, step, 0), seen = new Map();
  if (!place) return seen;
  const standing = new Map(), key = (x, y) => y * world.width + x;
  for (const thing of [...world.moving, ...world.agents]) {
    const where = world.place(thing, step, 0);
    if (where) standing.set(key(...where), thing);
  }
  for (let row = 0; row < count; row++)
    for (let column = 0; column < count; column++) {
      const x = place[0] - half + column, y = place[1] - half + row, left = column * size, top = row * size;
      if (x < 0 || y < 0 || x >= world.width || y >= world.height) { // outside of the map nothing is seen
        pen.fillStyle = themed("card");
        pen.fillRect(left, top, size, size);
        continue;
      }
      const thing = standing.get(key(x, y)), kind = thing ? thing.type : world.stillAt.get(key(x, y));
      if (kind === undefined) continue;
      const name = world.types[kind];
      if (thing !== agent) seen.set(name, (seen.get(name) ?? 0) + 1);
      if (thing && thing.agent !== undefined) drawAgent(pen, thing, left + size / 2, top + size / 2, size, thing === agent);
      else if (world.isWall(kind)) {
        pen.fillStyle = themed("wall");
        pen.fillRect(left + 0.5, top + 0.5, size - 1, size - 1);
      } else drawThing(pen, world, kind, left, top, size, thing ? world.isResting(thing, step) : false);
    }
  return seen;
}

// --- the player ------------------------------------------------------------------------------------------

class Player {
  constructor(world) {
    this.world = world;
    this.position = 0; // in steps, with the part of the step that is under way
    this.speed = 5;
    this.isPlaying = false;
    this.keepsInMiddle = true;
    this.isDarkened = false;
    this.frames = 0; // drawn so far, for measurements
    this.shownStep = -1;
    this.isStale = true;
    this.map = new MapView(world, byId("map"));
    const isLarge = this.map.scale < 11 * this.map.ratio;
    if (isLarge) this.map.zoomBy(16 * this.map.ratio / this.map.scale);
    this.buildControls();
    this.buildLegend();
    this.buildAgents();
    this.follow(0);
    this.listen();
    this.lastTime = performance.now();
    requestAnimationFrame((time) => this.frame(time));
  }

  get step() { return Math.min(Math.floor(this.position), this.world.steps - 1); }
  get agent() { return this.world.agents[this.followed]; }

  frame(time) {
    const seconds = Math.min(0.25, Math.max(0, (time - this.lastTime) / 1000));
    this.lastTime = time;
    if (this.isPlaying) {
      this.position += seconds * this.speed;
      if (this.position >= this.world.steps - 1) { this.position = this.world.steps - 1; this.pause(); }
      this.isStale = true;
    }
    if (this.isStale) this.draw();
    requestAnimationFrame((next) => this.frame(next));
  }

  draw() {
    this.isStale = false;
    const { step, map } = this, part = this.isPlaying ? this.position - step : 0;
    if (this.keepsInMiddle) {
      const place = this.world.place(this.agent, step, part);
      if (place) map.centre = [place[0] + 0.5, place[1] + 0.5];
    }
    map.draw(step, part, this.agent, this.isDarkened);
    this.frames += 1;
    if (step !== this.shownStep) this.showStep(step);
  }

  showStep(step) {
    this.shownStep = step;
    const { world, agent } = this, set = (id, text) => { byId(id).textContent = text; };
    byId("scrub").value = step;
    set("step", `step ${step} of ${world.steps - 1}`);
    const isDone = at(agent.ok, step, false), reward = at(agent.reward, step, 0), place = world.place(agent, step, 0);
    byId("action").replaceChildren(world.actionName(at(agent.action, step, 0)) + " ",
      element("span", { className: isDone ? "good" : "bad" }, isDone ? "done" : "failed"));
    set("reward", shown(reward));
    set("total", shown(at(agent.total, step, 0)));
    set("value", agent.value ? shown(at(agent.value, step)) : "not recorded");
    set("inventory", world.inventoryText(agent, step) || "nothing");
    set("position", place ? `column ${place[0]}, row ${place[1]}` : "not on the map");
    const seen = drawObservation(byId("view"), world, agent, step);
    const counts = [...seen].sort().map(([name, count]) => `${count} ${name}`);
    set("seen", counts.length ? `in sight: ${counts.join(", ")}` : "nothing in sight");
    this.rows.forEach(({ row, action, total }, index) => {
      const one = world.agents[index], name = world.actionName(at(one.action, step, 0)), sum = shown(at(one.total, step, 0));
      if (action.textContent !== name) action.textContent = name;
      if (total.textContent !== sum) total.textContent = sum;
      row.classList.toggle("followed", index === this.followed);
    });
    this.moveNowLine();
  }

  refresh() { this.shownStep = -1; this.isStale = true; }

  // What people do.

  goTo(step) {
    this.position = Math.min(Math.max(0, step), this.world.steps - 1);
    this.isStale = true;
  }

  stepBy(count) { this.pause(); this.goTo(this.step + count); }

  play() {
    if (this.step >= this.world.steps - 1) this.goTo(0);
    this.isPlaying = true;
    byId("play").textContent = "Pause";
  }

  pause() {
    this.isPlaying = false;
    this.position = this.step;
    this.isStale = true;
    byId("play").textContent = "Play";
  }

  toggle() { if (this.isPlaying) this.pause(); else this.play(); }

  setSpeed(speed) { this.speed = speed; byId("speed").value = String(speed); }

  changeSpeed(by) {
    const index = SPEEDS.indexOf(this.speed) + by;
    this.setSpeed(SPEEDS[Math.min(Math.max(index, 0), SPEEDS.length - 1)]);
  }

  follow(index) {
    this.followed = (index + this.world.agents.length) % this.world.agents.length;
    byId("agent").value = String(this.followed);
    byId("window").textContent = `${this.agent.window} × ${this.agent.window} cells`;
    this.rows[this.followed].row.scrollIntoView({ block: "nearest" });
    this.buildChart();
    this.refresh();
  }

  keepInMiddle(isOn) { this.keepsInMiddle = isOn; byId("follow").checked = isOn; this.isStale = true; }

  // Parts of the page.

  buildControls() {
    byId("scrub").max = this.world.steps - 1;
    byId("speed").append(...SPEEDS.map((speed) => element("option", { value: String(speed) }, `${speed} steps/s`)));
    this.setSpeed(this.speed);
    byId("agent").append(...this.world.agents.map((agent, index) => element("option", { value: String(index) }, `agent ${agent.agent}`)));
  }

  buildLegend() {
    const { world } = this, kinds = new Set([...world.still.map(([kind]) => kind), ...world.moving.map((thing) => thing.type)]);
    const entries = [...kinds].sort((a, b) => a - b).map((kind) => {
      const canvas = element("canvas", { width: 40, height: 40, style: "width:20px;height:20px" }), pen = canvas.getContext("2d");
      if (world.isWall(kind)) { pen.fillStyle = themed("wall"); pen.fillRect(4, 4, 32, 32); }
      else drawThing(pen, world, kind, 0, 0, 40, false);
      return element("span", {}, canvas, world.types[kind]);
    });
    const reasons = [...(world.cooldown >= 0 ? ["cooling down"] : []), ...(world.canBeEmptied ? ["emptied"] : [])];
    if (reasons.length) entries.push(element("span", { className: "soft" }, `pale: ${reasons.join(" or ")}`));
    byId("legend").replaceChildren(...entries);
  }

  buildAgents() {
    this.rows = this.world.agents.map((agent, index) => {
      const swatch = element("i", { className: "swatch", style: `background:${agent.colour}` });
      const action = element("td"), total = element("td", { className: "number" });
      const row = element("tr", { onclick: () => this.follow(index) }, element("td", {}, swatch, String(agent.agent)), action, total);
      return { row, action, total };
    });
    byId("agents").tBodies[0].append(...this.rows.map(({ row }) => row));
  }

  buildChart() {
    const { world, agent } = this, steps = Array.from({ length: world.steps }, (_, step) => step);
    const series = [
      { label: "step", value: (_, value) => shown(value) },
      { label: "reward so far", stroke: PALETTE[0], width: 2, value: (_, value) => shown(value), paths: uPlot.paths.stepped({ align: 1 }) },
    ];
    const columns = [steps, steps.map((step) => at(agent.total, step, 0))];
    if (agent.value) {
      series.push({ label: "value estimate", stroke: PALETTE[1], width: 1.5, value: (_, value) => shown(value) });
      columns.push(steps.map((step) => at(agent.value, step)));
    }
    const options = {
      width: byId("chart").clientWidth - 28, height: 150, scales: { x: { time: false } }, series, legend: { live: true },
      hooks: restingLegend(() => this.step),
      axes: [axis("step", { size: 36 }), axis("reward, value", { size: 52 })], cursor: { drag: { x: false, y: false }, points: { size: 7 } },
    };
    this.chart?.destroy();
    byId("chart").querySelectorAll(".now-line").forEach((line) => line.remove());
    this.chart = new uPlot(options, columns, byId("chart"));
    this.chart.over.addEventListener("click", () => { if (this.chart.cursor.idx !== null) { this.pause(); this.goTo(this.chart.cursor.idx); } });
    this.nowLine = element("div", { className: "now-line" });
    this.chart.over.append(this.nowLine);
    Object.assign(this.nowLine.style, { top: "0", bottom: "0" });
    this.moveNowLine();
  }

  moveNowLine() {
    if (!this.nowLine) return;
    this.nowLine.style.left = `${this.chart.valToPos(this.step, "x") - 1}px`;
    if (typeof this.chart.cursor.idx !== "number") this.chart.setLegend({ idx: this.step }, false);
  }

  listen() {
    const on = (id, event, act) => byId(id).addEventListener(event, act);
    on("play", "click", () => this.toggle());
    on("back", "click", () => this.stepBy(-1));
    on("forward", "click", () => this.stepBy(1));
    on("first", "click", () => this.stepBy(-this.world.steps));
    on("last", "click", () => this.stepBy(this.world.steps));
    on("scrub", "input", (event) => { this.pause(); this.goTo(Number(event.target.value)); });
    on("speed", "change", (event) => this.setSpeed(Number(event.target.value)));
    on("agent", "change", (event) => this.follow(Number(event.target.value)));
    on("follow", "change", (event) => this.keepInMiddle(event.target.checked));
    on("zoom-in", "click", () => this.zoom(1.4));
    on("zoom-out", "click", () => this.zoom(1 / 1.4));
    on("fit", "click", () => this.zoom(0));
    document.addEventListener("keydown", (event) => this.onKey(event));
    this.listenToMap();
    window.addEventListener("resize", () => { this.map.resize(); this.buildChart(); this.refresh(); });
    darkness.addEventListener("change", () => { this.map.layerScale = 0; this.buildChart(); this.buildLegend(); this.refresh(); });
  }

  zoom(factor, around) {
    if (factor) this.map.zoomBy(factor, around); else this.map.zoomBy(1e-6);
    this.isStale = true;
  }

  listenToMap() {
    const canvas = byId("map");
    let grabbed = null, moved = false;
    canvas.addEventListener("wheel", (event) => {
      event.preventDefault();
      this.zoom(event.deltaY < 0 ? 1.2 : 1 / 1.2, this.keepsInMiddle ? undefined : this.map.cellUnder(event));
    }, { passive: false });
    canvas.addEventListener("pointerdown", (event) => { grabbed = this.map.cellUnder(event); moved = false; canvas.setPointerCapture(event.pointerId); });
    canvas.addEventListener("pointerup", (event) => {
      if (!moved && grabbed) this.pick(event);
      grabbed = null;
      canvas.classList.remove("dragged");
    });
    canvas.addEventListener("pointermove", (event) => {
      const cell = this.map.cellUnder(event);
      if (!grabbed) { this.showTip(event, cell); return; }
      if (!moved && Math.hypot(cell[0] - grabbed[0], cell[1] - grabbed[1]) * this.map.scale < 4 * this.map.ratio) return;
      moved = true;
      canvas.classList.add("dragged");
      this.keepInMiddle(false);
      this.map.centre = this.map.centre.map((middle, i) => middle + grabbed[i] - cell[i]);
    });
    canvas.addEventListener("pointerleave", () => { byId("tip").hidden = true; });
  }

  pick(event) {
    const found = this.thingUnder(this.map.cellUnder(event));
    if (found?.thing?.agent !== undefined) this.follow(this.world.agents.indexOf(found.thing));
  }

  thingUnder([x, y]) { return this.world.whatIsAt(Math.floor(x), Math.floor(y), this.step); }

  showTip(event, cell) {
    const tip = byId("tip"), found = this.thingUnder(cell), { world, step } = this;
    tip.hidden = !found || (found.kind !== undefined && world.isWall(found.kind));
    if (tip.hidden) return;
    const holds = found.thing ? world.inventoryText(found.thing, step) : "";
    const name = found.thing?.agent !== undefined ? `agent ${found.thing.agent}` : world.types[found.kind];
    tip.textContent = `${name} at column ${Math.floor(cell[0])}, row ${Math.floor(cell[1])}` + (holds ? `\nholds ${holds}` : "");
    const frame = tip.parentElement.getBoundingClientRect();
    tip.style.left = `${Math.min(event.clientX - frame.left + 14, frame.width - tip.offsetWidth - 6)}px`;
    tip.style.top = `${Math.min(event.clientY - frame.top + 14, frame.height - tip.offsetHeight - 6)}px`;
  }

  onKey(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.tagName === "SELECT") return;
    const many = event.shiftKey ? 10 : 1;
    const acts = {
      " ": () => this.toggle(), ArrowLeft: () => this.stepBy(-many), ArrowRight: () => this.stepBy(many),
      Home: () => this.stepBy(-this.world.steps), End: () => this.stepBy(this.world.steps),
      ArrowUp: () => this.changeSpeed(1), ArrowDown: () => this.changeSpeed(-1),
      a: () => this.follow(this.followed - 1), d: () => this.follow(this.followed + 1),
      f: () => this.keepInMiddle(!this.keepsInMiddle),
      v: () => { this.isDarkened = !this.isDarkened; this.isStale = true; },
      z: () => this.zoom(1.4), Z: () => this.zoom(1 / 1.4), 0: () => this.zoom(0),
    };
    const act = acts[event.key];
    if (!act) return;
    event.preventDefault();
    act();
  }
}
