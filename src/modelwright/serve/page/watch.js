// The live page of a run: asks for the state every two seconds and draws it. Text is only ever set as text, never as HTML.
const $ = (id) => document.getElementById(id);
const EVERY_MS = 2000, WIDTH = 360, HEIGHT = 176, LEFT = 50, RIGHT = 8, TOP = 8, BOTTOM = 20;
let asked = null, drawn = new Map(), missed = 0;

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function shape(tag, attributes, text) {
  const node = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== undefined) node.textContent = text;
  return node;
}

// --- numbers for people ---

function significant(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size < 1e-4 || size >= 1e9) return value.toExponential(2);
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(4)));
}

function count(value) {
  for (const [unit, size] of [["T", 1e12], ["B", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))}${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}

const WRITE = {
  number: significant,
  count,
  percent: (value) => `${Number((100 * value).toPrecision(3))} %`,
  bytes: (value) => (value >= 1e9 ? `${Number((value / 1e9).toPrecision(3))} GB` : `${Math.round(value / 1e6)} MB`),
  watts: (value) => `${Math.round(value)} W`,
};

function time(seconds) {
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.round(seconds / 60);
  return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
}

// --- charts ---

function ticks(low, high) {
  const raw = (high - low) / 4 || 1, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((k) => k * power).find((k) => k >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}

function scales(panel, steps) {
  const all = [...panel.points, ...panel.marks], values = all.map((point) => point[1]);
  const bend = panel.log ? Math.log10 : (value) => value;
  let low = panel.zero ? 0 : Math.min(...values.map(bend)), high = Math.max(...values.map(bend));
  if (high <= low) [low, high] = panel.zero ? [0, 1] : [low - Math.abs(low || 1) * 0.1, low + Math.abs(low || 1) * 0.1];
  const room = (high - low) * 0.06;
  high += room;
  if (!panel.zero) low -= room;
  const last = Math.max(1, ...all.map((point) => point[0]));
  const marks = panel.log
    ? Array.from({ length: Math.floor(high) - Math.ceil(low) + 1 }, (_, k) => 10 ** (Math.ceil(low) + k))
    : ticks(low, high);
  return {
    x: (step) => LEFT + (step / last) * (WIDTH - LEFT - RIGHT),
    y: (value) => HEIGHT - BOTTOM - ((bend(value) - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
    last, marks,
  };
}

function line(points, at) {
  return points.map(([step, value], k) => `${k ? "L" : "M"}${at.x(step).toFixed(1)} ${at.y(value).toFixed(1)}`).join("");
}

function caption(panel) {
  const write = WRITE[panel.unit], parts = [];
  if (panel.points.length) parts.push(write(panel.points.at(-1)[1]));
  if (panel.marks.length) parts.push(`held out ${write(panel.marks.at(-1)[1])}`);
  return parts.join(" · ");
}

function chart(panel) {
  const figure = make("figure"), write = WRITE[panel.unit], at = scales(panel);
  const head = make("figcaption", "", panel.title), said = make("span", "", caption(panel));
  head.append(said);
  const svg = shape("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img", "aria-label": `${panel.title}: ${caption(panel)}` });
  for (const value of at.marks) {
    const y = at.y(value);
    svg.append(shape("line", { class: "grid", x1: LEFT, x2: WIDTH - RIGHT, y1: y, y2: y }));
    svg.append(shape("text", { x: LEFT - 6, y: y + 4, "text-anchor": "end" }, write(value)));
  }
  for (const step of ticks(0, at.last).filter((tick) => Number.isInteger(tick))) {
    svg.append(shape("text", { x: at.x(step), y: HEIGHT - 5, "text-anchor": "middle" }, count(step)));
  }
  svg.append(shape("path", { class: "curve", d: line(panel.points, at) }));
  if (panel.points.length === 1) svg.append(shape("circle", { class: "only", cx: at.x(panel.points[0][0]), cy: at.y(panel.points[0][1]), r: 3 }));
  svg.append(shape("path", { class: "held", d: line(panel.marks, at) }));
  for (const [step, value] of panel.marks) svg.append(shape("circle", { class: "dot", cx: at.x(step), cy: at.y(value), r: 2.6 }));
  const cross = shape("line", { class: "cross", y1: TOP, y2: HEIGHT - BOTTOM, visibility: "hidden" });
  svg.append(cross);
  const all = panel.points.length ? panel.points : panel.marks;
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * WIDTH;
    const near = all.reduce((best, point) => (Math.abs(at.x(point[0]) - x) < Math.abs(at.x(best[0]) - x) ? point : best));
    for (const name of ["x1", "x2"]) cross.setAttribute(name, at.x(near[0]));
    cross.setAttribute("visibility", "visible");
    said.textContent = `step ${Math.round(near[0]).toLocaleString("en")}: ${write(near[1])}`;
  });
  svg.addEventListener("pointerleave", () => {
    cross.setAttribute("visibility", "hidden");
    said.textContent = caption(panel);
  });
  figure.append(head, svg);
  return figure;
}

// --- the page ---

// Draws a part anew only where its data changed, so that a pointer over a chart stays there.
function changed(name, data) {
  const text = JSON.stringify(data);
  if (drawn.get(name) === text) return false;
  drawn.set(name, text);
  return true;
}

function stages(state) {
  if (!changed("stages", [state.stages.map((s) => [s.id, s.name, s.state]), state.stage?.id])) return;
  const focus = document.activeElement?.dataset?.stage;
  $("stages").replaceChildren(...state.stages.map((stage) => {
    const button = make("button", stage.state === "to do" ? "" : stage.state, stage.name);
    button.type = "button";
    button.title = `${stage.kind} · ${stage.state}`;
    button.dataset.stage = stage.id;
    button.setAttribute("aria-pressed", String(stage.id === state.stage?.id));
    button.addEventListener("click", () => {
      asked = stage.id;
      look();
    });
    return button;
  }));
  if (focus) [...$("stages").children].find((button) => button.dataset.stage === focus)?.focus();
}

function stateWords(stage) {
  if (stage.state === "made" || stage.state === "to do") return stage.state;
  if (stage.age_s === null) return "begun";
  return stage.state === "running" ? "running" : `quiet for ${time(stage.age_s)}: stopped, or busy with work that tells nothing`;
}

function head(stage) {
  const now = stage.now, known = now.steps > 0 && now.step !== undefined;
  $("name").textContent = `${stage.name}${stage.kind ? ` · ${stage.kind}` : ""}`;
  $("state").textContent = stateWords(stage);
  $("state").className = `pill ${stage.state === "running" ? "running" : ""}`;
  $("bar").hidden = !known;
  const parts = [];
  if (known) {
    const share = Math.min(1, now.step / now.steps);
    $("fill").style.width = `${100 * share}%`;
    $("bar").setAttribute("aria-valuenow", String(Math.round(100 * share)));
    parts.push(`step ${now.step.toLocaleString("en")} of ${now.steps.toLocaleString("en")}`, `${Math.floor(100 * share)} %`);
    if (now.seconds !== undefined) parts.push(`${time(now.seconds)} of training`);
    if (stage.state === "running" && now.left_s !== undefined && share < 1) parts.push(`about ${time(now.left_s)} left`);
    document.title = `${Math.floor(100 * share)} % ${stage.name}`;
  } else {
    document.title = `${stage.name} · watch`;
  }
  if (stage.unreadable) parts.push(`${stage.unreadable} lines of its events could not be read`);
  $("progress").textContent = parts.join(" · ");
}

function tiles(stage) {
  const now = stage.now, found = [];
  const add = (label, value, unit, small) => {
    if (value === undefined) return;
    const box = make("div"), dd = make("dd", "", WRITE[unit](value));
    if (small) dd.append(make("small", "", small));
    box.append(make("dt", "", label), dd);
    found.push(box);
  };
  add("Loss", now.loss, "number");
  add("Held-out loss", now.validation, "number", now.best_validation < now.validation ? `best ${significant(now.best_validation)}` : "");
  add("Tokens per second", now.tokens_per_s, "count");
  add("MFU", now.mfu, "percent", "of this machine's matrix rate");
  add("Tokens seen", now.tokens, "count");
  add("Learning rate", now.lr, "number");
  add("Gradient norm", now.grad_norm, "number");
  add("Bad steps", now.bad_step, "count", "told below");
  add("Steps left out", now.overflow, "count", "their gradients left float16's range");
  add("Processor", now.cpu_frac, "percent", now.cpu_energy_j ? `${significant(now.cpu_energy_j / 3600)} Wh` : "");
  add("Memory", now.memory_bytes, "bytes");
  for (const gpu of now.gpus) {
    const energy = gpu.energy_j ? `${significant(gpu.energy_j / 3600)} Wh` : "";
    add(`GPU ${gpu.index} in use`, gpu.use_frac ?? undefined, "percent");
    add(`GPU ${gpu.index} memory`, gpu.memory_bytes ?? undefined, "bytes");
    add(`GPU ${gpu.index} power`, gpu.power_w ?? undefined, "watts", energy);
  }
  $("tiles").replaceChildren(...found);
}

function charts(panels) {
  const box = $("charts"), old = new Map([...box.children].map((figure) => [figure.dataset.title, figure]));
  const figures = panels.map((panel) => {
    if (!changed(`chart ${panel.title}`, panel) && old.has(panel.title)) return old.get(panel.title);
    const figure = chart(panel);
    figure.dataset.title = panel.title;
    return figure;
  });
  if (figures.length !== box.children.length || figures.some((figure, k) => figure !== box.children[k])) box.replaceChildren(...figures);
}

function samples(list) {
  $("samples").hidden = !list.length;
  $("sample-list").replaceChildren(...list.map((sample) => {
    const box = make("div", "exchange");
    box.append(make("pre", "prompt", sample.prompt), make("pre", "", sample.answer));
    return box;
  }));
}

function notes(list) {
  $("notes").hidden = !list.length;
  $("note-list").replaceChildren(...list.map((note) => {
    const item = make("li"), when = make("time");
    if (note.time_s !== null) {
      const date = new Date(note.time_s * 1000);
      when.dateTime = date.toISOString();
      when.textContent = date.toLocaleTimeString([], { hour12: false });
    }
    item.append(when, make("span", "", note.text));
    return item;
  }));
}

function show(state) {
  $("title").textContent = state.title;
  $("link").textContent = `store: ${state.store}`;
  stages(state);
  const stage = state.stage;
  $("head").hidden = !stage;
  $("nothing").hidden = Boolean(stage);
  if (!stage) return;
  head(stage);
  if (changed("tiles", [stage.id, stage.now])) tiles(stage);
  charts(stage.panels);
  if (changed("samples", stage.samples)) samples(stage.samples);
  if (changed("notes", stage.notes)) notes(stage.notes);
}

async function look() {
  try {
    const response = await fetch(`/state.json${asked ? `?stage=${encodeURIComponent(asked)}` : ""}`);
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    show(await response.json());
    missed = 0;
  } catch (problem) {
    missed += 1;
    if (missed > 1) $("link").textContent = problem instanceof TypeError ? "modelwright watch has ended; the last state is shown" : problem.message;
  }
}

async function follow() {
  for (;;) {
    await look();
    await new Promise((done) => { setTimeout(done, document.hidden ? 5 * EVERY_MS : EVERY_MS); });
  }
}

follow();
